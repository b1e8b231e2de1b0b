package conformance

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// wsCase is a conversation after RFC 6455: what the client does, and what the
// server does by itself besides saying messages back.
type wsCase struct {
	name           string
	client, server []step
	protocols      []string
	deflate        bool
	// only names a peer, where the other's programming interface has no such
	// thing: by its name, as client where the client has steps, else as server.
	only string
	// want must be among what the client saw directly, so that the table
	// compares something.
	want string
}

func wsCases() []wsCase {
	text := func(s string) *string { return &s }
	leave := step{Op: "close", Code: 1000, Reason: "done"}
	wait := func(what string, n int) step { return step{Op: "wait", For: what, Count: n} }
	var v []wsCase
	for _, kind := range []string{"text", "binary"} {
		for _, size := range []int{0, 1, 125, 126, 127, 65535, 65536, 1 << 20} {
			v = append(v, wsCase{name: fmt.Sprintf("%s of %d bytes", kind, size), want: fmt.Sprintf("%s %d ", kind, size),
				client: []step{{Op: "send", Kind: kind, Size: size}, wait(kind, 1), leave}})
		}
		v = append(v,
			wsCase{name: kind + " in fragments", want: kind + " 1000 ", client: []step{{Op: "fragments", Kind: kind, Size: 1000, Each: 100}, wait(kind, 1), leave}},
			wsCase{name: kind + " in fragments, pings between", want: kind + " 1000 ", client: []step{{Op: "fragments", Kind: kind, Size: 1000, Each: 250, Pings: true}, wait(kind, 1), leave}},
			wsCase{name: kind + " in fragments with pings, by the server", want: kind + " 100000 ", server: []step{{Op: "fragments", Kind: kind, Size: 100000, Each: 30000, Pings: true}, wait("pong", 4), leave}, client: []step{wait("close", 1)}},
			wsCase{name: kind + " compressed", deflate: true, want: kind + " 1048576 ", client: []step{{Op: "send", Kind: kind, Size: 1 << 20}, wait(kind, 1), leave}},
			wsCase{name: kind + " compressed in fragments", deflate: true, want: kind + " 100000 ", client: []step{{Op: "fragments", Kind: kind, Size: 100000, Each: 9000}, wait(kind, 1), leave}},
		)
	}
	v = append(v,
		wsCase{name: "characters of several bytes", want: "text 10 ", client: []step{{Op: "send", Text: text("κόσμε")}, wait("text", 1), leave}},
		wsCase{name: "a character in two fragments", want: "text 10 ", client: []step{{Op: "fragments", Text: text("κόσμε"), Each: 3}, wait("text", 1), leave}},
		wsCase{name: "10,000 messages in order", want: "text 12 ", client: []step{{Op: "many", Count: 10000}, wait("text", 10000), leave}},
		wsCase{name: "10,000 messages by the server", want: "text 12 ", server: []step{{Op: "many", Count: 10000}}, client: []step{wait("text", 10000), leave}},
		wsCase{name: "a ping", want: "pong ", client: []step{{Op: "ping", Size: 1}, wait("pong", 1), leave}},
		wsCase{name: "a ping of the server", want: "ping ", server: []step{{Op: "ping", Size: 1}, wait("pong", 1), leave}, client: []step{wait("close", 1)}},
		wsCase{name: "ten pings", only: "ws", want: "pong 10 ", client: []step{{Op: "ping", Size: 10}, {Op: "ping", Size: 9}, {Op: "ping", Size: 8}, {Op: "ping", Size: 7}, {Op: "ping", Size: 6}, wait("pong", 5), leave}},
		wsCase{name: "subprotocol, the second", protocols: []string{"first", "second"}, want: "answered second", client: []step{leave}},
		wsCase{name: "a reset by the client", client: []step{{Op: "send", Size: 5}, wait("text", 1), {Op: "reset"}}, want: "gone"},
		wsCase{name: "a reset by the server", server: []step{wait("text", 1), {Op: "reset"}}, client: []step{{Op: "send", Size: 5}, wait("gone", 1)}, want: "gone"},
	)
	for _, size := range []int{0, 125} {
		v = append(v,
			wsCase{name: fmt.Sprintf("a ping of %d bytes", size), only: "ws", want: fmt.Sprintf("pong %d ", size), client: []step{{Op: "ping", Size: size}, wait("pong", 1), leave}},
			wsCase{name: fmt.Sprintf("a pong of %d bytes that nobody asked for", size), only: "ws", want: "text 5 ", client: []step{{Op: "pong", Size: size}, {Op: "send", Size: 5}, wait("text", 1), leave}})
	}
	for _, code := range []int{1000, 1001, 1008, 1011, 3000, 4000, 4999} {
		for _, reason := range []string{"", "why: κόσμε", strings.Repeat("r", 123)} {
			name := fmt.Sprintf("%d with a reason of %d bytes", code, len(reason))
			end := step{Op: "close", Code: code, Reason: reason}
			want := fmt.Sprintf("close %d %s", code, reason)
			v = append(v,
				wsCase{name: "client closes " + name, client: []step{end}},
				wsCase{name: "server closes " + name, server: []step{wait("text", 1), end}, client: []step{{Op: "send", Size: 1}, wait("close", 1)}, want: want})
		}
	}
	return v
}

