package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pires/go-proxyproto"
)

// acceptedConn is a connection as the listener gave it, behind its PROXY
// header if it has one. It knows its server, so that draining can find it.
type acceptedConn struct {
	net.Conn
	info   *ConnInfo
	early  *bufio.Reader // bytes read together with the PROXY header
	server *Server

	guard    atomic.Pointer[guardConn] // nil before and without HTTP/1.1
	slot     atomic.Bool               // holds one of the handshake slots
	tunnel   atomic.Bool               // hijacked
	shutOnce sync.Once
}

func (c *acceptedConn) Read(p []byte) (int, error) {
	if c.early != nil {
		if c.early.Buffered() > 0 {
			return c.early.Read(p)
		}
		c.early = nil
	}
	return c.Conn.Read(p)
}

func (c *acceptedConn) Write(p []byte) (int, error) {
	// Our first flight is signed and on its way: what follows waits for the
	// peer, and a slot must not.
	c.releaseSlot()
	return c.Conn.Write(p)
}

func (c *acceptedConn) releaseSlot() {
	if c.slot.CompareAndSwap(true, false) {
		<-c.server.slots
	}
}

// HandshakeWaits implements certs.Waiter: who waits computes nothing.
func (c *acceptedConn) HandshakeWaits() { c.releaseSlot() }

func (c *acceptedConn) Close() error {
	err := net.ErrClosed
	c.shutOnce.Do(func() {
		c.releaseSlot()
		err = c.Conn.Close()
		c.server.forget(c)
	})
	return err
}

// CloseWrite half-closes, for tunnels.
func (c *acceptedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// ReadFrom lets the kernel copy where it can.
func (c *acceptedConn) ReadFrom(r io.Reader) (int64, error) {
	c.releaseSlot()
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// readProxyHeader reads the PROXY protocol header that must begin every
// connection, from a listed peer if there is a list (decisions.md 4), and puts
// the address it names into c.info.
func (c *acceptedConn) readProxyHeader(trusted []netip.Prefix, timeout time.Duration) error {
	peer := c.info.Direct
	if len(trusted) > 0 && !containsAddr(trusted, peer.Addr()) {
		return fmt.Errorf("PROXY header from %s, which is not in trusted_proxies; list it or connect through a listed proxy", peer.Addr())
	}
	c.Conn.SetReadDeadline(time.Now().Add(timeout))
	defer c.Conn.SetReadDeadline(time.Time{})
	r := bufio.NewReaderSize(c.Conn, 512)
	header, err := proxyproto.Read(r)
	if err != nil {
		return fmt.Errorf("PROXY header expected from %s (use_proxy_protocol is on): %w", peer.Addr(), err)
	}
	c.early = r
	if header.Command.IsLocal() {
		return nil // a health check of the load balancer itself
	}
	source, _, ok := header.TCPAddrs()
	if !ok {
		return nil // UNKNOWN: the connection's own address stands
	}
	direct := source.AddrPort()
	if !direct.Addr().IsValid() {
		return fmt.Errorf("PROXY header from %s names no valid source address", peer.Addr())
	}
	c.info.Proxy = peer
	c.info.Direct = netip.AddrPortFrom(direct.Addr().Unmap(), direct.Port())
	return nil
}

func containsAddr(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// addrPort reads a TCP or UDP address; the zero AddrPort for anything else.
func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(interface{ AddrPort() netip.AddrPort }); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return netip.AddrPort{}
}

// readyListener hands connections that are past their handshake to net/http.
type readyListener struct {
	conns chan net.Conn
	addr  net.Addr
	done  chan struct{}
	once  sync.Once
}

func (l *readyListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *readyListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *readyListener) Addr() net.Addr { return l.addr }

// offer gives net/http a connection; false once it takes no more.
func (l *readyListener) offer(c net.Conn) bool {
	select {
	case l.conns <- c:
		return true
	case <-l.done:
		return false
	}
}
