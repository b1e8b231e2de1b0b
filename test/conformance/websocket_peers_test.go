package conformance

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// step is one thing that an end of a WebSocket does. Both peers read it as
// JSON: ws of npm (test/tools/npm/websocket.mjs), and coder/websocket here.
type step struct {
	Op     string  `json:"op"`
	Kind   string  `json:"kind,omitempty"` // text (the default) or binary
	Size   int     `json:"size"`
	Text   *string `json:"text,omitempty"` // instead of size
	Each   int     `json:"each,omitempty"` // bytes a fragment
	Pings  bool    `json:"pings,omitempty"`
	Code   int     `json:"code,omitempty"`
	Reason string  `json:"reason,omitempty"`
	Count  int     `json:"count,omitempty"`
	For    string  `json:"for,omitempty"` // what is waited for
}

func (s step) content() []byte {
	if s.Text != nil {
		return []byte(*s.Text)
	}
	return []byte(strings.Repeat("0123456789abcdef", s.Size/16+1)[:s.Size])
}

func digest(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b))[:8] }

// question is what a client is told to do.
type question struct {
	URL       string   `json:"url"`
	Host      string   `json:"host"`
	Protocols []string `json:"protocols,omitempty"`
	Deflate   bool     `json:"deflate,omitempty"`
	Steps     []step   `json:"steps"`
}

// wsServer is a server of WebSockets that says messages back.
type wsServer struct {
	name, addr string
}

// seen waits until the connection has ended and tells what the server saw.
func (s *wsServer) seen(id string) ([]string, error) {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
		events, err := s.events(id)
		if err == nil && (len(events) == 0 || events[len(events)-1] != "end") {
			err = fmt.Errorf("%s still holds %s open: %q", s.name, id, shorten(events))
		}
		if err == nil || time.Now().After(deadline) {
			return events, err
		}
	}
}

func (s *wsServer) events(id string) (events []string, err error) {
	res, err := http.Get("http://" + s.addr + "/seen?id=" + url.QueryEscape(id))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return events, json.NewDecoder(res.Body).Decode(&events)
}

// wsClient does what a question tells and gives what it saw.
type wsClient struct {
	name string
	ask  func(question) ([]string, error)
}

// startWS starts ws of npm as server and as client.
func startWS(t *testing.T) (*wsServer, *wsClient) {
	const program = "../tools/npm/websocket.mjs"
	port := freePort(t)
	start(t, port, exec.Command("node", program, "serve", port))
	cmd := exec.Command("node", program, "ask")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run make deps", err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	answers := json.NewDecoder(bufio.NewReader(out))
	return &wsServer{"ws", "127.0.0.1:" + port}, &wsClient{"ws", func(q question) (seen []string, err error) {
		if err := json.NewEncoder(in).Encode(q); err != nil {
			return nil, err
		}
		return seen, answers.Decode(&seen)
	}}
}

// diary is what one end saw, in order.
type diary struct {
	mu     sync.Mutex
	events []string
	grown  chan struct{}
	left   atomic.Bool // we close; then what a concurrent read sees is chance
}

func newDiary() *diary { return &diary{grown: make(chan struct{})} }

func (d *diary) add(format string, a ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.events = append(d.events, fmt.Sprintf(format, a...))
	close(d.grown)
	d.grown = make(chan struct{})
}

func (d *diary) all() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.events...)
}

// wait waits until count events begin with prefix, or the end.
func (d *diary) wait(ctx context.Context, prefix string, count int) {
	for {
		d.mu.Lock()
		n, grown := 0, d.grown
		for _, e := range d.events {
			if strings.HasPrefix(e, prefix) {
				n++
			}
		}
		d.mu.Unlock()
		if n >= count {
			return
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return
		}
	}
}

// listen reads until the end and writes down what it reads.
func (d *diary) listen(ctx context.Context, c *websocket.Conn, echo bool) {
	c.SetReadLimit(8 << 20)
	for {
		kind, b, err := c.Read(ctx)
		var closed websocket.CloseError
		var network net.Error
		switch {
		case err != nil && d.left.Load():
			// The other side tells whether the close was whole.
		case err == nil:
			d.add("%s %d %s", map[websocket.MessageType]string{websocket.MessageText: "text", websocket.MessageBinary: "binary"}[kind], len(b), digest(b))
			if echo && c.Write(ctx, kind, b) != nil {
				d.add("gone")
				return
			}
			continue
		case errors.As(err, &closed):
			d.add("close %d %s", closed.Code, closed.Reason)
		case errors.Is(err, context.DeadlineExceeded):
			d.add("still open")
		case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), errors.As(err, &network):
			d.add("gone")
		default:
			d.add("error %v", err)
		}
		return
	}
}

