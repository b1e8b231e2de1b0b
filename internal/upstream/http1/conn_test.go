package http1

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"postern/internal/exchange"
)

// script is an upstream that says pieces, one per read.
type script struct {
	net.Conn
	pieces []string
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; s.pieces[0] == "" {
		s.pieces = s.pieces[1:]
	}
	return n, nil
}
func (s *script) Write(p []byte) (int, error) { return len(p), nil }
func (s *script) Close() error                { return nil }

type got struct {
	status   int
	fields   []exchange.Field
	body     string
	trailers []exchange.Field
	interim  []int
}

// ask runs one exchange.
func ask(c *Conn, e Expect) (g got, err error) {
	c.Begin()
	var a Answer
	for {
		if err := c.ReadHead(&a, e); err != nil {
			return g, err
		}
		if a.Status >= 200 || a.Status == 101 {
			break
		}
		g.interim = append(g.interim, a.Status)
	}
	g.status, g.fields = a.Status, append([]exchange.Field(nil), a.Fields...)
	if a.Status == 101 {
		b, err := io.ReadAll(c)
		g.body = string(b)
		return g, err
	}
	for {
		data, err := c.Next()
		g.body += string(data)
		if err == io.EOF {
			g.trailers = c.Trailers()
			return g, nil
		}
		if err != nil {
			return g, err
		}
		if len(data) == 0 {
			return g, errors.New("an empty piece")
		}
	}
}

func TestAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tc := range []struct {
		name, text string
		expect     Expect
		want       string
		reusable   bool
	}{
		{name: "length", text: ok + "content-LENGTH: 2\r\nX-a: 1\r\nX-a: 2\r\n\r\nhi", want: "200 [{X-a 1} {X-a 2}] hi []", reusable: true},
		{name: "empty", text: ok + "Content-Length: 0\r\n\r\n", want: "200 []  []", reusable: true},
		{name: "chunks", text: ok + "Transfer-Encoding: Chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\n\r\n", want: "200 [] abcd []", reusable: true},
		{name: "trailers", text: ok + "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\nu:\r\n\r\n", want: "200 [] a [{X-T 1} {u }]", reusable: true},
		{name: "until close", text: ok + "\r\nall of it", want: "200 [] all of it []"},
		{name: "HTTP/1.0", text: "HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", want: "200 [] x []"},
		{name: "HTTP/1.0 that stays", text: "HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 1\r\n\r\nx", want: "200 [] x []", reusable: true},
		{name: "close", text: ok + "Connection: x, CLOSE\r\nContent-Length: 1\r\n\r\nx", want: "200 [] x []"},
		{name: "head", text: ok + "Content-Length: 10\r\n\r\n", expect: Expect{Head: true}, want: "200 []  []", reusable: true},
		{name: "204", text: "HTTP/1.1 204 \r\n\r\n", want: "204 []  []", reusable: true},
		{name: "304", text: "HTTP/1.1 304\r\nContent-Length: 10\r\n\r\n", want: "304 []  []", reusable: true},
		{name: "interim", text: "HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Early\r\nLink: a\r\n\r\n" + ok + "Content-Length: 1\r\n\r\nx", want: "[100 103] 200 [] x []", reusable: true},
		{name: "named", text: ok + "X-Hop: 1\r\nConnection: x-hop, Keep-Alive\r\nKeep-Alive: 5\r\nServer: s\r\nContent-Length: 0\r\n\r\n", want: "200 [{Server s}]  []", reusable: true},
		{name: "upgrade", text: "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nbytes", expect: Expect{Upgrade: true}, want: "101 [] bytes []"},
	} {
		// However the bytes are cut, the answer is the same.
		for cut := 0; cut <= len(tc.text); cut++ {
			pieces := []string{tc.text[:cut], tc.text[cut:]}
			if cut == 0 || cut == len(tc.text) {
				pieces = strings.Split(tc.text, "")
			}
			c := NewConn(&script{pieces: pieces})
			g, err := ask(c, tc.expect)
			s := fmt.Sprintf("%d %v %s %v", g.status, g.fields, g.body, g.trailers)
			if g.interim != nil {
				s = fmt.Sprint(g.interim, " ") + s
			}
			if err != nil || s != tc.want {
				t.Fatalf("%s, cut at %d: %v\n got %s\nwant %s", tc.name, cut, err, s, tc.want)
			}
			if tc.want[:3] != "101" && c.Reusable() != tc.reusable {
				t.Fatalf("%s, cut at %d: reusable %v", tc.name, cut, c.Reusable())
			}
		}
	}
}

