package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// HTTP/3 comes through quic-go, whose http3 package drives the same handler as
// net/http does for the other versions. The socket and its listener live as
// long as the address (QUICListener); the connections belong to the Server of
// the moment, as those of TCP do.

const (
	// quicRetryAbove is how many handshakes may be in progress before strangers
	// must show that they receive what is sent to their address (RFC 9000 §8.1.2),
	// and quicRefuseAbove before they are turned away.
	quicRetryAbove  = 128
	quicRefuseAbove = 4096
	// quicMost is how many connections one socket has. Those of TCP are bounded
	// by the limit of open files; these have none of their own, only memory.
	quicMost = 16384
	// quicSilence ends a connection whose peer is gone; quicKeepAlive keeps the
	// others, so that a long answer outlives the 30 s that clients wait.
	quicSilence   = 45 * time.Second
	quicKeepAlive = 15 * time.Second
	// quicLinger is how long a connection that drains stays after its last
	// answer, which may still be on its way.
	quicLinger = 500 * time.Millisecond
)

// Error codes of RFC 9114 §8.1.
const (
	h3NoError       quic.ApplicationErrorCode = 0x100
	h3ExcessiveLoad quic.ApplicationErrorCode = 0x107
)

// QUICListener takes QUIC connections on one UDP socket and gives them to the
// server of the moment. Whoever owns it may exchange that server at any time.
type QUICListener struct {
	pc        net.PacketConn
	transport *quic.Transport
	listener  *quic.Listener
	current   func() *Server
	open      atomic.Int64 // handshakes in progress
	alive     atomic.Int64 // connections, these included
	most      atomic.Int64 // quicMost
	serving   sync.WaitGroup
}

// quicHandshake is what is known of a connection before it is accepted.
type quicHandshake struct {
	info       *ConnInfo
	serverName atomic.Pointer[string]
	chain      atomic.Pointer[[]*x509.Certificate]
	over       atomic.Bool
}

type quicHandshakeKey struct{}

var errNotServing = errors.New("nobody serves here yet")

// ListenQUIC begins to listen on pc; Serve, which must follow, accepts. current
// gives the server that takes new connections: its ServeOptions.TLS is
// required. Nil refuses them.
func ListenQUIC(pc net.PacketConn, current func() *Server) (*QUICListener, error) {
	l := &QUICListener{pc: pc, current: current}
	l.most.Store(quicMost)
	l.transport = &quic.Transport{
		Conn: pc,
		VerifySourceAddress: func(net.Addr) bool {
			return l.open.Load() >= quicRetryAbove || l.alive.Load() >= l.most.Load()/2
		},
		ConnContext: l.begin,
	}
	base := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{http3.NextProtoH3},
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			s := l.current()
			if s == nil {
				return nil, errNotServing
			}
			return s.quicTLS(hello)
		},
		// An encrypted hello is opened before GetConfigForClient sees it.
		GetEncryptedClientHelloKeys: func(hello *tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
			if s := l.current(); s != nil && s.tls != nil && s.tls.GetEncryptedClientHelloKeys != nil {
				return s.tls.GetEncryptedClientHelloKeys(hello)
			}
			return []tls.EncryptedClientHelloKey{}, nil
		},
	}
	config := &quic.Config{
		GetConfigForClient: func(*quic.ClientInfo) (*quic.Config, error) {
			s := l.current()
			if s == nil {
				return nil, errNotServing
			}
			return s.quicConfig(), nil
		},
	}
	var err error
	// Listen, not ListenEarly: no request is served before the handshake is
	// complete, so that nothing can be replayed and a client certificate is
	// there before the first byte.
	l.listener, err = l.transport.Listen(base, config)
	l.serving.Add(1) // Serve
	return l, err
}

// begin is called for the first packet of a connection.
func (l *QUICListener) begin(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
	if l.alive.Add(1) > l.most.Load() {
		l.alive.Add(-1)
		return nil, errors.New("too many connections")
	}
	if l.open.Add(1) > quicRefuseAbove {
		l.open.Add(-1)
		l.alive.Add(-1)
		return nil, errors.New("too many handshakes at once")
	}
	h := &quicHandshake{info: &ConnInfo{Direct: addrPort(client.RemoteAddr), Local: addrPort(l.pc.LocalAddr())}}
	context.AfterFunc(ctx, func() { // the connection is gone
		l.alive.Add(-1)
		if !l.end(h) {
			return
		}
		s := l.current()
		if s == nil || s.o.OnConnectionFailed == nil || s.ctx.Err() != nil {
			return
		}
		name := ""
		if p := h.serverName.Load(); p != nil {
			name = *p
		}
		if p := h.chain.Load(); p != nil {
			h.info.TLS = &tls.ConnectionState{ServerName: name, PeerCertificates: *p}
		}
		s.o.OnConnectionFailed(h.info, name, context.Cause(ctx))
	})
	return context.WithValue(ctx, quicHandshakeKey{}, h), nil
}