// act does the steps.
func (d *diary) act(ctx context.Context, c *websocket.Conn, steps []step) {
	for _, s := range steps {
		kind := websocket.MessageText
		if s.Kind == "binary" {
			kind = websocket.MessageBinary
		}
		switch s.Op {
		case "send":
			_ = c.Write(ctx, kind, s.content())
		case "many":
			for i := range s.Count {
				_ = c.Write(ctx, kind, fmt.Appendf(nil, "message %d", i))
			}
		case "fragments":
			w, err := c.Writer(ctx, kind)
			if err != nil {
				return
			}
			for b := s.content(); len(b) > 0; b = b[min(s.Each, len(b)):] {
				_, _ = w.Write(b[:min(s.Each, len(b))])
				if s.Pings {
					_ = c.Ping(ctx)
				}
			}
			_ = w.Close()
		case "ping":
			_ = c.Ping(ctx)
		case "close":
			d.left.Store(true)
			_ = c.Close(websocket.StatusCode(s.Code), s.Reason)
		case "reset":
			_ = c.CloseNow()
		case "wait":
			d.wait(ctx, s.For, s.Count)
		}
	}
}

// startCoder starts coder/websocket as server and gives it as client.
func startCoder(t *testing.T) (*wsServer, *wsClient) {
	var mu sync.Mutex
	diaries := map[string]*diary{}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.URL.Query().Get("id")
		if r.URL.Path == "/seen" {
			mu.Lock()
			defer mu.Unlock()
			events := []string{}
			if d := diaries[id]; d != nil {
				events = d.all()
			}
			_ = json.NewEncoder(w).Encode(events)
			return
		}
		d := newDiary()
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, Subprotocols: []string{"second"},
			CompressionMode: websocket.CompressionContextTakeover, CompressionThreshold: 100,
			OnPingReceived: func(_ context.Context, b []byte) bool { d.add("ping %d %s", len(b), digest(b)); return true },
			OnPongReceived: func(_ context.Context, b []byte) { d.add("pong %d %s", len(b), digest(b)) }})
		if err != nil {
			return
		}
		defer c.CloseNow()
		d.add("asked %s %s", r.Header.Get("Sec-WebSocket-Protocol"), r.Header.Get("Sec-WebSocket-Extensions"))
		mu.Lock()
		diaries[id] = d
		mu.Unlock()
		var steps []step
		_ = json.Unmarshal([]byte(r.URL.Query().Get("steps")), &steps)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		acted := make(chan struct{})
		go func() { d.act(ctx, c, steps); close(acted) }()
		d.listen(ctx, c, true)
		cancel()
		<-acted
		d.add("end")
	})}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return &wsServer{"coder", ln.Addr().String()}, &wsClient{"coder", func(q question) ([]string, error) {
		d := newDiary()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		o := &websocket.DialOptions{Host: q.Host, Subprotocols: q.Protocols,
			OnPingReceived: func(_ context.Context, b []byte) bool { d.add("ping %d %s", len(b), digest(b)); return true },
			OnPongReceived: func(_ context.Context, b []byte) { d.add("pong %d %s", len(b), digest(b)) }}
		if q.Deflate {
			o.CompressionMode, o.CompressionThreshold = websocket.CompressionContextTakeover, 100
		}
		c, res, err := websocket.Dial(ctx, q.URL, o)
		if err != nil {
			return []string{"error " + err.Error()}, nil
		}
		defer c.CloseNow()
		d.add("answered %s %s", res.Header.Get("Sec-WebSocket-Protocol"), res.Header.Get("Sec-WebSocket-Extensions"))
		acted := make(chan struct{})
		go func() { d.act(ctx, c, q.Steps); close(acted) }()
		d.listen(ctx, c, false)
		cancel()
		<-acted
		return d.all(), nil
	}}
}

// shorten makes of many messages one line.
func shorten(events []string) []string {
	if len(events) < 40 {
		return events
	}
	return []string{fmt.Sprintf("%d events %s", len(events), digest([]byte(strings.Join(events, "\n")))), events[0], events[len(events)-1]}
}
