package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"postern/internal/certs"
	"postern/internal/exchange"
	_ "postern/internal/proxy/xconnect" // WebSockets over HTTP/2
)

// ServeOptions say how a Server takes connections. Handler is required.
type ServeOptions struct {
	// TLS makes the listener speak TLS. Its NextProtos decide on HTTP/2. Nil
	// is clear text.
	TLS *tls.Config
	// Handler gets every request that passed the guard.
	Handler http.Handler
	// NoHTTP1 and NoHTTP2 turn a version off (codec_type). In clear text,
	// HTTP/2 is spoken with prior knowledge only.
	NoHTTP1, NoHTTP2 bool
	// AltSvc is the Alt-Svc field of answers over TCP, which tells clients of
	// HTTP/3 (RFC 7838); "" is none.
	AltSvc string

	// HandshakeTimeout bounds the PROXY header and the TLS handshake; 10 s if 0.
	HandshakeTimeout time.Duration
	// ReadHeaderTimeout bounds a request head from its first byte; 10 s if 0.
	ReadHeaderTimeout time.Duration
	// ReadTimeout bounds the arrival of a whole request (timeout_read); 0 none.
	ReadTimeout time.Duration
	// IdleTimeout bounds a connection without requests (timeout_idle); 0 none.
	IdleTimeout time.Duration
	// MaxStreams is the number of HTTP/2 or HTTP/3 streams per connection; 100
	// if 0.
	MaxStreams int
	// MaxHandshakes is how many handshakes may compute at once; four per
	// processor if 0. Waiting for a slow peer takes no slot.
	MaxHandshakes int
	// DrainTimeout is how long Serve lets requests finish after its context
	// ended; 10 s if 0.
	DrainTimeout time.Duration

	// ProxyProtocol requires a PROXY header on each connection, from one of
	// TrustedProxies if any are listed (use_proxy_protocol).
	ProxyProtocol  bool
	TrustedProxies []netip.Prefix

	// OnRefused, if not nil, is told of each request that the guard refused.
	// The id it returns is sent as X-Request-Id.
	OnRefused func(info *ConnInfo, err *HeadError) (requestID string)
	// OnConnectionFailed, if not nil, is told of connections that ended
	// before their first request: handshake failures, missing PROXY headers.
	// serverName is the SNI, if it got that far.
	OnConnectionFailed func(info *ConnInfo, serverName string, err error)
	// Logger gets what net/http has to say; nil discards it.
	Logger *slog.Logger
}

// Server takes connections, does their handshakes and gives requests to a
// handler: HTTP/2 through net/http directly, HTTP/1.1 through the head guard.
type Server struct {
	o       ServeOptions
	tls     *tls.Config // as given, for HTTP/3
	http    *http.Server
	http3   *http3.Server
	ready   *readyListener
	slots   chan struct{}
	tunnels tunnels

	mu        sync.Mutex
	conns     map[*acceptedConn]struct{}
	quic      map[*quic.Conn]*quicConn
	listeners map[net.Listener]struct{}
	closing   bool
	retiring  atomic.Bool
	empty     chan struct{} // closed when closing and the last connection is gone
	serving   sync.Once
	ctx       context.Context
	cancel    context.CancelFunc
}

