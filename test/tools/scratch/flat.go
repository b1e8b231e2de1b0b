package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// flatness is the test of what stays: memory, goroutines and open files over
// many requests and connections.
type flatness struct {
	program               string
	requests, connections int
	workers, reloads      int
}

func (t *flatness) run(ctx context.Context) error {
	s, err := newStage(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.start(t.program); err != nil {
		return err
	}
	w := newWatch()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var asked, opened atomic.Int64
	var all sync.WaitGroup
	for i := range t.workers {
		all.Go(func() { t.ask(ctx, s, w, i, &asked) })
	}
	for i := range 4 {
		all.Go(func() { t.open(ctx, s, w, i, &opened, &asked) })
	}

	// Looks are taken by progress, so that a slow machine has as many.
	const looks = 40
	var list []usage
	total := int64(t.requests + t.connections)
	began, told, changed := time.Now(), 0, 0
	var c settings
	for done := int64(0); done < total; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if err := w.scratched(); err != nil {
			return fmt.Errorf("%w\n%s", err, s.log())
		}
		done = min(asked.Load(), int64(t.requests)) + min(opened.Load(), int64(t.connections))
		if int64(changed)*total < int64(t.reloads)*done {
			changed++
			c.policy, c.routes, c.header = c.policy+1, (c.routes+3)%50, c.header+1
			if err := s.configure(c); err != nil {
				return err
			}
			if _, err := s.reload(); err != nil {
				return err
			}
		}
		for int64(len(list))*total < looks*done {
			u, err := s.usage()
			if err != nil {
				return err
			}
			list = append(list, u)
			if n := len(list) * 10 / looks; n > told && t.requests >= 100_000 {
				told = n
				fmt.Printf("  %8d requests, %6d connections, %3d changes after %s: heap %s, resident %s, %d goroutines, %d files\n",
					asked.Load(), opened.Load(), changed, time.Since(began).Round(time.Second), mib(u.Heap), mib(u.RSS), u.Goroutines, u.Files)
			}
		}
	}
	elapsed := time.Since(began)
	stop()
	all.Wait()
	if err := w.scratched(); err != nil {
		return err
	}
	// What is left when everybody has gone.
	var rest usage
	for end := time.Now().Add(20 * time.Second); ; {
		if rest, err = s.usage(); err != nil {
			return err
		}
		if rest.Goroutines < 150 && rest.Files < 60 || time.Now().After(end) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	fmt.Printf("%d requests and %d connections in %s (%.0f a second), %d changes: none failed; CPU of the proxy %s\n",
		asked.Load(), opened.Load(), elapsed.Round(time.Second/10), float64(asked.Load())/elapsed.Seconds(), changed, rest.CPU.Round(10*time.Millisecond))
	fmt.Printf("  in the end, without connections: heap %s, resident %s, %d goroutines, %d files\n", mib(rest.Heap), mib(rest.RSS), rest.Goroutines, rest.Files)
	if rest.Goroutines >= 150 || rest.Files >= 60 {
		return fmt.Errorf("%d goroutines and %d files stay after all connections have closed", rest.Goroutines, rest.Files)
	}
	return t.judge(list)
}

// judge compares the second quarter of the run with the last one: after the
// warm-up nothing may rise.
func (t *flatness) judge(list []usage) error {
	n := len(list)
	for _, x := range []struct {
		what  string
		of    func(usage) float64
		slack float64
		say   func(float64) string
	}{
		{"heap", func(u usage) float64 { return u.Heap }, 8 << 20, mib},
		{"resident memory", func(u usage) float64 { return u.RSS }, 16 << 20, mib},
		{"goroutines", func(u usage) float64 { return float64(u.Goroutines) }, 60, plain},
		{"open files", func(u usage) float64 { return float64(u.Files) }, 60, plain},
	} {
		a, b := median(list[n/4:n/2], x.of), median(list[3*n/4:], x.of)
		fmt.Printf("  %-16s %s in the second quarter, %s in the last (medians)\n", x.what+":", x.say(a), x.say(b))
		if b > 1.15*a+x.slack {
			return fmt.Errorf("%s rises from %s to %s", x.what, x.say(a), x.say(b))
		}
	}
	return nil
}

func plain(v float64) string { return fmt.Sprintf("%.0f", v) }

func median(list []usage, of func(usage) float64) float64 {
	v := make([]float64, len(list))
	for i, u := range list {
		v[i] = of(u)
	}
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	return v[len(v)/2]
}

// ask sends requests over kept connections: most over HTTP/2.
func (t *flatness) ask(ctx context.Context, s *stage, w *watch, i int, asked *atomic.Int64) {
	protocol := "h2"
	if i%4 == 3 {
		protocol = "http/1.1"
	}
	tr := s.transport(protocol)
	defer tr.CloseIdleConnections()
	url := "https://app.localhost:" + s.port + "/"
	for n := 0; ctx.Err() == nil; n++ {
		if asked.Load() >= int64(t.requests) {
			time.Sleep(10 * time.Millisecond) // the connections are not done
			continue
		}
		req, err := http.NewRequest("GET", url, nil)
		if err != nil {
			w.failed(err)
			return
		}
		res, err := tr.RoundTrip(req)
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if err == nil && res.StatusCode != 200 {
				err = fmt.Errorf("status %s", res.Status)
			}
		}
		if err != nil {
			w.failed(fmt.Errorf("over %s: %w", protocol, err))
		}
		asked.Add(1)
	}
}

