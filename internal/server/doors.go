package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/proxy"
)

// doors are all listeners of a server. A socket stays bound over changes; what
// serves its connections is exchanged when settings of the listener change,
// and the old one drains.
type doors struct {
	mu      sync.Mutex
	main    *door
	plain   *door // http_redirect_addr
	udp     udpDoors
	others  []*innerDoor
	opened  bool // others and control were
	names   map[string]string
	control *control
	failed  chan error
	given   given // sockets that were open before this process
	// hold, if not nil, keeps new doors from accepting until it is closed: an
	// heir that may still fail takes no connection that would end with it.
	hold chan struct{}
}

// door is one bound address and the proxy.Server that takes its connections.
type door struct {
	name     string
	addr     string
	ln       net.Listener
	settings string // what the current server was made from
	current  atomic.Pointer[feed]
	server   *proxy.Server // changed under doors.mu
	beat     atomic.Int64  // when accept last went round, in Unix nanoseconds
	accepted chan struct{} // closed when accept has ended
	hold     <-chan struct{}
}

// feed is a listener whose connections come from a door.
type feed struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
	// served is closed when the server knows all connections that it took.
	served chan struct{}
}

func (h *feed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *feed) Close() error   { h.once.Do(func() { close(h.done) }); return nil }
func (h *feed) Addr() net.Addr { return h.addr }

// listen gives the socket that came under this name, or opens one.
func (d *doors) listen(name, key, addr string) (net.Listener, error) {
	if ln := d.given.take(name, addr); ln != nil {
		return ln, nil
	}
	return bind(key, addr)
}

// open lets doors that were held accept.
func (d *doors) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hold != nil {
		close(d.hold)
		d.hold = nil
	}
}

// bind opens an address.
func bind(key, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err == nil {
		return ln, nil
	}
	hint := "choose another"
	switch {
	case strings.Contains(err.Error(), "address already in use"):
		hint = "stop the program that listens there, or choose another address"
	case strings.Contains(err.Error(), "permission denied"):
		hint = "ports below 1024 need a privilege: run with CAP_NET_BIND_SERVICE, or choose another port"
	case strings.Contains(err.Error(), "cannot assign requested address"):
		hint = "this machine has no such address; choose one that it has"
	}
	return nil, fmt.Errorf("%s %s cannot be listened on: %w; %s", key, addr, err, hint)
}

// prepare binds what is new and gives a function that lets the new settings
// serve. Nothing changes if it fails.
func (d *doors) prepare(s *Server, g *generation) (commit func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed == nil {
		d.failed = make(chan error, 8)
		d.names = map[string]string{}
	}
	var steps []func()
	undo := func() {}
	bound := map[string]net.Addr{}
	plan := func(at **door, name, key, addr, settings string, options func() proxy.ServeOptions) error {
		old := *at
		if s.successor.Load() != nil {
			return nil // another process listens now
		}
		if addr == "" {
			if old != nil {
				steps = append(steps, func() { *at = nil; delete(d.names, name); go old.retire() })
			}
			return nil
		}
		if old != nil && old.addr == addr {
			bound[name] = old.ln.Addr()
			if old.settings != settings {
				steps = append(steps, func() { old.exchange(settings, proxy.NewServer(options())) })
			}
			return nil
		}
		ln, err := d.listen(name, key, addr)
		if err != nil {
			return err
		}
		bound[name] = ln.Addr()
		before := undo
		undo = func() { ln.Close(); before() }
		steps = append(steps, func() {
			n := &door{name: name, addr: addr, ln: ln, accepted: make(chan struct{}), hold: d.hold}
			n.exchange(settings, proxy.NewServer(options()))
			*at = n
			d.names[name] = ln.Addr().String()
			go n.accept(d.failed)
			if old != nil {
				go old.retire()
			}
		})
		return nil
	}
	p := &g.cfg.Proxy
	if err := plan(&d.main, "main", "address", p.Address, listenerSettings(p), func() proxy.ServeOptions {
		o := s.serveOptions(g)
		o.AltSvc = altSvc(p, bound["main"])
		return o
	}); err != nil {
		undo()
		return nil, err
	}
	if err := plan(&d.plain, "redirect", "http_redirect_addr", p.HTTPRedirectAddr, "", func() proxy.ServeOptions {
		return proxy.ServeOptions{Handler: s.plainHandler(), NoHTTP2: true, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, Logger: s.log}
	}); err != nil {
		undo()
		return nil, err
	}
	if s.successor.Load() == nil {
		commitUDP, undoUDP, err := d.udp.plan(p, bound["main"], s.heir != nil, s.log)
		if err != nil {
			undo()
			return nil, err
		}
		before := undo
		undo = func() { undoUDP(); before() }
		steps = append(steps, func() {
			if d.main != nil {
				commitUDP(d.main.server)
			}
		})
	}
	if d.opened && s.successor.Load() == nil {
		commitInner, undoInner, err := d.planInner(s, g.cfg)
		if err != nil {
			undoInner()
			undo()
			return nil, err
		}
		steps = append(steps, commitInner)
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, step := range steps {
			step()
		}
	}, nil
}