func wsProgram(t *testing.T, more string, servers ...*wsServer) *servertest.Program {
	var routes strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&routes, "  - {from: https://%s.localhost, to: http://%s, allow_public_unauthenticated_access: true, allow_websockets: true%s}\n", s.name, s.addr, more)
	}
	return servertest.Start(t, "codec_type: http3\nroutes:\n"+routes.String())
}

// Two clients and two servers that nobody here wrote see the same through the
// proxy, over each version of HTTP, as they see without it: messages, pings,
// what was negotiated, and how it ended.
func TestWebSocketConversations(t *testing.T) {
	nodeServer, nodeClient := startWS(t)
	goServer, goClient := startCoder(t)
	p := wsProgram(t, "", nodeServer, goServer)
	var slowest time.Duration
	cases, runs := 0, 0
	for _, s := range []*wsServer{nodeServer, goServer} {
		host := s.name + ".localhost"
		paths := ways(t, p, host, s.addr)
		for _, c := range []*wsClient{nodeClient, goClient} {
			for i, tc := range wsCases() {
				if tc.only != "" && tc.only != c.name {
					continue
				}
				cases++
				steps, err := json.Marshal(tc.server)
				if err != nil {
					t.Fatal(err)
				}
				var direct string
				for _, w := range paths {
					runs++
					id := fmt.Sprintf("%s-%d-%s", c.name, i, w.name)
					began := time.Now()
					saw, err := c.ask(question{URL: "ws://" + w.addr + "/?" + url.Values{"id": {id}, "steps": {string(steps)}}.Encode(), Host: host,
						Protocols: tc.protocols, Deflate: tc.deflate, Steps: tc.client})
					if err != nil {
						t.Fatalf("%s: %s, %s to %s: %v", tc.name, w.name, c.name, s.name, err)
					}
					was, err := s.seen(id)
					if err != nil {
						t.Fatalf("%s: %s, %s to %s saw %q: %v", tc.name, w.name, c.name, s.name, shorten(saw), err)
					}
					slowest = max(slowest, time.Since(began))
					got := fmt.Sprintf("client %q\nserver %q", shorten(saw), shorten(was))
					if w.name == "direct" {
						direct = got
						if !slices.ContainsFunc(saw, func(e string) bool { return strings.HasPrefix(e, tc.want) }) {
							t.Errorf("%s: without the proxy, %s to %s: no %q in\n%s", tc.name, c.name, s.name, tc.want, got)
						}
					} else if got != direct {
						t.Errorf("%s: %s, %s to %s:\n%s\nwithout the proxy:\n%s", tc.name, w.name, c.name, s.name, got, direct)
					}
				}
			}
		}
	}
	t.Logf("%d conversations, %d runs, the slowest took %v", cases, runs, slowest)
}

