package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
)

// reloads is the test of changes under load.
type reloads struct {
	program      string
	reloads, few int
	sizes        []int
	grpc, rate   int
	limit, pause time.Duration
}

// point is what one size of the test measured.
type point struct {
	streams int
	before  usage // all open, before the first change
	third   usage // after a third of the changes: the warm-up is over
	after   usage // in the end
}

func (r *reloads) run(ctx context.Context) error {
	var points []point
	for i, size := range r.sizes {
		n := r.few
		if i == len(r.sizes)-1 {
			n = r.reloads
		}
		p, err := r.size(ctx, size, n)
		if err != nil {
			return err
		}
		points = append(points, p)
	}
	if len(points) > 1 {
		fmt.Println("\nmemory over open streams (WebSockets over TLS, and gRPC), after the changes:")
		for i, p := range points {
			fmt.Printf("  %6d streams  heap %s, resident %s", p.streams, mib(p.after.Heap), mib(p.after.RSS))
			if i > 0 {
				q := points[i-1]
				d := float64(p.streams - q.streams)
				fmt.Printf("  (%.1f KiB heap, %.1f KiB resident more for each)", (p.after.Heap-q.after.Heap)/d/1024, (p.after.RSS-q.after.RSS)/d/1024)
			}
			fmt.Println()
		}
	}
	return nil
}

// size runs one proxy with n WebSockets and the gRPC streams through a number
// of changes.
func (r *reloads) size(ctx context.Context, n, changes int) (p point, err error) {
	s, err := newStage(ctx)
	if err != nil {
		return p, err
	}
	defer s.close()
	if err := s.start(r.program); err != nil {
		return p, err
	}
	empty, err := s.settled(3, 200*time.Millisecond)
	if err != nil {
		return p, err
	}
	w := newWatch()
	began := time.Now()
	open, err := r.open(ctx, s, w, n, "app.localhost")
	if err != nil {
		return p, err
	}
	defer open.close()
	rpc, err := r.openRPC(ctx, s, w)
	if err != nil {
		return p, err
	}
	defer rpc.close()
	fmt.Printf("%d WebSockets and %d gRPC streams are open after %s\n", n, r.grpc, time.Since(began).Round(time.Millisecond))
	p.streams = n + r.grpc
	settle, every := 6, 500*time.Millisecond
	if n < 100 {
		settle, every = 2, 50*time.Millisecond
	}
	if p.before, err = s.settled(settle, every); err != nil {
		return p, err
	}
	load, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	r.load(load, s, w, &all)
	all.Go(func() { open.talk(load, w) })
	all.Go(func() { rpc.talk(load, w) })

	var took []time.Duration
	var cut []time.Duration
	var c settings
	cpu := p.before.CPU
	start := time.Now()
	report := max(changes/10, 1)
	victims := max(changes/20, 10) // every so many changes some streams are denied
	for i := 1; i <= changes; i++ {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		switch i % 4 {
		case 0:
			c.routes = (c.routes + 3) % 50
		case 1:
			c.policy++
		case 2:
			if err := s.certificate(i); err != nil {
				return p, err
			}
		case 3:
			if c.header++; i%8 == 3 {
				c.idle = (c.idle + 1) % 100
			}
		}
		if i%victims == 0 || i == changes {
			d, err := r.deny(ctx, s, &c)
			if err != nil {
				return p, err
			}
			cut = append(cut, d)
		}
		if err := s.configure(c); err != nil {
			return p, err
		}
		d, err := s.reload()
		if err != nil {
			return p, err
		}
		took = append(took, d)
		time.Sleep(r.pause)
		if err := w.scratched(); err != nil {
			return p, fmt.Errorf("after change %d: %w\n%s", i, err, s.log())
		}
		if i == changes/3 {
			if p.third, err = s.usage(); err != nil {
				return p, err
			}
		}
		if i%report == 0 && changes >= 100 {
			u, err := s.usage()
			if err != nil {
				return p, err
			}
			fmt.Printf("  %5d changes, %d requests, heap %s, resident %s, %d goroutines, %d files, the last change took %s\n",
				i, w.requests.Load(), mib(u.Heap), mib(u.RSS), u.Goroutines, u.Files, d.Round(100*time.Microsecond))
		}
	}
	elapsed := time.Since(start)
	if g, err := s.generation(); err != nil || g <= changes {
		return p, fmt.Errorf("%d changes made generation %d only (%v)", changes, g, err)
	}
	// Everything that was open still works, each of them.
	if err := open.all(ctx); err != nil {
		return p, err
	}
	if err := rpc.all(ctx); err != nil {
		return p, err
	}
	busy, err := s.usage()
	if err != nil {
		return p, err
	}
	stop()
	all.Wait()
	if err := w.scratched(); err != nil {
		return p, fmt.Errorf("%w\n%s", err, s.log())
	}
	if p.after, err = s.settled(settle, every); err != nil {
		return p, err
	}
	slices.Sort(took)
	slices.Sort(cut)
	fmt.Printf("%d changes under %d WebSockets, %d gRPC streams and %d requests in %s: no stream closed, no request failed\n",
		changes, n, r.grpc, w.requests.Load(), elapsed.Round(time.Second/10))
	fmt.Printf("  a change took %s (median), %s (99 of 100), %s (longest); CPU of the proxy %s, %s for each change\n",
		at(took, 0.5), at(took, 0.99), at(took, 1), (busy.CPU - cpu).Round(10*time.Millisecond), ((busy.CPU - cpu) / time.Duration(changes)).Round(100*time.Microsecond))
	fmt.Printf("  streams that a change denied were closed after %s (median), %s (longest)\n", at(cut, 0.5), at(cut, 1))
	fmt.Printf("  empty: heap %s, resident %s; open: heap %s, resident %s; after the changes: heap %s, resident %s\n",
		mib(empty.Heap), mib(empty.RSS), mib(p.before.Heap), mib(p.before.RSS), mib(p.after.Heap), mib(p.after.RSS))
	// What changes leave behind must not grow with their number.
	if changes >= 100 && p.after.Heap > 1.15*p.third.Heap+16<<20 {
		return p, fmt.Errorf("the heap rises with the changes: %s after a third of them, %s after all", mib(p.third.Heap), mib(p.after.Heap))
	}
	return p, nil
}