// NewServer makes a server; it serves once Serve is called.
func NewServer(o ServeOptions) *Server {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&o.HandshakeTimeout, 10*time.Second)
	def(&o.ReadHeaderTimeout, 10*time.Second)
	def(&o.DrainTimeout, 10*time.Second)
	if o.MaxStreams == 0 {
		o.MaxStreams = 100
	}
	if o.MaxHandshakes == 0 {
		o.MaxHandshakes = 4 * runtime.GOMAXPROCS(0)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		o:         o,
		ready:     &readyListener{conns: make(chan net.Conn), done: make(chan struct{})},
		slots:     make(chan struct{}, o.MaxHandshakes),
		conns:     map[*acceptedConn]struct{}{},
		quic:      map[*quic.Conn]*quicConn{},
		tls:       o.TLS,
		listeners: map[net.Listener]struct{}{},
		empty:     make(chan struct{}),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if o.TLS != nil {
		s.o.TLS = o.TLS.Clone()
		inner := o.TLS.GetConfigForClient
		s.o.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if err := s.takeSlot(hello); err != nil {
				return nil, err
			}
			if inner != nil {
				return inner(hello)
			}
			return nil, nil
		}
	}
	s.http3 = s.newHTTP3()
	var protocols http.Protocols
	protocols.SetHTTP1(!o.NoHTTP1)
	protocols.SetHTTP2(!o.NoHTTP2)
	protocols.SetUnencryptedHTTP2(!o.NoHTTP2 && o.TLS == nil)
	s.http = &http.Server{
		Handler: http.HandlerFunc(s.handle),
		// A little later than the guard's own clock, which answers 408.
		ReadHeaderTimeout:            o.ReadHeaderTimeout + time.Second,
		ReadTimeout:                  o.ReadTimeout,
		IdleTimeout:                  o.IdleTimeout,
		MaxHeaderBytes:               MaxHeadBytes,
		Protocols:                    &protocols,
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: o.MaxStreams},
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connInfoKey{}, acceptedOf(c).info)
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateHijacked {
				a := acceptedOf(c)
				a.tunnel.Store(true)
				if g := a.guard.Load(); g != nil {
					g.raw.Store(true)
				}
			}
		},
	}
	if o.IdleTimeout == 0 {
		s.http.IdleTimeout = -1 // else net/http falls back to ReadTimeout
	}
	return s
}

// acceptedOf finds our connection below what net/http holds.
func acceptedOf(c net.Conn) *acceptedConn {
	if g, ok := c.(interface{ guarded() *guardConn }); ok {
		c = g.guarded().Conn
	}
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*acceptedConn)
}

// Serve serves the listener until ctx ends, then drains for DrainTimeout and
// closes what is left. It returns nil after that, or why accepting failed.
func Serve(ctx context.Context, ln net.Listener, o ServeOptions) error {
	s := NewServer(o)
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	err := s.Serve(ln)
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.DrainTimeout)
	defer cancel()
	s.Shutdown(drain)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// Serve accepts connections until ln or the server is closed. It may be called
// for several listeners. The error is never nil; it is http.ErrServerClosed
// after Shutdown or Close.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		ln.Close()
		return http.ErrServerClosed
	}
	s.listeners[ln] = struct{}{}
	s.mu.Unlock()
	s.serving.Do(func() {
		s.ready.addr = ln.Addr()
		go s.http.Serve(s.ready)
	})
	defer ln.Close()
	var pause time.Duration
	for {
		c, err := ln.Accept()
		if err != nil {
			s.mu.Lock()
			closing := s.closing
			delete(s.listeners, ln)
			s.mu.Unlock()
			if closing {
				return http.ErrServerClosed
			}
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			// Out of descriptors, most likely: others must close first.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.o.Logger.Warn("accepting connections failed; trying again", "error", err.Error(), "in", pause.String())
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
				return http.ErrServerClosed
			}
			s.mu.Lock()
			s.listeners[ln] = struct{}{}
			s.mu.Unlock()
			continue
		}
		pause = 0
		a := &acceptedConn{Conn: c, server: s, info: &ConnInfo{
			Direct:  addrPort(c.RemoteAddr()),
			Local:   addrPort(c.LocalAddr()),
			tunnels: &s.tunnels, altSvc: s.o.AltSvc,
		}}
		if !s.remember(a) {
			c.Close()
			return http.ErrServerClosed
		}
		go s.open(a)
	}
}

