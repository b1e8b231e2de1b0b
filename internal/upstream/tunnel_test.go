package upstream

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
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

const wsRequest = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// wsEcho answers the handshake and echoes bytes until the client is done.
func wsEcho(c net.Conn, r *bufio.Reader) {
	head, err := readRequestHead(r)
	if err != nil {
		return
	}
	key := ""
	for _, line := range strings.Split(head, "\r\n") {
		if name, value, _ := strings.Cut(line, ": "); strings.EqualFold(name, "Sec-WebSocket-Key") {
			key = value
		}
	}
	if !strings.Contains(head, "Upgrade: websocket\r\n") || !strings.Contains(head, "Connection: Upgrade\r\n") || strings.Contains(head, "keep-alive") {
		io.WriteString(c, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
		return
	}
	sum := sha1.Sum([]byte(key + websocketGUID))
	// The first bytes of the tunnel ride along with the head.
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\nhello", base64.StdEncoding.EncodeToString(sum[:]))
	io.Copy(c, r)
	io.WriteString(c, "bye") // after the client's end: half-close works
}

func dialDoor(t *testing.T, d *door, request string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", d.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, request)
	return c, bufio.NewReader(c)
}

func TestTunnel(t *testing.T) {
	to, _ := raw(t, wsEcho)
	d := newDoor(t, target(t, Spec{WebSockets: true}, to))
	d.options = Options{Upgrades: []string{"websocket"}, IdleTimeout: 30 * time.Second}
	c, br := dialDoor(t, d, wsRequest)
	head, err := readRequestHead(br)
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101") || !strings.Contains(head, "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") || !strings.Contains(head, "Connection: Upgrade") {
		t.Fatalf("%q %v", head, err)
	}
	got := make([]byte, 5)
	io.ReadFull(br, got)
	if string(got) != "hello" {
		t.Errorf("got %q", got)
	}
	for range 3 {
		io.WriteString(c, "ping!")
		if io.ReadFull(br, got); string(got) != "ping!" {
			t.Errorf("got %q", got)
		}
	}
	c.(*net.TCPConn).CloseWrite()
	if rest, _ := io.ReadAll(br); string(rest) != "bye" {
		t.Errorf("after half-close: %q", rest)
	}
	if o := d.outcome(t); o.err != nil || !o.Tunnel || o.Status != 101 || o.RequestBytes != 15 || o.ResponseBytes != 23 {
		t.Errorf("%+v %v", o.Result, o.err)
	}
}

func TestTunnelNotAllowed(t *testing.T) {
	to, conns := raw(t, wsEcho)
	d := newDoor(t, target(t, Spec{}, to))
	for _, request := range []string{wsRequest, strings.Replace(wsRequest, "WebSocket", "h2c, spdy/3.1", 1)} {
		_, br := dialDoor(t, d, request)
		if line, _ := br.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 403") {
			t.Errorf("%q", line)
		}
		if o := d.outcome(t); !errors.Is(o.err, ErrUpgradeRefused) || o.Details != "upgrade_failed" {
			t.Errorf("%v", o.err)
		}
	}
	if conns() != 0 {
		t.Error("the upstream was asked")
	}
}

// TestUpgradeDeclined: 200 and 426 are plain answers, and the connection is
// not used again, whatever the upstream thinks it is now.
func TestUpgradeDeclined(t *testing.T) {
	for _, status := range []string{"200 OK", "426 Upgrade Required"} {
		to, conns := raw(t, func(c net.Conn, r *bufio.Reader) {
			for {
				if _, err := readRequestHead(r); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\nno", status)
			}
		})
		d := newDoor(t, target(t, Spec{WebSockets: true}, to))
		d.options.Upgrades = []string{"websocket"}
		_, br := dialDoor(t, d, wsRequest)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		if resp.Status != status || string(b) != "no" {
			t.Errorf("%s %q", resp.Status, b)
		}
		if o := d.outcome(t); o.err != nil || o.Tunnel {
			t.Errorf("%+v %v", o.Result, o.err)
		}
		if _, body := get(t, d.URL); body != "no" {
			t.Errorf("next user got %q", body)
		}
		_, br = dialDoor(t, d, wsRequest) // nor by the next upgrade
		if _, err := http.ReadResponse(br, nil); err != nil {
			t.Fatal(err)
		}
		if conns() != 3 {
			t.Errorf("%d connections: that of the declined upgrade was used again", conns())
		}
	}
}

