//lint:file-ignore SA1019 the HTTP/2 client of net/http sends no :protocol

package conformance

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"postern/internal/server/servertest"
)

// way leads from a client to a server. What a client says to addr in HTTP/1.1
// arrives at the proxy in the way's own protocol, all bytes behind the
// handshake as they are, and a reset as a reset.
type way struct {
	name, addr string
}

// ways are four: to the server itself, and through the proxy over HTTP/1.1,
// as a stream of HTTP/2 (RFC 8441), and as one of HTTP/3 (RFC 9220).
func ways(t *testing.T, p *servertest.Program, host, server string) []way {
	quic := p.AgentOverHTTP3().Client.Transport
	agent := p.Agent()
	h2 := &http2.Transport{TLSClientConfig: agent.TLS, DialTLSContext: func(context.Context, string, string, *tls.Config) (net.Conn, error) {
		return agent.Dial(host, "h2")
	}}
	t.Cleanup(h2.CloseIdleConnections)
	return []way{
		{"direct", server},
		{"HTTP/1.1", carry(t, func(c *net.TCPConn) error {
			up, err := agent.Dial(host, "http/1.1")
			if err != nil {
				return err
			}
			up.SetDeadline(time.Time{})
			both(c, c, up, func() {
				tcp := up.(*tls.Conn).NetConn().(*net.TCPConn)
				tcp.SetLinger(0)
				tcp.Close()
			})
			return nil
		})},
		{"HTTP/2", carry(t, func(c *net.TCPConn) error {
			return asStream(c, host, func(r *http.Request) (*http.Response, error) {
				r.Header[":protocol"] = []string{"websocket"}
				return h2.RoundTrip(r)
			})
		})},
		{"HTTP/3", carry(t, func(c *net.TCPConn) error {
			return asStream(c, host, func(r *http.Request) (*http.Response, error) {
				r.Proto = "websocket"
				return quic.RoundTrip(r)
			})
		})},
	}
}

// carry listens and hands every connection on.
func carry(t *testing.T, to func(*net.TCPConn) error) string {
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
				if err := to(c.(*net.TCPConn)); err != nil {
					fmt.Fprintf(c, "HTTP/1.1 599 %v\r\nConnection: close\r\n\r\n", err)
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// both copies until both directions have ended: from is what c sends, reset
// tells the other side that c was reset.
func both(c *net.TCPConn, from io.Reader, up io.ReadWriteCloser, reset func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := io.Copy(c, up)
		if err != nil {
			c.SetLinger(0)
			c.Close()
			return
		}
		c.CloseWrite()
	}()
	if _, err := io.Copy(up, from); err != nil {
		reset()
	} else {
		up.(interface{ CloseWrite() error }).CloseWrite()
	}
	<-done
	up.Close()
}

// wsStream is an extended CONNECT: its request's body and its answer's.
type wsStream struct {
	io.Reader
	*io.PipeWriter
}

func (s wsStream) CloseWrite() error { return s.PipeWriter.Close() }

// asStream turns the handshake of HTTP/1.1 into an extended CONNECT.
func asStream(c *net.TCPConn, host string, roundTrip func(*http.Request) (*http.Response, error)) error {
	r := bufio.NewReader(c)
	asked, err := http.ReadRequest(r)
	if err != nil {
		return err
	}
	out, in := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://"+host+asked.URL.RequestURI(), out)
	if err != nil {
		return err
	}
	key := asked.Header.Get("Sec-WebSocket-Key")
	req.Header = asked.Header
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Key"} {
		req.Header.Del(name)
	}
	res, err := roundTrip(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.Write(c)
	}
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n", accept(key))
	if err := res.Header.Write(c); err != nil {
		return err
	}
	io.WriteString(c, "\r\n")
	both(c, r, wsStream{res.Body, in}, func() {
		cancel()
		in.CloseWithError(context.Canceled) // the client of HTTP/2 looks at its context only between reads
	})
	return nil
}

// accept is the proof of the handshake (RFC 6455 §4.2.2).
func accept(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}