// frame is one of RFC 6455 §5.2. head is its first byte; a client masks.
func frame(head byte, masked bool, payload string) string {
	b := []byte{head}
	mask := byte(0)
	if masked {
		mask = 0x80
	}
	switch n := len(payload); {
	case n < 126:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|127), uint64(n))
	}
	if !masked {
		return string(append(b, payload...))
	}
	key := [4]byte{1, 2, 3, 4}
	b = append(b, key[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return string(b)
}

// readFrames reads until the end and tells what came, unmasked.
func readFrames(r *bufio.Reader) (seen []string) {
	for {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				return append(seen, "still open")
			}
			return append(seen, "end")
		}
		n := uint64(head[1] & 0x7f)
		switch n {
		case 126:
			var b [2]byte
			_, _ = io.ReadFull(r, b[:])
			n = uint64(binary.BigEndian.Uint16(b[:]))
		case 127:
			var b [8]byte
			_, _ = io.ReadFull(r, b[:])
			n = binary.BigEndian.Uint64(b[:])
		}
		var key [4]byte
		if head[1]&0x80 != 0 {
			_, _ = io.ReadFull(r, key[:])
		}
		b := make([]byte, min(n, 1<<20))
		if _, err := io.ReadFull(r, b); err != nil {
			return append(seen, "cut within a frame")
		}
		for i := range b {
			b[i] ^= key[i%4]
		}
		if head[0]&0xf == 8 && len(b) >= 2 {
			seen = append(seen, fmt.Sprintf("close %d %s", binary.BigEndian.Uint16(b), b[2:]))
		} else {
			seen = append(seen, fmt.Sprintf("%#x %d %s", head[0], len(b), digest(b)))
		}
	}
}

// wrongFrames are what RFC 6455 forbids, or is at its edge. A proxy has no
// business with any of it.
func wrongFrames(masked bool) []vector {
	f := func(head byte, payload string) string { return frame(head, masked, payload) }
	v := []vector{
		{"an odd close: no payload", f(0x88, "")},
		{"a close of one byte", f(0x88, "\x03")},
		{"a close of 126 bytes", f(0x88, "\x03\xe8"+strings.Repeat("r", 124))},
		{"a close reason that is no UTF-8", f(0x88, "\x03\xe8\xff\xfe")},
		{"a fragmented close", f(0x08, "\x03\xe8")},
		{"a fragmented ping", f(0x09, "x")},
		{"a ping of 126 bytes", f(0x89, strings.Repeat("p", 126))},
		{"RSV1 without an extension", f(0xc1, "hello")},
		{"RSV2", f(0xa1, "hello")},
		{"RSV3", f(0x91, "hello")},
		{"all RSV on a ping", f(0xf9, "hello")},
		{"continuation of nothing", f(0x80, "hello")},
		{"continuation of nothing, more to come", f(0x00, "hello")},
		{"a message within a message", f(0x01, "one") + f(0x81, "two")},
		{"text that is no UTF-8", f(0x81, "\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited")},
		{"text that ends within a character", f(0x81, "\xce")},
		{"text that is no UTF-8, in the second fragment", f(0x01, "ok") + f(0x80, "\xff")},
		{"the wrong masking", frame(0x81, !masked, "hello")},
		{"a length longer than needed", string([]byte{0x81, 126 | map[bool]byte{true: 0x80}[masked], 0, 1}) + map[bool]string{true: "\x00\x00\x00\x00", false: ""}[masked] + "x" + f(0x88, "\x03\xe8")},
		{"a length with the highest bit", "\x81" + map[bool]string{true: "\xff", false: "\x7f"}[masked] + strings.Repeat("\xff", 8)},
		{"data behind a close", f(0x88, "\x03\xe8") + f(0x81, "late")},
		{"a head in single bytes, then the end", f(0x81, "hello")[:1]},
	}
	for _, code := range []int{0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535} {
		v = append(v, vector{"close " + strconv.Itoa(code), f(0x88, string(binary.BigEndian.AppendUint16(nil, uint16(code))))})
	}
	for _, op := range []byte{3, 4, 5, 6, 7, 0xb, 0xc, 0xd, 0xe, 0xf} {
		v = append(v, vector{fmt.Sprintf("opcode %d", op), f(0x80|op, "x")})
	}
	return v
}

// Frames that break the rules arrive at the server as they were sent; what it
// says to them, and its close, come back.
func TestWebSocketWrongFramesReachTheServer(t *testing.T) {
	nodeServer, _ := startWS(t)
	goServer, _ := startCoder(t)
	p := wsProgram(t, "", nodeServer, goServer)
	told := 0
	for _, s := range []*wsServer{nodeServer, goServer} {
		paths := ways(t, p, s.name+".localhost", s.addr)
		for i, v := range wrongFrames(true) {
			var direct string
			for _, w := range paths {
				id := fmt.Sprintf("%d-%s", i, w.name)
				saw, err := sayFrames(w.addr, s.name+".localhost", "/?id="+id, v.bytes)
				if err != nil {
					t.Fatalf("%s, %s: %v", w.name, s.name, err)
				}
				was, err := s.seen(id)
				if err != nil {
					t.Fatalf("%s, %s: %v, the client saw %q", v.name, w.name, err, saw)
				}
				got := fmt.Sprintf("client %q\nserver %q", saw, was)
				if w.name == "direct" {
					direct = got
					if strings.Contains(direct, "error") {
						told++
					}
				} else if got != direct {
					t.Errorf("%s: %s to %s:\n%s\nwithout the proxy:\n%s", v.name, w.name, s.name, got, direct)
				}
			}
		}
	}
	t.Logf("%d wrong frames, two servers; they called %d of them errors", len(wrongFrames(true)), told)
	if told < 50 {
		t.Errorf("the servers by themselves found %d errors alone: these vectors prove little", told)
	}
}

