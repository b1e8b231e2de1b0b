package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"postern/internal/upstream/http1"
)

// quicConfig is for connections to upstreams. Idle ones are closed by their
// link, so keeping alive serves long streams only; it also notices a peer
// that is gone.
var quicConfig = &quic.Config{
	Versions:                   []quic.Version{quic.Version1},
	HandshakeIdleTimeout:       connectTimeout,
	MaxIdleTimeout:             45 * time.Second,
	KeepAlivePeriod:            15 * time.Second,
	MaxStreamReceiveWindow:     4 << 20,
	MaxConnectionReceiveWindow: 16 << 20,
	MaxIncomingStreams:         -1, // requests go one way (RFC 9114 §6.1)
}

// h3Link speaks HTTP/3 (RFC 9114) with one host, over one connection at a
// time. Early data is never sent: it could be replayed.
type h3Link struct {
	t    *Target
	h    *host
	port uint16 // instead of the host's, unless 0
	once bool   // a connection per exchange
	free bool   // not under the limit of connections: for health checks

	mu   sync.Mutex
	conn *h3Conn
}

// newH3Link makes the HTTP/3 connections of one host.
func newH3Link(t *Target, h *host) (link, error) { return &h3Link{t: t, h: h}, nil }

// h3Conn is a QUIC connection, perhaps still being made.
type h3Conn struct {
	made   chan struct{} // closed once client or err is set
	client *http3.ClientConn
	err    error
	cancel context.CancelFunc // of making it

	// Of h3Link.mu:
	uses int // exchanges under way
	idle *time.Timer
}

// RoundTrip sends a request, over a new connection if need be. Where the
// connection turns out to be gone before anything was sent, or the request
// can be repeated without harm, a new one is tried.
func (l *h3Link) RoundTrip(req *http.Request) (*http.Response, error) {
	sent := *req
	u := *req.URL
	u.Scheme = "https"
	sent.URL = &u
	if body, ok := req.Body.(*requestBody); ok && body.expect {
		// HTTP/3 sends the body without waiting for 100 (Continue).
		body.expect = false
		sent.Header = req.Header.Clone()
		sent.Header.Del("Expect")
	}
	for try := 0; ; try++ {
		c, fresh := l.take()
		resp, err := l.over(c, &sent)
		if err == nil {
			return resp, nil
		}
		if fresh || try > 0 || req.Context().Err() != nil || !h3Again(c, &sent, err) {
			return nil, h3Error(err)
		}
		l.drop(c)
	}
}

func (l *h3Link) over(c *h3Conn, req *http.Request) (*http.Response, error) {
	select {
	case <-c.made:
	case <-req.Context().Done():
		l.leave(c)
		return nil, req.Context().Err()
	}
	if c.err != nil {
		l.leave(c)
		return nil, c.err
	}
	resp, err := c.client.RoundTrip(req)
	if err != nil {
		l.leave(c)
		return nil, err
	}
	resp.Body = &h3Body{ReadCloser: resp.Body, leave: sync.OnceFunc(func() { l.leave(c) })}
	return resp, nil
}

// take gives the connection, counted as in use, and whether it was made for
// the caller.
func (l *h3Link) take() (c *h3Conn, fresh bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.conn; c != nil && c.alive() {
		if c.idle != nil {
			c.idle.Stop()
		}
		c.uses++
		return c, false
	}
	c = &h3Conn{made: make(chan struct{}), uses: 1}
	l.conn = c
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	c.cancel = cancel
	go func() {
		defer cancel()
		c.client, c.err = l.connect(ctx)
		close(c.made)
		if c.err != nil {
			l.drop(c)
		}
	}()
	return c, true
}

// connect makes a connection and counts it as long as it stands.
func (l *h3Link) connect(ctx context.Context) (*http3.ClientConn, error) {
	if l.free {
		return l.t.dialH3(ctx, l.h, l.port)
	}
	b := &l.t.breaker
	if !take(&b.open, b.maxConnections) {
		return nil, overflow("max_connections", b.maxConnections)
	}
	c, err := l.t.dialH3(ctx, l.h, l.port)
	if err != nil {
		b.connectionClosed()
		return nil, err
	}
	context.AfterFunc(c.Context(), b.connectionClosed)
	return c, nil
}

// alive is false of connections that failed or ended.
func (c *h3Conn) alive() bool {
	select {
	case <-c.made:
		return c.err == nil && c.client.Context().Err() == nil
	default:
		return true
	}
}

// leave ends a use. The last one out leaves an idle connection, or closes one
// that is not the link's any more.
func (l *h3Link) leave(c *h3Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.uses--; c.uses > 0 {
		return
	}
	if l.once || l.conn != c {
		l.closeLocked(c)
		return
	}
	if c.idle == nil {
		c.idle = time.AfterFunc(idleFor, func() { l.closeIfIdle(c) })
	} else {
		c.idle.Reset(idleFor)
	}
}

// drop takes a connection out of use: no further request goes over it.
func (l *h3Link) drop(c *h3Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == c {
		l.conn = nil
	}
	if c.uses == 0 {
		l.closeLocked(c)
	}
}

func (l *h3Link) closeIfIdle(c *h3Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.uses == 0 {
		l.closeLocked(c)
	}
}

// CloseIdleConnections closes the connection unless an exchange is under way.
func (l *h3Link) CloseIdleConnections() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.conn; c != nil && c.uses == 0 {
		l.closeLocked(c)
	}
}

