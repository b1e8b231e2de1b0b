package upstream

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"postern/internal/exchange"
)

// BenchmarkExchange is one exchange with an upstream on loopback that does
// next to nothing: what is left is ours, and the kernel's.
func BenchmarkExchange(b *testing.B) {
	for _, bc := range []struct{ name, method, answer string }{
		{"length", "GET", "HTTP/1.1 200 OK\r\nServer: s\r\nDate: Sun, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024)},
		{"chunked", "GET", "HTTP/1.1 200 OK\r\nServer: s\r\nDate: Sun, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n"},
		{"post", "POST", "HTTP/1.1 204 No Content\r\n\r\n"},
	} {
		b.Run(bc.name, func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			go func() {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				r := bufio.NewReader(c)
				answer := []byte(bc.answer)
				for {
					for {
						line, err := r.ReadSlice('\n')
						if err != nil {
							return
						}
						if len(line) == 2 {
							break
						}
					}
					if bc.method == "POST" {
						r.Discard(5)
					}
					c.Write(answer)
				}
			}()
			p, failed := Build([]Spec{{Endpoints: endpoints(b, "http://"+ln.Addr().String())}}, nil, nil)
			if failed != nil {
				b.Fatal(failed[0].Err)
			}
			defer p.Close()
			req, _ := http.NewRequest(bc.method, "/path?q=1", nil)
			req.RequestURI = "/path?q=1"
			req.Header.Set("Accept", "*/*")
			req.Header.Set("User-Agent", "bench")
			req.Header.Set("Cookie", "a=b")
			v := &testView{r: req}
			if bc.method == "POST" {
				size := int64(5)
				v.size = &size
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			o := Options{IdleTimeout: 300e9}
			edits := &exchange.HeaderEdits{}
			b.ReportAllocs()
			for b.Loop() {
				x := bodyExchange{}
				if bc.method == "POST" {
					x.body = plainBody{bytes.NewReader([]byte("hello"))}
				}
				if _, err := RoundTrip(ctx, p.Target(0), edits, v, x, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// bodyExchange has a body and takes any answer.
type bodyExchange struct {
	nullExchange
	body exchange.BodySource
}

func (x bodyExchange) Body() exchange.BodySource { return x.body }

var _ io.Reader = plainBody{}