// open does what comes before the first request and hands the connection on.
// Nothing that a stranger's handshake sets off may end the process.
func (s *Server) open(a *acceptedConn) {
	defer func() {
		if p := recover(); p != nil {
			a.Close()
			s.o.Logger.Error("panic before the first request of a connection", "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
		}
	}()
	conn, serverName, err := s.handshake(a)
	if err != nil {
		a.Close()
		if s.o.OnConnectionFailed != nil && s.ctx.Err() == nil {
			s.o.OnConnectionFailed(a.info, serverName, err)
		}
		return
	}
	if !s.ready.offer(conn) {
		conn.Close()
	}
}

func (s *Server) handshake(a *acceptedConn) (net.Conn, string, error) {
	if s.o.ProxyProtocol {
		if err := a.readProxyHeader(s.o.TrustedProxies, s.o.HandshakeTimeout); err != nil {
			return nil, "", err
		}
	}
	if s.o.TLS == nil {
		g := s.newGuard(a, a)
		g.h2c = !s.o.NoHTTP2
		return g, "", nil
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.o.HandshakeTimeout)
	defer cancel()
	t := tls.Server(a, s.o.TLS)
	err := t.HandshakeContext(ctx)
	a.releaseSlot()
	state := t.ConnectionState()
	a.info.TLS = &state
	if err != nil {
		var notTLS tls.RecordHeaderError
		if errors.As(err, &notTLS) && notTLS.Conn != nil && looksLikeHTTP(notTLS.RecordHeader) {
			a.SetWriteDeadline(time.Now().Add(time.Second))
			writePlainError(a, http.StatusBadRequest, "this port speaks HTTPS, use https://", "")
		}
		return nil, state.ServerName, err
	}
	if state.NegotiatedProtocol == certs.ALPNChallenge {
		return nil, state.ServerName, errChallengeAnswered
	}
	if state.NegotiatedProtocol == "h2" {
		if s.o.NoHTTP2 {
			return nil, state.ServerName, errors.New("client speaks HTTP/2, which is off here")
		}
		return t, "", nil // net/http knows what to do with a *tls.Conn that chose h2
	}
	if s.o.NoHTTP1 {
		return nil, state.ServerName, errors.New("client speaks HTTP/1.1, which is off here")
	}
	return tlsGuardConn{s.newGuard(a, t)}, "", nil
}

func (s *Server) newGuard(a *acceptedConn, c net.Conn) *guardConn {
	g := &guardConn{Conn: c, info: a.info, headFor: s.o.ReadHeaderTimeout, refused: s.o.OnRefused}
	g.fresh.Store(true)
	a.guard.Store(g)
	return g
}

// errChallengeAnswered ends the connection of an ACME server: it has seen the
// certificate that it came for, and was asked for none.
var errChallengeAnswered = errors.New("a TLS-ALPN-01 challenge was answered")

func looksLikeHTTP(h [5]byte) bool {
	switch string(h[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH", "CONNE", "TRACE":
		return true
	}
	return false
}

// takeSlot waits until this handshake may compute. A slot is held from the
// complete ClientHello to our first flight, so that slow peers hold none.
func (s *Server) takeSlot(hello *tls.ClientHelloInfo) error {
	a := hello.Conn.(*acceptedConn)
	select {
	case s.slots <- struct{}{}:
		a.slot.Store(true)
		return nil
	case <-hello.Context().Done():
		return errors.New("too many handshakes at once; this one waited too long")
	}
}

// handle checks what the guard checks for HTTP/1.1 on the other versions and
// calls the handler.
func (s *Server) handle(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 {
		if r.Method == http.MethodConnect || r.Header.Get("Upgrade") != "" {
			// If the handler does not take the connection over, nobody
			// knows what the client sends next: the guard ends it.
			w.Header().Set("Connection", "close")
		}
	} else if bad := checkFields(r); bad != nil {
		id := ""
		if s.o.OnRefused != nil {
			id = s.o.OnRefused(ConnInfoFrom(r.Context()), bad)
		}
		if id != "" {
			w.Header().Set("X-Request-Id", id)
		}
		w.Header().Set("Cache-Control", "no-store")
		http.Error(w, bad.Error(), bad.Status)
		return
	}
	if s.retiring.Load() {
		w.Header().Set("Connection", "close") // GOAWAY in HTTP/2
	}
	s.o.Handler.ServeHTTP(w, r)
}

// checkFields refuses what the HTTP/2 of net/http and the HTTP/3 of quic-go
// let through: too many fields, Host beside a different :authority, several
// lengths, a :protocol on what is no CONNECT.
func checkFields(r *http.Request) *HeadError {
	n, size := 0, len(r.Method)+len(r.RequestURI)+len(r.Host)
	for name, values := range r.Header {
		n += len(values)
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	switch {
	case n > MaxHeadFields:
		return errHeadFields
	case size > MaxHeadBytes:
		return errHeadBytes
	case !exchange.IsToken(r.Method):
		return errHeadMethod
	case r.Header.Get(":protocol") != "" && r.Method != http.MethodConnect:
		return errHeadProtocol
	case len(r.Header["Content-Length"]) > 1:
		return errHeadLengths
	case len(r.Header["Content-Length"]) == 1 && strings.Trim(r.Header["Content-Length"][0], "0123456789") != "":
		return errHeadLength // net/http would take it for 0
	case len(r.Header["Host"]) > 1:
		return errHeadHosts
	case r.Host == "":
		return errHeadNoHost
	case !validAuthority([]byte(r.Host)):
		return errHeadHost
	}
	if h := r.Header["Host"]; len(h) == 1 {
		if !equalFoldBytes([]byte(h[0]), []byte(r.Host)) {
			return errHeadHostMismatch
		}
		delete(r.Header, "Host")
	}
	return nil
}

func (s *Server) remember(a *acceptedConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return false
	}
	s.conns[a] = struct{}{}
	return true
}

func (s *Server) forget(a *acceptedConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, a)
	s.checkEmptyLocked()
}

func (s *Server) checkEmptyLocked() {
	if s.closing && len(s.conns) == 0 {
		select {
		case <-s.empty:
		default:
			close(s.empty)
		}
	}
}

// Connections counts open connections, tunnels included.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns) + len(s.quic)
}

