package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"postern/internal/upstream/http1"
)

// connectTimeout bounds connecting, TLS included (configuration.md §2.11).
const connectTimeout = 10 * time.Second

// connectError marks errors from before a connection stood: nothing was sent.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// dialHost connects to a host. All connections to upstreams begin here: it
// keeps the guard and the source address.
func (t *Target) dialHost(ctx context.Context, h *host) (net.Conn, error) {
	return t.dialPort(ctx, h, 0)
}

// dialPort is dialHost to another port, unless that is 0 or the host a socket.
func (t *Target) dialPort(ctx context.Context, h *host, port uint16) (net.Conn, error) {
	addr := h.addr
	if port != 0 && h.endpoint.network == "tcp" {
		ip, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, &connectError{err}
		}
		addr = net.JoinHostPort(ip, strconv.Itoa(int(port)))
	}
	d := net.Dialer{Timeout: connectTimeout}
	if t.guard != nil || t.bind.Source.IsValid() || t.bind.Free {
		d.ControlContext = func(ctx context.Context, network, address string, c syscall.RawConn) error {
			if t.guard != nil {
				if err := t.guard.check(ctx, network, address, c); err != nil {
					return err
				}
			}
			return bindOptions(network, c, t.bind)
		}
	}
	if t.bind.Source.IsValid() && h.endpoint.network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.bind.Source, 0))
	}
	c, err := d.DialContext(ctx, h.endpoint.network, addr)
	if err != nil {
		return nil, &connectError{err}
	}
	return c, nil
}

// connect is dialHost for exchanges: it keeps to the limit of connections.
// settled, if not nil, ends the wait for room when nobody needs it any more.
func (t *Target) connect(ctx context.Context, h *host, settled <-chan struct{}) (net.Conn, error) {
	b := &t.breaker
	if !take(&b.open, b.maxConnections) {
		waiting, cancel := context.WithTimeout(ctx, pendingFor)
		defer cancel()
		if err := b.connection(waiting, settled, t.closeIdle); err != nil {
			return nil, err
		}
	}
	c, err := t.dialHost(ctx, h)
	if err != nil {
		b.connectionClosed()
		return nil, err
	}
	return &countedConn{Conn: c, b: b}, nil
}

// closeIdle closes the connections that nobody uses.
func (t *Target) closeIdle() {
	if set := t.hosts.Load(); set != nil {
		for _, h := range set.hosts {
			h.closeIdle()
		}
	}
}

// countedConn counts as open until it is closed.
type countedConn struct {
	net.Conn
	b    *breaker
	once sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.b.connectionClosed)
	return err
}

// NetConn gives the socket.
func (c *countedConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends one direction of a tunnel.
func (c *countedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// tlsConfigFor is how to speak TLS with a host.
func (t *Target) tlsConfigFor(h *host, alpn []string) *tls.Config {
	return t.tls.config(h.endpoint.tlsName, alpn)
}

// dialHTTP2 connects over TLS for Transport, which is to speak HTTP/2. If the
// host prefers HTTP/1.1, the connection is kept for that.
func (t *Target) dialHTTP2(ctx context.Context, h *host, l *links) (net.Conn, error) {
	ctx, done, settled := dialFor(ctx)
	defer done()
	raw, err := t.connect(ctx, h, settled)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, t.tlsConfigFor(h, []string{"h2", "http/1.1"}))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &connectError{&tlsError{err}}
	}
	if c.ConnectionState().NegotiatedProtocol == "h2" {
		if !t.h1Seen.Load() && !t.multiplexed.Swap(true) {
			t.breaker.grantAll()
		}
		return c, nil
	}
	t.h1Seen.Store(true)
	t.multiplexed.Store(false)
	l.http1.Store(true)
	if !l.idle.put(http1.NewConn(c)) {
		c.Close()
	}
	return nil, errSpeaksHTTP1
}

// tlsError marks handshake errors, for explain.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// dialGuard refuses addresses that routes from the API or a cluster may not
// reach (decisions.md 27). It sees addresses after name resolution, at the
// moment of connecting, so that a name cannot change its mind in between.
type dialGuard struct{ allow []netip.Prefix }

// metadata services that are not link-local.
var metadataAddrs = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("168.63.129.16"),
}

func (g *dialGuard) check(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q is not an IP address: refused", address)
	}
	ip := ap.Addr().Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(ip) {
			return nil
		}
	}
	bad := ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()
	for _, m := range metadataAddrs {
		bad = bad || ip == m
	}
	if bad {
		return fmt.Errorf("%s is a loopback, link-local or metadata address, which this route may not reach; list it in upstream_dial_allow if it should", ip)
	}
	return nil
}