// listenerSettings are the settings that a proxy.Server is made from.
func listenerSettings(c *proxy.Config) string {
	return fmt.Sprint(c.InsecureServer, c.CodecType, c.TimeoutRead, c.TimeoutIdle, c.UseProxyProtocol, c.TrustedProxies, c.HTTP3AdvertisePort)
}

func (s *Server) serveOptions(g *generation) proxy.ServeOptions {
	c := &g.cfg.Proxy
	refused := proxy.LogRefused(s.handler())
	o := proxy.ServeOptions{
		Handler:       proxy.New(s.handler()),
		NoHTTP1:       c.CodecType == "http2",
		NoHTTP2:       c.CodecType == "http1",
		ReadTimeout:   c.TimeoutRead,
		IdleTimeout:   c.TimeoutIdle,
		ProxyProtocol: c.UseProxyProtocol, TrustedProxies: c.TrustedProxies,
		DrainTimeout: drainTimeout, Logger: s.log,
		OnRefused: func(info *proxy.ConnInfo, err *proxy.HeadError) string {
			id := refused(info, err)
			s.log.Info("request refused", "request-id", id, "ip", info.Direct.Addr().String(), "reason", err.Error())
			return id
		},
		OnConnectionFailed: func(info *proxy.ConnInfo, serverName string, err error) {
			s.connectionFailed(info, serverName, err)
		},
	}
	if !c.InsecureServer {
		o.TLS = &tls.Config{
			MinVersion: tls.VersionTLS12,
			NextProtos: nextProtos(c.CodecType),
			GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				g := s.current.Load()
				if g == nil {
					return nil, errors.New("not configured yet")
				}
				return g.tls(hello)
			},
			GetEncryptedClientHelloKeys: s.echKeys,
		}
	}
	return o
}

func nextProtos(codec string) []string {
	switch codec {
	case "http1":
		return []string{"http/1.1"}
	case "http2":
		return []string{"h2"}
	}
	return []string{"h2", "http/1.1"}
}

// exchange lets server take the door's connections; the one before drains.
func (d *door) exchange(settings string, server *proxy.Server) {
	old, oldServer := d.current.Load(), d.server
	h := &feed{addr: d.ln.Addr(), conns: make(chan net.Conn), done: make(chan struct{}), served: make(chan struct{})}
	go func() {
		defer close(h.served)
		server.Serve(h)
	}()
	d.settings, d.server = settings, server
	d.current.Store(h)
	if old != nil {
		go func() {
			old.Close()
			<-old.served
			oldServer.Retire(context.Background()) // streams that are allowed may stay
		}()
	}
}

// beatEvery is how often an accept loop shows that it goes round.
const beatEvery = time.Second