// end counts a handshake as over; false if it was already.
func (l *QUICListener) end(h *quicHandshake) bool {
	if h.over.Swap(true) {
		return false
	}
	l.open.Add(-1)
	return true
}

// Serve accepts connections until the listener is closed.
func (l *QUICListener) Serve() {
	defer l.serving.Done()
	for {
		c, err := l.listener.Accept(context.Background())
		if err != nil {
			return
		}
		if h, _ := c.Context().Value(quicHandshakeKey{}).(*quicHandshake); h != nil {
			l.end(h)
		}
		l.serving.Go(func() { l.serve(c) })
	}
}

// serve gives one connection to the server of the moment. That one may be
// exchanged meanwhile: then the next gets it.
func (l *QUICListener) serve(c *quic.Conn) {
	for {
		s := l.current()
		err := s.ServeQUIC(c)
		if !errors.Is(err, http.ErrServerClosed) || l.current() == s {
			break
		}
		if c.Context().Err() != nil {
			return
		}
	}
	c.CloseWithError(h3NoError, "")
}

// Stop takes no more connections; those that are open go on.
func (l *QUICListener) Stop() { l.listener.Close() }

// Retire takes no more connections and closes the socket once all are gone,
// at the latest when ctx ends.
func (l *QUICListener) Retire(ctx context.Context) {
	l.Stop()
	gone := make(chan struct{})
	go func() { l.serving.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-ctx.Done():
	}
	l.Close()
}

// Close ends everything at once and closes the socket.
func (l *QUICListener) Close() error {
	l.listener.Close()
	l.transport.Close()
	return l.pc.Close()
}

// Addr is the address of the socket.
func (l *QUICListener) Addr() net.Addr { return l.pc.LocalAddr() }

// quicTLS is the TLS configuration for one handshake: the same that a TCP
// connection with this hello would get, but for the protocol.
func (s *Server) quicTLS(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if s.tls == nil {
		return nil, errors.New("this listener has no TLS")
	}
	h, _ := hello.Context().Value(quicHandshakeKey{}).(*quicHandshake)
	if h != nil {
		name := hello.ServerName
		h.serverName.Store(&name)
	}
	config := s.tls
	if config.GetConfigForClient != nil {
		c, err := config.GetConfigForClient(hello)
		if err != nil {
			return nil, err
		}
		if c != nil {
			config = c
		}
	}
	_, _ = config.DecryptTicket(nil, tls.ConnectionState{}) // makes its keys before they are copied, golang.org/issue/60506
	config = config.Clone()
	config.GetConfigForClient = nil
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{http3.NextProtoH3}
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if h != nil {
			h.chain.Store(&state.PeerCertificates)
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	return config, nil
}

// quicConfig are the limits of one connection.
func (s *Server) quicConfig() *quic.Config {
	return &quic.Config{
		HandshakeIdleTimeout: s.o.HandshakeTimeout / 2, // twice that is the end
		MaxIdleTimeout:       quicSilence,
		KeepAlivePeriod:      quicKeepAlive,
		MaxIncomingStreams:   int64(s.o.MaxStreams),
		// Control and two of QPACK; some clients open one more, to see whether
		// unknown ones are ignored.
		MaxIncomingUniStreams:          8,
		InitialStreamReceiveWindow:     256 << 10,
		MaxStreamReceiveWindow:         1 << 20,
		InitialConnectionReceiveWindow: 512 << 10,
		MaxConnectionReceiveWindow:     2 << 20,
		Allow0RTT:                      false,
	}
}

// newHTTP3 makes the part of a server that speaks HTTP/3.
func (s *Server) newHTTP3() *http3.Server {
	return &http3.Server{
		Handler: http.HandlerFunc(s.handleQUIC),
		// The size of a field section counts 32 bytes more per field (RFC 9114
		// §4.2.2); checkFields holds to the limits themselves.
		MaxHeaderBytes: MaxHeadBytes + 32*MaxHeadFields,
		ConnContext: func(ctx context.Context, c *quic.Conn) context.Context {
			s.mu.Lock()
			q := s.quic[c]
			s.mu.Unlock()
			return context.WithValue(ctx, connInfoKey{}, q.info)
		},
		Logger: slog.New(quiet{s.o.Logger.Handler()}),
	}
}

// quiet lets warnings and errors pass: below, http3 logs whole addresses.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}

// quicConn is one accepted QUIC connection.
type quicConn struct {
	conn   *quic.Conn
	info   *ConnInfo
	server *Server

	mu       sync.Mutex
	active   int         // requests being served
	draining bool        // no more are welcome
	rest     *time.Timer // ends the connection once it was idle for long enough
}

// ServeQUIC serves a connection whose handshake is complete until it ends. The
// error is http.ErrServerClosed if the server takes no more.
func (s *Server) ServeQUIC(c *quic.Conn) error {
	state := c.ConnectionState().TLS
	q := &quicConn{conn: c, server: s, info: &ConnInfo{
		Direct: addrPort(c.RemoteAddr()), Local: addrPort(c.LocalAddr()), TLS: &state, tunnels: &s.tunnels,
	}}
	q.info.quic = q
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return http.ErrServerClosed
	}
	s.quic[c] = q
	s.mu.Unlock()
	q.restIn(s.o.IdleTimeout)
	defer func() {
		q.restIn(0)
		s.mu.Lock()
		delete(s.quic, c)
		s.mu.Unlock()
	}()
	return s.http3.ServeQUICConn(c)
}