func TestUpgradeToSomethingElse(t *testing.T) {
	to, _ := raw(t, func(c net.Conn, r *bufio.Reader) {
		readRequestHead(r)
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n")
		io.Copy(io.Discard, r)
	})
	d := newDoor(t, target(t, Spec{}, to))
	d.options.Upgrades = []string{"websocket"}
	_, br := dialDoor(t, d, wsRequest)
	if line, _ := br.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 502") {
		t.Errorf("%q", line)
	}
	if o := d.outcome(t); !errors.Is(o.err, ErrBadResponse) {
		t.Errorf("%v", o.err)
	}
}

func TestTunnelLimits(t *testing.T) {
	to, _ := raw(t, wsEcho)
	d := newDoor(t, target(t, Spec{}, to))
	d.options = Options{Upgrades: []string{"websocket"}, IdleTimeout: 60 * time.Millisecond}
	_, br := dialDoor(t, d, wsRequest)
	io.ReadAll(br)
	var e *Error
	if o := d.outcome(t); !errors.As(o.err, &e) || e.Key != "idle_timeout" {
		t.Errorf("idle: %v", o.err)
	}

	d.options.IdleTimeout = 0
	_, br = dialDoor(t, d, wsRequest)
	readRequestHead(br)
	revoked := errors.New("session revoked")
	d.mu.Lock()
	cut := d.cut
	d.mu.Unlock()
	cut(revoked)
	io.ReadAll(br)
	if o := d.outcome(t); !errors.Is(o.err, ErrCut) || !errors.Is(o.err, revoked) || !o.Tunnel {
		t.Errorf("cut: %v", o.err)
	}
}

// TestExtendedConnect: WebSocket over HTTP/2 becomes an upgrade upstream.
func TestExtendedConnect(t *testing.T) {
	to, _ := raw(t, wsEcho)
	tg := target(t, Spec{}, to)
	r := httptest.NewRequest("GET", "/ws", nil)
	r.Method = "CONNECT"
	r.Header.Set("Sec-Websocket-Version", "13")
	client, ours := net.Pipe()
	x := &connectExchange{conn: ours}
	done := make(chan exchanged, 1)
	go func() {
		size := int64(-1)
		result, err := RoundTrip(t.Context(), tg, &exchange.HeaderEdits{Path: "/ws"}, &testView{r: r, protocol: "websocket", proto: exchange.HTTP2, size: &size}, x,
			Options{Upgrades: []string{"websocket"}})
		done <- exchanged{result, err}
	}()
	got := make([]byte, 5)
	io.ReadFull(client, got)
	if string(got) != "hello" || x.status != 200 || x.accept {
		t.Errorf("%q, status %d, accept %v", got, x.status, x.accept)
	}
	client.Close()
	if o := <-done; o.err != nil || !o.Tunnel {
		t.Errorf("%+v %v", o.Result, o.err)
	}
}

type connectExchange struct {
	testExchange
	conn   net.Conn
	status int
	accept bool
}

func (x *connectExchange) Body() exchange.BodySource { return nil }

func (x *connectExchange) Tunnel(status int, h exchange.HeaderSeq) (net.Conn, error) {
	x.status = status
	for n := range h {
		x.accept = x.accept || strings.EqualFold(n, "Sec-WebSocket-Accept") || strings.EqualFold(n, "Upgrade")
	}
	return x.conn, nil
}
