package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
)

// response drives an http.ResponseWriter as an exchange.Exchange: the way back
// of the reference codecs, HTTP/1.1 and HTTP/2.
type response struct {
	w    http.ResponseWriter
	r    *http.Request
	rc   *http.ResponseController
	body *requestBody // nil: none

	begun    bool
	tunneled bool
	stream   *streamConn // the tunnel, where it is a stream of HTTP/2 or HTTP/3
	status   int
	size     atomic.Int64 // response body bytes
	aborted  atomic.Bool
}

func newResponse(w http.ResponseWriter, r *http.Request) *response {
	x := &response{w: w, r: r, rc: http.NewResponseController(w)}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 && r.Method != http.MethodConnect {
		x.body = &requestBody{x: x}
	}
	return x
}

// requestBody is the client's body. It remembers how reading it ended, which
// tells a client that was too slow from an upstream that failed.
type requestBody struct {
	x     *response
	ended func()                 // called once when the whole body was read, if not nil
	left  int64                  // of a declared length, where ended is set
	err   error                  // io.EOF at a proper end
	hide  func(name string) bool // trailers that must not pass

	whole  atomic.Bool // it was read to its end
	closed atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.x.r.Body.Read(p)
	if err != nil && b.err == nil {
		b.err = err
	}
	// Who knows the length does not read on to be told of the end, which
	// HTTP/2 and HTTP/3 tell in a read of its own.
	b.left -= int64(n)
	if err == io.EOF || n > 0 && b.left == 0 {
		b.whole.Store(true)
		if b.ended != nil {
			b.ended()
			b.ended = nil
		}
	}
	return n, err
}

// Close interrupts a pending Read from another goroutine. What the client still
// sends is not read any more, so its connection ends with this exchange.
func (b *requestBody) Close() error {
	if b.whole.Load() {
		// Nothing is pending, and net/http already looks out for the client's
		// end: a deadline would look like it, for all requests to come.
		return nil
	}
	b.closed.Store(true)
	return b.x.rc.SetReadDeadline(time.Unix(1, 0))
}

func (b *requestBody) Trailers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for name, values := range b.x.r.Trailer {
			if b.hide != nil && b.hide(name) {
				continue
			}
			for _, value := range values {
				if !yield(name, value) {
					return
				}
			}
		}
	}
}

func (x *response) Body() exchange.BodySource {
	if x.body == nil {
		return nil
	}
	return x.body
}

// Inform sends a 1xx response. Its fields are its own: none of them may stay
// in the final head.
func (x *response) Inform(status int, h exchange.HeaderSeq) error {
	if x.begun || status < 100 || status > 199 || status == http.StatusSwitchingProtocols {
		return fmt.Errorf("cannot send an informational response %d here", status)
	}
	if !x.r.ProtoAtLeast(1, 1) {
		return nil // RFC 9110 §15.2: HTTP/1.0 knows none
	}
	header := x.w.Header()
	saved := header.Clone()
	clear(header)
	if h != nil {
		for name, value := range h {
			if !connectionField(name) {
				header.Add(name, value)
			}
		}
	}
	x.w.WriteHeader(status)
	clear(header)
	for name, values := range saved {
		header[name] = values
	}
	return nil
}

func (x *response) Begin(status int, h exchange.HeaderSeq, size int64) error {
	if x.begun {
		return errors.New("the response has begun already")
	}
	if status < 200 || status > 999 {
		return fmt.Errorf("status %d cannot begin a response", status)
	}
	x.begun, x.status = true, status
	header := x.w.Header()
	typed := false
	if h != nil {
		for name, value := range h {
			if connectionField(name) {
				continue
			}
			typed = typed || strings.EqualFold(name, "Content-Type")
			if x.r.ProtoMajor != 1 || readByServer(name) {
				name = http.CanonicalHeaderKey(name)
			}
			header[name] = append(header[name], value)
		}
	}
	if !typed && header["Content-Type"] == nil {
		header["Content-Type"] = nil // net/http must not guess
	}
	switch {
	case status == http.StatusNoContent, status == http.StatusNotModified:
		delete(header, "Content-Length")
	case size >= 0: // for HEAD: what a GET would get
		header["Content-Length"] = []string{strconv.FormatInt(size, 10)}
	default:
		delete(header, "Content-Length")
	}
	x.w.WriteHeader(status)
	return nil
}