// restIn ends the connection after d without a request; 0 is never.
func (q *quicConn) restIn(d time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.restLocked(d)
}

func (q *quicConn) restLocked(d time.Duration) {
	if q.rest != nil {
		q.rest.Stop()
		q.rest = nil
	}
	if d <= 0 {
		return
	}
	q.rest = time.AfterFunc(d, func() {
		q.mu.Lock()
		idle := q.active == 0
		q.mu.Unlock()
		if idle {
			q.conn.CloseWithError(h3NoError, "idle")
		}
	})
}

// enter counts a request; false where the client has begun far more than it
// may have open, which it can by resetting them (CVE-2023-44487).
func (q *quicConn) enter() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.active++
	if q.active > 2*q.server.o.MaxStreams {
		return false
	}
	q.restLocked(0)
	return true
}

func (q *quicConn) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.active--; q.active == 0 {
		if q.draining {
			q.restLocked(quicLinger)
		} else {
			q.restLocked(q.server.o.IdleTimeout)
		}
	}
}

// drain ends the connection once its requests are answered.
func (q *quicConn) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.draining = true
	if q.active == 0 {
		q.restLocked(quicLinger)
	}
}

// handleQUIC is handle for HTTP/3, with what net/http does by itself for the
// other versions: time limits, and requests without a body known as such.
func (s *Server) handleQUIC(w http.ResponseWriter, r *http.Request) {
	q := ConnInfoFrom(r.Context()).quic
	defer q.leave()
	if !q.enter() {
		q.conn.CloseWithError(h3ExcessiveLoad, "too many requests at once")
		panic(http.ErrAbortHandler)
	}
	rc := http.NewResponseController(w)
	var all time.Time // by when the whole request must be here; zero is never
	if s.o.ReadTimeout > 0 {
		all = time.Now().Add(s.o.ReadTimeout)
	}
	if r.ContentLength < 0 && seldomBody(r.Method) {
		head := time.Now().Add(s.o.ReadHeaderTimeout)
		if !all.IsZero() && all.Before(head) {
			head = all
		}
		rc.SetReadDeadline(head)
		settleBody(r)
	}
	rc.SetReadDeadline(all)
	s.handle(&quicWriter{ResponseWriter: w, q: q}, r)
}

// quicWriter keeps fields of the connection out of answers, where HTTP/3 has
// none (RFC 9114 §4.2). Connection: close means what it says: this connection
// is to end.
type quicWriter struct {
	http.ResponseWriter
	q     *quicConn
	begun bool
}

func (w *quicWriter) WriteHeader(status int) {
	h := w.Header()
	if hasListToken([]byte(h.Get("Connection")), "close") && status >= 200 {
		w.q.drain()
	}
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade"} {
		delete(h, name)
	}
	w.begun = w.begun || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

func (w *quicWriter) Write(p []byte) (int, error) {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

func (w *quicWriter) FlushError() error {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController find the deadlines.
func (w *quicWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// seldomBody names the methods whose requests end with their head, which only
// the end of the stream tells.
func seldomBody(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete, http.MethodTrace:
		return true
	}
	return false
}

// settleBody waits for the first byte of a body or its end, no longer than the
// read deadline.
func settleBody(r *http.Request) {
	first := make([]byte, 1)
	switch _, err := io.ReadFull(r.Body, first); err {
	case io.EOF:
		r.Body, r.ContentLength = http.NoBody, 0
	case nil:
		r.Body = bodyWithFirst{io.MultiReader(bytes.NewReader(first), r.Body), r.Body}
	default:
		r.Body = bodyWithFirst{brokenBody{err}, r.Body}
	}
}

type bodyWithFirst struct {
	io.Reader
	io.Closer
}

type brokenBody struct{ err error }

func (b brokenBody) Read([]byte) (int, error) { return 0, b.err }

// peerOf is where a request of an HTTP/3 connection came from: the client may
// have moved to another address since it connected (RFC 9000 §9).
func peerOf(r *http.Request, info *ConnInfo) netip.AddrPort {
	if info.quic != nil {
		if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
		}
	}
	return info.Direct
}