// open makes connections of every kind and closes them: with a request, with a
// WebSocket, without a word, in the midst of a handshake, in the midst of a
// request, and left to the other side.
func (t *flatness) open(ctx context.Context, s *stage, w *watch, i int, opened, asked *atomic.Int64) {
	sessions := tls.NewLRUClientSessionCache(4)
	for n := i; ctx.Err() == nil; n++ {
		// In step with the requests, so that both last to the end.
		if o := opened.Load(); o >= int64(t.connections) || o*int64(t.requests) > (asked.Load()+1000)*int64(t.connections) {
			time.Sleep(time.Millisecond)
			continue
		}
		raw, err := s.dial(ctx)
		if err != nil {
			if ctx.Err() == nil {
				w.failed(err)
			}
			return
		}
		err = t.use(s, raw, sessions, n)
		raw.Close()
		opened.Add(1)
		if err != nil {
			w.failed(fmt.Errorf("connection of kind %d: %w", n%8, err))
		}
	}
}

func (t *flatness) use(s *stage, raw net.Conn, sessions tls.ClientSessionCache, n int) error {
	raw.SetDeadline(time.Now().Add(30 * time.Second))
	config := s.tls("http/1.1")
	config.ServerName = "app.localhost"
	if n%3 > 0 {
		config.ClientSessionCache = sessions
	}
	conn := tls.Client(raw, config)
	host := "app.localhost:" + s.port
	switch n % 8 {
	case 0: // without a word
		return nil
	case 1: // in the midst of a handshake
		_, err := raw.Write([]byte{22, 3, 1, 0, 200, 1, 0, 0, 196})
		return err
	case 2: // after the handshake
		return conn.Handshake()
	case 3: // in the midst of a head
		_, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nX-", host)
		return err
	case 4: // in the midst of a body
		_, err := fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\nhalf", host)
		return err
	case 5: // a WebSocket
		if err := upgrade(conn, host, "/ws"); err != nil {
			return err
		}
		if err := writeFrame(conn, 1, []byte("hello"), true); err != nil {
			return err
		}
		var b [2 + 4 + 125]byte
		_, text, err := readFrame(conn, &b)
		if err == nil && string(text) != "hello" {
			err = fmt.Errorf("heard %q", text)
		}
		return err
	default: // a request, and closed by the other side
		if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
			return err
		}
		b, err := io.ReadAll(conn)
		if err == nil && (len(b) < 12 || string(b[9:12]) != "200") {
			err = fmt.Errorf("answered %.40q", b)
		}
		return err
	}
}