func (l *h3Link) closeLocked(c *h3Conn) {
	if l.conn == c {
		l.conn = nil
	}
	if c.idle != nil {
		c.idle.Stop()
	}
	c.cancel()
	go func() { // closing says goodbye and takes a moment
		<-c.made
		if c.err == nil {
			c.client.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
		}
	}()
}

// h3Body tells when the response was read or given up.
type h3Body struct {
	io.ReadCloser
	leave func()
}

func (b *h3Body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = h3Error(err)
	}
	return n, err
}

func (b *h3Body) Close() error {
	err := b.ReadCloser.Close()
	b.leave()
	return err
}

// dialH3 connects to a host. The socket belongs to the one connection and is
// a connected one, so that a closed port is noticed at once.
func (t *Target) dialH3(ctx context.Context, h *host, port uint16) (*http3.ClientConn, error) {
	addr, err := netip.ParseAddrPort(h.addr)
	if err != nil {
		return nil, &connectError{fmt.Errorf("address %q is not an IP address and a port", h.addr)}
	}
	if port != 0 {
		addr = netip.AddrPortFrom(addr.Addr(), port)
	}
	raw, err := t.dialUDP(ctx, addr)
	if err != nil {
		return nil, &connectError{err}
	}
	socket := &udpSocket{raw.(*net.UDPConn), net.UDPAddrFromAddrPort(addr)}
	transport := &quic.Transport{Conn: socket}
	release := func() {
		transport.Close()
		socket.Close()
	}
	conn, err := transport.Dial(ctx, socket.peer, t.tlsConfigFor(h, []string{http3.NextProtoH3}), quicConfig)
	if err != nil {
		release()
		return nil, &connectError{handshakeError(err)}
	}
	context.AfterFunc(conn.Context(), release)
	h3 := &http3.Transport{DisableCompression: true, MaxResponseHeaderBytes: http1.MaxHeadBytes}
	return h3.NewClientConn(conn), nil
}

// dialUDP makes a socket that is connected to addr.
func (t *Target) dialUDP(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{ControlContext: func(ctx context.Context, network, address string, c syscall.RawConn) error {
		if t.guard != nil {
			if err := t.guard.check(ctx, network, address, c); err != nil {
				return err
			}
		}
		return bindOptions(network, c, t.bind)
	}}
	if t.bind.Source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(t.bind.Source, 0))
	}
	return d.DialContext(ctx, "udp", addr.String())
}

// udpSocket lets a connected socket be written to by address, as quic-go does.
type udpSocket struct {
	*net.UDPConn
	peer *net.UDPAddr
}

func (s *udpSocket) WriteTo(b []byte, _ net.Addr) (int, error) { return s.UDPConn.Write(b) }

func (s *udpSocket) WriteMsgUDP(b, oob []byte, _ *net.UDPAddr) (n, oobn int, err error) {
	return s.UDPConn.WriteMsgUDP(b, oob, nil)
}

// handshakeError gives errors of a QUIC handshake the types that explain knows.
func handshakeError(err error) error {
	var transport *quic.TransportError
	if errors.As(err, &transport) && transport.ErrorCode.IsCryptoError() {
		if transport.Remote {
			return &tlsError{tls.AlertError(transport.ErrorCode & 0xff)} // RFC 9001 §4.8
		}
		return &tlsError{err}
	}
	return err
}

// h3Again reports whether a request that failed may be sent over another
// connection: it was not sent, the upstream says that it did nothing
// (RFC 9114 §5.2, H3_REQUEST_REJECTED), or its connection ended and it changes
// nothing. A body that was begun is not sent again: its writer may still read.
func h3Again(c *h3Conn, req *http.Request, err error) bool {
	var connecting *connectError
	if errors.As(err, &connecting) {
		return false // it was shared with the request that began it
	}
	if strings.HasPrefix(err.Error(), "http3: conn unusable") {
		return true // no stream was opened, the body is untouched
	}
	if req.Body != nil && req.Body != http.NoBody {
		return false
	}
	var h3 *http3.Error
	if errors.As(err, &h3) && h3.Remote && h3.ErrorCode == http3.ErrCodeRequestRejected {
		return true
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		// The connection may have ended a moment before it says so.
		var socket *net.OpError
		return errors.Is(err, net.ErrClosed) || errors.As(err, &socket) || !c.alive()
	}
	return false
}

// h3Error says of errors that are breaches of the protocol that they are.
func h3Error(err error) error {
	var h3 *http3.Error
	if !errors.As(err, &h3) {
		if s := err.Error(); strings.Contains(s, "qpack") || strings.Contains(s, "pseudo header") || strings.Contains(s, "http3: too many 1xx") {
			return &http1.Malformed{Reason: s}
		}
		return err
	}
	switch h3.ErrorCode {
	case http3.ErrCodeFrameUnexpected, http3.ErrCodeFrameError, http3.ErrCodeMessageError, http3.ErrCodeGeneralProtocolError,
		http3.ErrCodeExcessiveLoad, http3.ErrCodeIDError, http3.ErrCodeSettingsError, http3.ErrCodeMissingSettings,
		http3.ErrCodeStreamCreationError, http3.ErrCodeClosedCriticalStream, http3.ErrCodeQPACKDecompressionFailed:
		return &http1.Malformed{Reason: err.Error()}
	}
	return err
}