// openFrames opens a WebSocket for bytes of our own.
func openFrames(addr, host, target string) (*net.TCPConn, *bufio.Reader, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	c := conn.(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", target, host)
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, nil)
	if err == nil && (res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
		err = fmt.Errorf("the handshake is answered %s %v", res.Status, res.Header)
	}
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	return c, r, nil
}

// sayFrames sends bytes, ends its direction, and tells what comes back.
func sayFrames(addr, host, target, frames string) ([]string, error) {
	c, r, err := openFrames(addr, host, target)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := io.WriteString(c, frames); err != nil {
		return nil, err
	}
	_ = c.CloseWrite()
	return readFrames(r), nil
}

// rawServer says given bytes to every WebSocket and hands over what each
// client says.
func rawServer(t *testing.T, name string, serve func(c *net.TCPConn, r *bufio.Reader, n int)) *wsServer {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(30 * time.Second))
				r := bufio.NewReader(c)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				n, _ := strconv.Atoi(req.URL.Query().Get("n"))
				fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", accept(req.Header.Get("Sec-WebSocket-Key")))
				serve(c.(*net.TCPConn), r, n)
			}()
		}
	}()
	return &wsServer{name, ln.Addr().String()}
}

// The same the other way: what a server does wrong arrives at the client, and
// the client's complaint at the server.
func TestWebSocketWrongFramesReachTheClient(t *testing.T) {
	vectors := wrongFrames(false)
	heard := make(chan []string, 1)
	s := rawServer(t, "raw", func(c *net.TCPConn, r *bufio.Reader, n int) {
		_, _ = io.WriteString(c, vectors[n].bytes)
		// A client that finds nothing wrong waits for more; none comes.
		_, _ = io.WriteString(c, frame(0x88, false, "\x03\xe8"))
		heard <- readFrames(r)
	})
	_, nodeClient := startWS(t)
	_, goClient := startCoder(t)
	paths := ways(t, wsProgram(t, "", s), "raw.localhost", s.addr)
	told := 0
	for _, c := range []*wsClient{nodeClient, goClient} {
		for i, v := range vectors {
			if strings.Contains(v.name, "then the end") || strings.Contains(v.name, "highest bit") && c.name == "coder" {
				continue // the close would be taken for its payload
			}
			var direct string
			for _, w := range paths {
				saw, err := c.ask(question{URL: "ws://" + w.addr + "/?n=" + strconv.Itoa(i), Host: "raw.localhost"})
				if err != nil {
					t.Fatal(err)
				}
				got := fmt.Sprintf("client %q\nserver %q", saw, <-heard)
				if w.name == "direct" {
					direct = got
					if strings.Contains(direct, "error") {
						told++
					}
				} else if got != direct {
					t.Errorf("%s: %s to %s:\n%s\nwithout the proxy:\n%s", v.name, w.name, c.name, got, direct)
				}
			}
		}
	}
	t.Logf("%d wrong frames, two clients; they called %d of them errors", len(vectors), told)
	if told < 40 {
		t.Errorf("the clients by themselves found %d errors alone: these vectors prove little", told)
	}
}

// A direction that has ended leaves the other open: what the server says after
// the client's end still arrives. A stream of HTTP/2 or HTTP/3 ends wholly
// when the server's direction does.
func TestWebSocketHalfClose(t *testing.T) {
	late := frame(0x82, false, strings.Repeat("late", 50000))
	s := rawServer(t, "half", func(c *net.TCPConn, r *bufio.Reader, _ int) {
		seen := readFrames(r)
		_, _ = io.WriteString(c, frame(0x81, false, strings.Join(seen, ", "))+late)
	})
	paths := ways(t, wsProgram(t, "", s), "half.localhost", s.addr)
	want := []string{}
	for _, w := range paths {
		saw, err := sayFrames(w.addr, "half.localhost", "/", frame(0x81, true, "first")+frame(0x82, true, "second"))
		if err != nil {
			t.Fatal(err)
		}
		if w.name == "direct" {
			want = saw
			if len(want) != 3 || want[2] != "end" {
				t.Fatalf("without the proxy %q", want)
			}
		} else if !slices.Equal(saw, want) {
			t.Errorf("%s: %q, without the proxy %q", w.name, saw, want)
		}
	}
}