// TestMalformed: whatever is not in order fails, at the head if the head and
// what came with it show it, and the connection is not used again.
func TestMalformed(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, tc := range []struct {
		text   string
		atHead bool
	}{
		{ok + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true},
		{ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", true},
		{ok + "Content-Length: +2\r\n\r\nok", true},
		{ok + "Content-Length: 1234567890123456789\r\n\r\n", true},
		{ok + "Content-Length:\r\n\r\n", true},
		{ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", true},
		{ok + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true},
		{ok + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", true},
		{"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", true},
		{"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok", true},
		{ok + "Content-Length: 2\r\n\nok", true},
		{ok + "X: a\rb\r\n\r\n", true},
		{ok + "X: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok", true},
		{ok + "Content-Length : 2\r\n\r\nok", true},
		{ok + ": 2\r\n\r\n", true},
		{ok + "X: a\x00b\r\n\r\n", true},
		{ok + "X: a\x7fb\r\n\r\n", true},
		{"HTTP/1.1 OK\r\n\r\n", true},
		{"HTTP/1.1 099 X\r\n\r\n", true},
		{"HTTP/1.1 2000 X\r\n\r\n", true},
		{"HTTP/1.1  200 X\r\n\r\n", true},
		{"HTTP/1.2 200 X\r\n\r\n", true},
		{"HTTP/3.0 200 OK\r\n\r\n", true},
		{"SSH-2.0-OpenSSH\r\n", true},
		{ok + "Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", true},
		{ok + "Content-Length: 0\r\n\r\nx", true},
		{"HTTP/1.1 204 OK\r\n\r\nx", true},
		{ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\nx", true},
		{ok + "Transfer-Encoding: chunked\r\n\r\nZZ\r\nok\r\n0\r\n\r\n", true},
		{ok + "Transfer-Encoding: chunked\r\n\r\n2\nok\r\n0\r\n\r\n", true},
		{ok + "Transfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n", true},
		{"HTTP/1.1 101 X\r\nUpgrade: h2c\r\n\r\n", true},
		{"HTTP/1.1 100 X\r\nContent-Length: 2\r\n\r\nok", true},
		{strings.Repeat("HTTP/1.1 100 X\r\n\r\n", MaxInterim+1), true},
		{ok + strings.Repeat("X: 1\r\n", MaxHeadFields+1) + "\r\n", true},
		{ok + "X: " + strings.Repeat("y", MaxHeadBytes) + "\r\n\r\n", true},
		{ok + "Content-Length: 4\r\n\r\nok", false},
		{ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", false},
		{ok + "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n", false},
		{ok, false},
	} {
		c := NewConn(&script{pieces: []string{tc.text}})
		g, err := ask(c, Expect{})
		var bad *Malformed
		switch {
		case err == nil:
			t.Errorf("%.60q was taken for %+v", tc.text, g)
		case tc.atHead && (!errors.As(err, &bad) || g.status != 0):
			t.Errorf("%.60q: %v after status %d", tc.text, err, g.status)
		case !tc.atHead && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Errorf("%.60q: %v", tc.text, err)
		}
		if c.Reusable() {
			t.Errorf("%.60q: the connection counts as reusable", tc.text)
		}
	}
	c := NewConn(&script{})
	if _, err := ask(c, Expect{}); err != io.EOF {
		t.Errorf("a connection that ended before an answer: %v", err)
	}
}

// FuzzAnswer: what is taken, net/http takes too, and sees the same.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: 1\r\n\r\n",
		"HTTP/1.1 103 Early\r\n\r\nHTTP/1.0 404 \r\nA: b\r\n\r\nrest",
		"HTTP/1.1 204 No\r\nConnection: close\r\n\r\n",
	} {
		f.Add([]byte(s), byte(7), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, step byte, head bool) {
		var pieces []string
		for n := int(step) + 1; len(text) > 0; {
			k := min(n, len(text))
			pieces, text = append(pieces, string(text[:k])), text[k:]
		}
		all := strings.Join(pieces, "")
		c := NewConn(&script{pieces: pieces})
		g, err := ask(c, Expect{Head: head})
		if err != nil {
			return
		}
		method := "GET"
		if head {
			method = "HEAD"
		}
		r := bufio.NewReader(strings.NewReader(all))
		for range g.interim {
			if _, err := http.ReadResponse(r, &http.Request{Method: method}); err != nil {
				t.Fatalf("net/http refuses an interim answer: %v\n%q", err, all)
			}
		}
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http refuses: %v\n%q", err, all)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || string(b) != g.body || res.StatusCode != g.status {
			t.Fatalf("net/http: %d %q %v; here %d %q\n%q", res.StatusCode, b, err, g.status, g.body, all)
		}
		if c.Reusable() && res.Close {
			t.Fatalf("net/http would close after this\n%q", all)
		}
	})
}

// TestQuiet: neither a closed connection nor one with bytes on it gets another
// request, over TCP and over TLS.
func TestQuiet(t *testing.T) {
	cert := httptest.NewTLSServer(nil)
	defer cert.Close()
	for _, secure := range []bool{false, true} {
		for _, end := range []string{"stays", "speaks", "closes"} {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			act := make(chan bool)
			acted := make(chan net.Conn, 1)
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				if secure {
					c = tls.Server(c, &tls.Config{Certificates: cert.TLS.Certificates})
				}
				io.ReadFull(c, make([]byte, 4))
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
				<-act
				switch end {
				case "speaks":
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
				case "closes":
					c.Close()
				}
				acted <- c
			}()
			raw, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			if secure {
				raw = tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
			}
			c := NewConn(raw)
			defer c.Close()
			io.WriteString(c, "GET ")
			if g, err := ask(c, Expect{}); err != nil || g.body != "hi" {
				t.Fatal(g, err)
			}
			c.Rest()
			if !c.Quiet() {
				t.Errorf("secure %v: not quiet after an answer", secure)
			}
			act <- true
			defer (<-acted).Close()
			if end == "stays" {
				for range 2 { // looking takes nothing away
					if !c.Quiet() {
						t.Errorf("secure %v: not quiet", secure)
					}
				}
				continue
			}
			for deadline := time.Now().Add(10 * time.Second); c.Quiet(); {
				if time.Now().After(deadline) {
					t.Fatalf("secure %v: still quiet though the upstream %s", secure, end)
				}
			}
		}
	}
}

// repeat is an upstream with one answer for every request.
type repeat struct {
	net.Conn
	answer []byte
}

func (r *repeat) Read(p []byte) (int, error) { return copy(p, r.answer), nil }

// TestAllocations: an answer costs the copy of its head and nothing else.
func TestAllocations(t *testing.T) {
	answer := []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\r\n")
	answer = append(answer, bytes.Repeat([]byte("x"), 1024)...)
	c := NewConn(&repeat{answer: answer})
	var a Answer
	n := testing.AllocsPerRun(1000, func() {
		c.Begin()
		if err := c.ReadHead(&a, Expect{}); err != nil {
			t.Fatal(err)
		}
		for {
			if _, err := c.Next(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if !c.Reusable() {
			t.Fatal("not reusable")
		}
	})
	if n > 1 {
		t.Errorf("%v allocations per answer", n)
	}
}

func BenchmarkAnswer(b *testing.B) {
	answer := []byte("HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Sun, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\r\n")
	answer = append(answer, bytes.Repeat([]byte("x"), 1024)...)
	c := NewConn(&repeat{answer: answer})
	var a Answer
	b.ReportAllocs()
	for b.Loop() {
		c.Begin()
		c.ReadHead(&a, Expect{})
		for {
			if _, err := c.Next(); err != nil {
				break
			}
		}
	}
}