// accept hands connections to whoever serves now. It ends with the listener.
func (d *door) accept(failed chan<- error) {
	defer close(d.accepted)
	if d.hold != nil {
		<-d.hold // meanwhile the old process accepts at the same socket
	}
	timed, _ := d.ln.(interface{ SetDeadline(time.Time) error })
	for {
		now := time.Now()
		if before := d.beat.Swap(now.UnixNano()); timed != nil && before == 0 {
			timed.SetDeadline(now.Add(beatEvery))
		}
		c, err := d.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			timed.SetDeadline(time.Now().Add(beatEvery))
			continue
		}
		if err != nil {
			// Out of descriptors, most likely: others must close first.
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if !d.give(c) {
			c.Close()
		}
	}
}

// stopAccepting closes the address. What was accepted is with the server.
func (d *door) stopAccepting() {
	d.ln.Close()
	<-d.accepted
	h := d.current.Load()
	h.Close()
	<-h.served
}

// give hands one connection on. Whoever served may be exchanged meanwhile:
// then the next one gets it.
func (d *door) give(c net.Conn) bool {
	for {
		h := d.current.Load()
		select {
		case h.conns <- c:
			return true
		case <-h.done:
			if d.current.Load() == h {
				return false
			}
		}
	}
}

// retire closes the address and lets open requests finish.
func (d *door) retire() {
	d.stopAccepting()
	d.server.Retire(context.Background()) // streams that are allowed may stay
}

func (d *doors) wait(ctx context.Context, upgraded <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-upgraded:
		return nil
	case err := <-d.failed:
		return err
	}
}

// drain lets requests finish for at most limit, then closes everything.
func (d *doors) drain(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	d.mu.Lock()
	list := []*door{d.main, d.plain}
	d.udp.stop()
	d.mu.Unlock()
	var all sync.WaitGroup
	for _, x := range list {
		if x == nil {
			continue
		}
		x.ln.Close()
		x.server.GoAway() // WebSockets would wait for the end of the limit
		all.Add(1)
		go func() { defer all.Done(); x.server.Shutdown(ctx) }()
	}
	all.Wait()
	d.close()
}

// close ends everything at once.
func (d *doors) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range []*door{d.main, d.plain} {
		if x != nil {
			x.ln.Close()
			x.server.Close()
		}
	}
	d.udp.close()
	for _, o := range d.others {
		o.http.Close()
	}
	if d.control != nil {
		d.control.close()
	}
}

// retire ends listening here, because a successor accepts on the same sockets,
// and lets requests and streams finish until ctx ends. Then it closes
// everything.
func (d *doors) retire(ctx context.Context) {
	d.mu.Lock()
	list := []*door{d.main, d.plain}
	others, control := d.others, d.control
	udp := d.udp.now
	d.mu.Unlock()
	var all sync.WaitGroup
	all.Go(func() { udp.handOver(ctx) })
	for _, x := range list {
		if x != nil {
			all.Go(func() {
				x.stopAccepting()
				x.server.Retire(ctx)
			})
		}
	}
	inner, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for _, o := range others {
		all.Go(func() { o.http.Shutdown(inner) })
	}
	if control != nil {
		all.Go(func() { control.http.Shutdown(inner) })
	}
	all.Wait()
	d.close()
}

// live tells which accept loop has not gone round for so long, if any.
func (d *doors) live(limit time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, x := range []*door{d.main, d.plain} {
		if x == nil {
			continue
		}
		if still := time.Since(time.Unix(0, x.beat.Load())); still > limit {
			return fmt.Errorf("the listener %s has not accepted for %s", x.name, still.Round(time.Second))
		}
	}
	return nil
}

func (d *doors) addresses() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, x := range []*door{d.main, d.plain} {
		if x != nil {
			out = append(out, x.ln.Addr().String())
		}
	}
	return out
}

func (d *doors) listening() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make(map[string]string, len(d.names))
	for k, v := range d.names {
		out[k] = v
	}
	return out
}