// A reset on one side ends the other at once, over each version of HTTP.
func TestWebSocketReset(t *testing.T) {
	const limit = time.Second
	told := make(chan struct{}, 1)
	s := rawServer(t, "reset", func(c *net.TCPConn, r *bufio.Reader, n int) {
		if _, err := io.ReadFull(r, make([]byte, 7)); err != nil {
			return
		}
		if n == 1 {
			c.SetLinger(0)
			return
		}
		_, _ = io.WriteString(c, frame(0x81, false, "x"))
		_, _ = io.Copy(io.Discard, r)
		told <- struct{}{}
	})
	paths := ways(t, wsProgram(t, "", s), "reset.localhost", s.addr)
	for _, w := range paths {
		for n, by := range []string{"client", "server"} {
			c, r, err := openFrames(w.addr, "reset.localhost", "/?n="+strconv.Itoa(n))
			if err != nil {
				t.Fatalf("%s: %v", w.name, err)
			}
			io.WriteString(c, frame(0x81, true, "x"))
			began := time.Now()
			if by == "client" {
				_, _ = io.ReadFull(r, make([]byte, 3))
				began = time.Now()
				_ = c.SetLinger(0)
				c.Close()
				select {
				case <-told:
				case <-time.After(15 * time.Second):
					t.Errorf("%s: a reset by the client never reaches the server", w.name)
				}
			} else {
				b, err := io.ReadAll(r)
				if ne, ok := err.(net.Error); len(b) > 0 || ok && ne.Timeout() {
					t.Errorf("%s: after a reset by the server the client got %q, %v", w.name, b, err)
				}
				c.Close()
			}
			if took := time.Since(began); took > limit {
				t.Errorf("%s: a reset by the %s is known on the other side after %v", w.name, by, took)
			}
		}
	}
}

// idle_timeout cuts who is silent and nobody else; timeout_write cuts whoever
// talks, too, and says so in a close frame.
func TestWebSocketTimeouts(t *testing.T) {
	nodeServer, _ := startWS(t)
	for _, tc := range []struct {
		name, top, route string
		talk, least      time.Duration
		end              []string
	}{
		{"idle_timeout, silent", "", ", idle_timeout: 1s", 0, time.Second, []string{"end"}},
		{"idle_timeout, after a talk", "", ", idle_timeout: 1s", 1500 * time.Millisecond, 2400 * time.Millisecond, []string{"end"}},
		{"timeout_write, talking", "timeout_write: 1s\n", "", 3 * time.Second, time.Second, []string{"close 1008 this connection has reached its time limit", "end"}},
		{"neither", "", "", 0, 3 * time.Second, []string{"still open"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := servertest.Start(t, fmt.Sprintf("codec_type: http3\n%sroutes:\n  - {from: https://ws.localhost, to: http://%s, allow_public_unauthenticated_access: true, allow_websockets: true%s}\n", tc.top, nodeServer.addr, tc.route))
			for _, w := range ways(t, p, "ws.localhost", nodeServer.addr)[1:] {
				t.Run(w.name, func(t *testing.T) {
					t.Parallel()
					began := time.Now()
					c, r, err := openFrames(w.addr, "ws.localhost", "/?id=t&steps=[]")
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					c.SetReadDeadline(began.Add(3 * time.Second))
					go func() {
						for ; time.Since(began) < tc.talk; time.Sleep(100 * time.Millisecond) {
							_, _ = io.WriteString(c, frame(0x81, true, "x"))
						}
					}()
					seen := slices.DeleteFunc(readFrames(r), func(e string) bool { return strings.HasPrefix(e, "0x81 1 ") })
					// The clock of the cut begins with the request, a little after ours.
					if lived := time.Since(began); !slices.Equal(seen, tc.end) || lived < tc.least-100*time.Millisecond {
						t.Errorf("%s: %q after %v; want %q, after %v at least", w.name, seen, lived, tc.end, tc.least)
					}
				})
			}
		})
	}
}