// Shutdown drains: listeners close, idle HTTP/1.1 connections too, HTTP/2 and
// HTTP/3 connections get GOAWAY, and requests and tunnels may finish until ctx ends.
// Then the rest is closed and ctx's error returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for ln := range s.listeners {
		ln.Close()
	}
	var unused []*acceptedConn
	for a := range s.conns {
		// Browsers open connections ahead: nobody misses these.
		if g := a.guard.Load(); g != nil && g.fresh.Load() {
			unused = append(unused, a)
		}
	}
	var overUDP []*quicConn
	for _, q := range s.quic {
		overUDP = append(overUDP, q)
	}
	s.checkEmptyLocked()
	s.mu.Unlock()
	for _, a := range unused {
		a.Close()
	}
	defer s.Close()
	drained := make(chan error, 1)
	go func() { drained <- s.http3.Shutdown(ctx) }()
	for _, q := range overUDP {
		q.drain()
	}
	if err := s.http.Shutdown(ctx); err != nil {
		return err
	}
	select {
	case err := <-drained:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-s.empty: // handshakes and tunnels, which net/http does not count
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close closes everything at once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closing = true
	for ln := range s.listeners {
		ln.Close()
	}
	open := make([]*acceptedConn, 0, len(s.conns))
	for a := range s.conns {
		open = append(open, a)
	}
	overUDP := make([]*quicConn, 0, len(s.quic))
	for _, q := range s.quic {
		overUDP = append(overUDP, q)
	}
	s.mu.Unlock()
	s.cancel()
	err := s.http.Close()
	for _, q := range overUDP {
		q.conn.CloseWithError(h3NoError, "")
	}
	go s.http3.Close() // waits for its handlers
	s.ready.Close()
	for _, a := range open {
		a.Close()
	}
	return err
}