func at(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[min(int(q*float64(len(d))), len(d)-1)].Round(100 * time.Microsecond)
}

// deny opens a few streams, denies them, and waits until all are closed.
func (r *reloads) deny(ctx context.Context, s *stage, c *settings) (time.Duration, error) {
	w := newWatch()
	few, err := r.open(ctx, s, w, 8, "victim.localhost")
	if err != nil {
		return 0, err
	}
	defer few.close()
	c.denied = true
	defer func() { c.denied = false }()
	if err := s.configure(*c); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := s.reload(); err != nil {
		return 0, err
	}
	for w.closed.Load() < 8 {
		if time.Since(began) > r.limit {
			return 0, fmt.Errorf("only %d of 8 streams were closed %s after they were denied", w.closed.Load(), r.limit)
		}
		time.Sleep(time.Millisecond)
	}
	return time.Since(began), nil
}

// watch collects what was scratched.
type watch struct {
	requests, closed atomic.Int64
	leaving          atomic.Bool

	mu    sync.Mutex
	first error
	count int
}

func newWatch() *watch { return &watch{} }

func (w *watch) failed(err error) {
	if w.leaving.Load() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count++; w.first == nil {
		w.first = err
	}
}

func (w *watch) scratched() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.first == nil {
		return nil
	}
	return fmt.Errorf("%d scratches; the first: %w", w.count, w.first)
}

// sockets are open WebSockets.
type sockets struct {
	list []*socket
	w    *watch
}

type socket struct {
	conn  *tls.Conn
	said  atomic.Int64
	heard atomic.Int64
}