// readByServer reports whether net/http looks for a response field, by its
// canonical spelling. All others go out over HTTP/1.1 in the spelling that
// they have (configuration.md §3.2).
func readByServer(name string) bool {
	switch len(name) {
	case 4:
		return strings.EqualFold(name, "Date")
	case 7:
		return strings.EqualFold(name, "Trailer")
	case 12:
		return strings.EqualFold(name, "Content-Type")
	case 14:
		return strings.EqualFold(name, "Content-Length")
	case 16:
		return strings.EqualFold(name, "Content-Encoding")
	}
	return false
}

// connectionField reports whether a response field belongs to the connection
// it came on (RFC 9110 §7.6.1).
func connectionField(name string) bool {
	switch len(name) {
	case 7:
		return strings.EqualFold(name, "Upgrade")
	case 10:
		return strings.EqualFold(name, "Connection") || strings.EqualFold(name, "Keep-Alive")
	case 16:
		return strings.EqualFold(name, "Proxy-Connection")
	case 17:
		return strings.EqualFold(name, "Transfer-Encoding")
	}
	return false
}

func (x *response) Write(p []byte) (int, error) {
	n, err := x.w.Write(p)
	x.size.Add(int64(n))
	return n, err
}

func (x *response) Flush() error { return x.rc.Flush() }

// Finish ends the response. Trailers need no announcement: net/http sends
// those under TrailerPrefix where the framing allows any.
func (x *response) Finish(trailers exchange.HeaderSeq) error {
	if trailers != nil {
		header := x.w.Header()
		for name, value := range trailers {
			if !connectionField(name) {
				header.Add(http.TrailerPrefix+name, value)
			}
		}
	}
	return nil
}

// Abort marks the exchange as broken and unblocks a pending Write; the handler
// then ends it so that the client sees it: connection closed, or stream reset.
// It may be called from any goroutine.
func (x *response) Abort(error) {
	if !x.aborted.Swap(true) {
		x.rc.SetWriteDeadline(time.Unix(1, 0))
		x.rc.SetReadDeadline(time.Unix(1, 0))
	}
}

// Tunnel sends a 101 head over HTTP/1.1 and hands over the connection, or the
// stream after 200 over HTTP/2 and HTTP/3.
func (x *response) Tunnel(status int, h exchange.HeaderSeq) (net.Conn, error) {
	if x.begun {
		return nil, errors.New("the response has begun already")
	}
	if x.r.ProtoMajor != 1 {
		if status != http.StatusOK {
			return nil, fmt.Errorf("status %d cannot begin a tunnel over this HTTP version", status)
		}
		return x.openStream(h)
	}
	conn, buffered, err := x.rc.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the client connection: %w", err)
	}
	x.begun, x.tunneled, x.status = true, true, status
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	if h != nil {
		for name, value := range h {
			if strings.EqualFold(name, "Content-Length") || strings.EqualFold(name, "Transfer-Encoding") ||
				!validHeaderValue(value) || strings.ContainsAny(name, ": \r\n") {
				continue // a tunnel has neither body nor length
			}
			head.WriteString(name + ": " + value + "\r\n")
		}
	}
	head.WriteString("\r\n")
	if _, err := io.WriteString(conn, head.String()); err != nil {
		conn.Close()
		return nil, err
	}
	return &tunnelConn{Conn: conn, buffered: buffered.Reader, x: x}, nil
}

// tunnelConn is the client connection of a tunnel: first what net/http has read
// of it, then the connection itself.
type tunnelConn struct {
	net.Conn
	buffered *bufio.Reader // nil once empty
	x        *response
}

func (c *tunnelConn) Read(p []byte) (n int, err error) {
	if c.buffered != nil {
		if k := c.buffered.Buffered(); k > 0 {
			n, err = c.buffered.Read(p[:min(k, len(p))])
		} else {
			c.buffered = nil
		}
	}
	if n == 0 && err == nil {
		n, err = c.Conn.Read(p)
	}
	return n, err
}

func (c *tunnelConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.x.size.Add(int64(n))
	return n, err
}

// CloseWrite ends our direction where the connection can.
func (c *tunnelConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}
