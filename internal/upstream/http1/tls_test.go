package http1

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"testing"
)

// held is a connection whose writes are kept, to be sent in one piece.
type held struct {
	net.Conn
	hold bool
	kept bytes.Buffer
}

func (h *held) Write(p []byte) (int, error) {
	if h.hold {
		return h.kept.Write(p)
	}
	return h.Conn.Write(p)
}

// overTLS connects to a server that, once asked, writes TLS records of the
// texts, all but the last cut bytes of them in one piece.
func overTLS(t *testing.T, cut int, texts ...string) *Conn {
	t.Helper()
	cert := httptest.NewTLSServer(nil)
	t.Cleanup(cert.Close)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	done := make(chan bool)
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			return
		}
		defer raw.Close()
		h := &held{Conn: raw}
		c := tls.Server(h, &tls.Config{Certificates: cert.TLS.Certificates})
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			return
		}
		h.hold = true
		for _, s := range texts {
			io.WriteString(c, s)
		}
		raw.Write(h.kept.Bytes()[:h.kept.Len()-cut])
		if cut > 0 {
			raw.(*net.TCPConn).CloseWrite()
		}
		io.Copy(io.Discard, raw)
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := NewConn(tls.Client(raw, &tls.Config{InsecureSkipVerify: true}))
	t.Cleanup(func() { c.Close() })
	io.WriteString(c, "GET ")
	return c
}

// TestQuietBehindTLS: bytes behind an answer that TLS has read along with it
// are not on the socket any more. They must not answer the next request.
func TestQuietBehindTLS(t *testing.T) {
	const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
	for _, texts := range [][]string{{fine}, {fine, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"}} {
		c := overTLS(t, 0, texts...)
		if g, err := ask(c, Expect{}); err != nil || g.body != "hi" {
			t.Fatal(g, err)
		}
		c.Rest()
		if quiet := c.Quiet(); quiet != (len(texts) == 1) {
			t.Errorf("quiet %v after %q", quiet, texts)
		}
	}
}

// TestCutInRecord: a body that ends with the connection is not whole if the
// connection ends in the midst of a TLS record.
func TestCutInRecord(t *testing.T) {
	c := overTLS(t, 3, "HTTP/1.1 200 OK\r\n\r\nbegun", " and cut")
	if g, err := ask(c, Expect{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%q taken for whole, %v", g.body, err)
	}
}

// TestReady: Ready says what Next does, wherever the text is cut.
func TestReady(t *testing.T) {
	const text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n1\r\nd\r\n0\r\nT: 1\r\n\r\n"
	for cut := 0; cut < len(text); cut++ {
		s := &script{pieces: []string{text[:cut], text[cut:]}}
		if cut == 0 {
			s.pieces = s.pieces[1:]
		}
		c := NewConn(s)
		c.Begin()
		var a Answer
		if err := c.ReadHead(&a, Expect{}); err != nil {
			t.Fatal(err)
		}
		for err := error(nil); err == nil; {
			ready, before := c.Ready(), len(s.pieces)
			_, err = c.Next()
			if read := len(s.pieces) < before; ready == read {
				t.Errorf("cut at %d: ready %v, but the upstream was read: %v", cut, ready, read)
			}
		}
	}
}