func (r *reloads) open(ctx context.Context, s *stage, w *watch, n int, host string) (*sockets, error) {
	out := &sockets{list: make([]*socket, n), w: w}
	errs := make(chan error, 1)
	var all sync.WaitGroup
	slots := make(chan struct{}, 32)
	sessions := tls.NewLRUClientSessionCache(8)
	for i := range n {
		if len(errs) > 0 {
			break
		}
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			raw, err := s.dial(ctx)
			if err == nil {
				config := s.tls("http/1.1")
				config.ServerName, config.ClientSessionCache = host, sessions
				conn := tls.Client(raw, config)
				if err = upgrade(conn, host+":"+s.port, "/ws"); err == nil {
					x := &socket{conn: conn}
					out.list[i] = x
					go x.read(w)
					return
				}
				raw.Close()
			}
			select {
			case errs <- fmt.Errorf("WebSocket %d: %w", i, err):
			default:
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
		return out, nil
	}
}

func (x *socket) read(w *watch) {
	var b [2 + 4 + 125]byte
	for {
		op, text, err := readFrame(x.conn, &b)
		if err == nil && op == 8 {
			err = fmt.Errorf("closed by the proxy: %x %q", text[:min(2, len(text))], text[min(2, len(text)):])
		}
		if err == nil && string(text) != fmt.Sprint(x.heard.Load()+1) {
			err = fmt.Errorf("heard %q as message %d", text, x.heard.Load()+1)
		}
		if err != nil {
			w.closed.Add(1)
			w.failed(fmt.Errorf("a WebSocket ended: %w", err))
			return
		}
		x.heard.Add(1)
	}
}

func (x *socket) say() error {
	return writeFrame(x.conn, 1, []byte(fmt.Sprint(x.said.Add(1))), true)
}

// talk says something on each socket every ten seconds or so.
func (s *sockets) talk(ctx context.Context, w *watch) {
	pace := time.NewTicker(10 * time.Second / time.Duration(max(len(s.list), 20)))
	defer pace.Stop()
	for i := 0; len(s.list) > 0; i++ {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		if err := s.list[i%len(s.list)].say(); err != nil {
			w.failed(fmt.Errorf("writing to a WebSocket: %w", err))
			return
		}
	}
}

// all checks that each socket answers.
func (s *sockets) all(ctx context.Context) error {
	for _, x := range s.list {
		if err := x.say(); err != nil {
			return fmt.Errorf("writing to a WebSocket: %w", err)
		}
	}
	end := time.Now().Add(30 * time.Second)
	for i, x := range s.list {
		for x.heard.Load() < x.said.Load() {
			if time.Now().After(end) {
				return fmt.Errorf("WebSocket %d does not answer", i)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return ctx.Err()
}

func (s *sockets) close() {
	s.w.leaving.Store(true)
	for _, x := range s.list {
		if x != nil {
			x.conn.NetConn().Close()
		}
	}
}

// calls are open gRPC streams.
type calls struct {
	conns []*grpc.ClientConn
	list  []grpc_testing.TestService_FullDuplexCallClient
	w     *watch
	mu    sync.Mutex // one at a time on each stream
	stop  context.CancelFunc
}

func (r *reloads) openRPC(ctx context.Context, s *stage, w *watch) (*calls, error) {
	c := &calls{w: w}
	ctx, c.stop = context.WithCancel(ctx)
	const perConn = 50 // below the streams that a connection may have
	for i := range r.grpc {
		if i%perConn == 0 {
			config := s.tls("h2")
			conn, err := grpc.NewClient("passthrough:///grpc.localhost:"+s.port, grpc.WithTransportCredentials(credentials.NewTLS(config)),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.dial(ctx) }))
			if err != nil {
				return nil, err
			}
			c.conns = append(c.conns, conn)
		}
		st, err := grpc_testing.NewTestServiceClient(c.conns[len(c.conns)-1]).FullDuplexCall(ctx)
		if err == nil {
			err = ping(st)
		}
		if err != nil {
			return nil, fmt.Errorf("gRPC stream %d: %w", i, err)
		}
		c.list = append(c.list, st)
	}
	return c, nil
}

func ping(st grpc_testing.TestService_FullDuplexCallClient) error {
	if err := st.Send(&grpc_testing.StreamingOutputCallRequest{ResponseParameters: []*grpc_testing.ResponseParameters{{Size: 100}}}); err != nil {
		if errors.Is(err, io.EOF) {
			_, err = st.Recv() // which knows the reason
		}
		return err
	}
	m, err := st.Recv()
	if err == nil && len(m.GetPayload().GetBody()) != 100 {
		err = fmt.Errorf("%d bytes of 100", len(m.GetPayload().GetBody()))
	}
	return err
}

func (c *calls) talk(ctx context.Context, w *watch) {
	pace := time.NewTicker(10 * time.Second / time.Duration(max(len(c.list), 20)))
	defer pace.Stop()
	for i := 0; len(c.list) > 0; i++ {
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
		c.mu.Lock()
		err := ping(c.list[i%len(c.list)])
		c.mu.Unlock()
		if err != nil {
			w.failed(fmt.Errorf("a gRPC stream: %w", err))
			return
		}
	}
}

func (c *calls) all(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, st := range c.list {
		if err := ping(st); err != nil {
			return fmt.Errorf("gRPC stream %d: %w", i, err)
		}
	}
	return ctx.Err()
}

func (c *calls) close() {
	c.w.leaving.Store(true)
	c.stop()
	for _, conn := range c.conns {
		conn.Close()
	}
}

// load sends requests at a steady rate: over HTTP/2, over HTTP/1.1 connections
// that are kept, and over one connection each.
func (r *reloads) load(ctx context.Context, s *stage, w *watch, all *sync.WaitGroup) {
	const workers = 6
	for i := range workers {
		protocol := "http/1.1"
		if i%3 == 0 {
			protocol = "h2"
		}
		tr := s.transport(protocol)
		tr.DisableKeepAlives = i%3 == 2
		client := &http.Client{Transport: tr, Timeout: 30 * time.Second}
		all.Go(func() {
			defer tr.CloseIdleConnections()
			pace := time.NewTicker(time.Second * workers / time.Duration(max(r.rate, 1)))
			defer pace.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
				method, body := "GET", io.Reader(nil)
				if n%4 == 0 {
					method, body = "POST", strings.NewReader("a body")
				}
				req, err := http.NewRequest(method, "https://app.localhost:"+s.port+"/", body)
				if err != nil {
					w.failed(err)
					return
				}
				res, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if err == nil && res.StatusCode != 200 {
						err = fmt.Errorf("status %s (%s)", res.Status, res.Header.Get("X-Request-Id"))
					}
				}
				w.requests.Add(1)
				if err != nil {
					w.failed(fmt.Errorf("request %d, %s over %s: %w", n, method, protocol, err))
				}
			}
		})
	}
}
