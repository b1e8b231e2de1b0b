package upstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"postern/internal/exchange"
)

// Limits on a response head; the same as for requests.
const (
	maxHeadBytes  = 128 << 10
	maxHeadFields = 1000
)

// malformed is what a responseGuard found wrong.
type malformed struct{ reason string }

func (e *malformed) Error() string { return e.reason }

func bad(format string, args ...any) error { return &malformed{fmt.Sprintf(format, args...)} }

var errBytesAfterEnd = bad("bytes follow the end of the response")

// responseGuard reads an upstream's HTTP/1.1 responses strictly before
// Transport sees them: two parsers that disagree about where a response ends
// would hand one visitor another's bytes. A connection that sends anything
// unexpected fails, and Transport never uses it again.
type responseGuard struct {
	net.Conn

	mu      sync.Mutex // of the expectation, set by the requesting goroutine
	waiting bool       // a request is out, and its final head not in
	isHead  bool
	upgrade bool
	wrote   bool  // anything of the request
	failure error // sticky

	// Owned by Transport's reading goroutine.
	buf     []byte
	pos     int
	ready   int // bytes of buf[pos:] that were checked
	scanned int
	phase   responsePhase
	length  int64
	chunks  exchange.ChunkScanner
}

type responsePhase uint8

const (
	awaitHead   responsePhase = iota
	inLength                  // body of known length
	inChunked                 // chunked body
	inClose                   // body that ends with the connection
	passThrough               // after 101
)

func newResponseGuard(c net.Conn) *responseGuard { return &responseGuard{Conn: c} }

// expect announces the next request. Transport's trace calls it once a
// connection was chosen and before the request is written.
func (g *responseGuard) expect(method string, upgrade bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting {
		// Cannot happen while Transport sends one request at a time.
		g.failure = bad("two requests at once on one connection")
	}
	g.waiting, g.isHead, g.upgrade, g.wrote = true, method == "HEAD", upgrade, false
}

// untouched reports whether nothing of the request was written.
func (g *responseGuard) untouched() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.wrote
}

func (g *responseGuard) Write(p []byte) (int, error) {
	g.mu.Lock()
	err := g.failure
	g.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := g.Conn.Write(p)
	if n > 0 {
		g.mu.Lock()
		g.wrote = true
		g.mu.Unlock()
	}
	return n, err
}

// CloseWrite half-closes an upgraded connection.
func (g *responseGuard) CloseWrite() error {
	if cw, ok := g.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

func (g *responseGuard) fail(err error) error {
	g.mu.Lock()
	g.failure = err
	g.mu.Unlock()
	return err
}

func (g *responseGuard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if g.ready > 0 {
			n := copy(p, g.buf[g.pos:g.pos+g.ready])
			g.ready -= n
			if g.pos += n; g.pos == len(g.buf) {
				g.buf, g.pos = g.buf[:0], 0
			}
			return n, nil
		}
		g.mu.Lock()
		err := g.failure
		g.mu.Unlock()
		if err != nil {
			return 0, err
		}
		switch g.phase {
		case awaitHead:
			if err := g.readHead(); err != nil {
				return 0, err
			}
		case inLength, inChunked:
			n, err := g.Conn.Read(p)
			if n > 0 {
				if bad := g.checkBody(p[:n]); bad != nil {
					return 0, g.fail(bad)
				}
			}
			if err == io.EOF && n == 0 {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		default:
			if g.pos < len(g.buf) {
				g.ready = len(g.buf) - g.pos
				continue
			}
			return g.Conn.Read(p)
		}
	}
}

// checkBody follows the framing through body bytes. The body and nothing else
// may end in p.
func (g *responseGuard) checkBody(p []byte) error {
	if g.phase == inLength {
		if int64(len(p)) > g.length {
			return errBytesAfterEnd
		}
		if g.length -= int64(len(p)); g.length == 0 {
			g.phase = awaitHead
		}
		return nil
	}
	n, done, err := g.chunks.Scan(p)
	switch {
	case err != nil:
		return bad("%v", err)
	case done && n < len(p):
		return errBytesAfterEnd
	case done:
		g.phase = awaitHead
	}
	return nil
}

// readHead reads until a whole response head is there and in order.
func (g *responseGuard) readHead() error {
	for {
		if len(g.buf) > g.pos {
			g.mu.Lock()
			waiting := g.waiting
			g.mu.Unlock()
			if !waiting {
				// Unasked: a 408 on an idle connection, or worse. Transport
				// takes EOF for a connection closed while idle.
				g.fail(errBytesAfterEnd)
				return io.EOF
			}
			end, err := responseEnd(g.buf[g.pos:], g.scanned)
			if err != nil {
				return g.fail(err)
			}
			if end > 0 {
				if err := g.accept(g.buf[g.pos:], end); err != nil {
					return g.fail(err)
				}
				return nil
			}
			g.scanned = len(g.buf) - g.pos
		}
		if g.pos > 0 {
			g.buf = g.buf[:copy(g.buf, g.buf[g.pos:])]
			g.pos = 0
		}
		if len(g.buf) == cap(g.buf) {
			grown := make([]byte, len(g.buf), max(4<<10, 2*cap(g.buf)))
			copy(grown, g.buf)
			g.buf = grown
		}
		n, err := g.Conn.Read(g.buf[len(g.buf):cap(g.buf)])
		g.buf = g.buf[:len(g.buf)+n]
		if n == 0 && err != nil {
			if err == io.EOF && len(g.buf) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
	}
}

// accept checks a head of end bytes and, as far as it has come, the body.
func (g *responseGuard) accept(pending []byte, end int) error {
	h, err := parseResponseHead(pending[:end])
	if err != nil {
		return err
	}
	g.scanned = 0
	g.mu.Lock()
	isHead, upgrade := g.isHead, g.upgrade
	interim := h.status < 200 && h.status != 101
	if !interim {
		g.waiting = false
	}
	g.mu.Unlock()
	switch {
	case interim:
		if h.chunked {
			return bad("status %d with a body", h.status)
		}
		g.ready = end
		return nil
	case h.status == 101:
		if !upgrade {
			return bad("status 101 without being asked to upgrade")
		}
		g.phase = passThrough
	case isHead || h.status == 204 || h.status == 304:
		if end < len(pending) {
			return errBytesAfterEnd
		}
	case h.chunked:
		g.phase, g.chunks = inChunked, exchange.ChunkScanner{}
	case h.length > 0:
		g.phase, g.length = inLength, h.length
	case h.length == 0:
		if end < len(pending) {
			return errBytesAfterEnd
		}
	default:
		g.phase = inClose
	}
	if rest := pending[end:]; len(rest) > 0 && (g.phase == inLength || g.phase == inChunked) {
		if err := g.checkBody(rest); err != nil {
			return err
		}
	}
	g.ready = len(pending)
	return nil
}

// responseEnd finds the end of a head, or 0, and refuses what can not become one.
func responseEnd(buf []byte, from int) (int, error) {
	for i := from; i < len(buf); i++ {
		switch c := buf[i]; {
		case c == '\n':
			if i == 0 || buf[i-1] != '\r' {
				return 0, bad("line in the head does not end with CRLF")
			}
			if i >= 3 && buf[i-2] == '\n' {
				return i + 1, nil
			}
		case i > 0 && buf[i-1] == '\r':
			return 0, bad("carriage return without line feed in the head")
		case c == 0:
			return 0, bad("NUL in the head")
		}
		if i < len(statusPrefix) && buf[i] != statusPrefix[i] {
			return 0, bad("answer does not begin with HTTP/1.")
		}
	}
	if len(buf) > maxHeadBytes {
		return 0, bad("response head is larger than 128 KiB")
	}
	return 0, nil
}

const statusPrefix = "HTTP/1."

type responseHead struct {
	status  int
	length  int64 // -1: none
	chunked bool
}

func parseResponseHead(head []byte) (h responseHead, err error) {
	h.length = -1
	i := bytes.IndexByte(head, '\n')
	line, rest := head[:i-1], head[i+1:]
	// HTTP/1.x SP 3DIGIT [SP reason]
	if len(line) < 12 || string(line[:7]) != statusPrefix || (line[7] != '0' && line[7] != '1') || line[8] != ' ' ||
		(len(line) > 12 && line[12] != ' ') {
		return h, bad("status line is malformed")
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return h, bad("status is not a number")
		}
		h.status = h.status*10 + int(c-'0')
	}
	if h.status < 100 {
		return h, bad("status is out of range")
	}
	if len(line) > 13 && !exchange.IsFieldValue(line[13:]) {
		return h, bad("control character in the status line")
	}
	coding := false
	for n := 0; len(rest) > 2; n++ {
		if n == maxHeadFields {
			return h, bad("response has more than 1000 headers")
		}
		i := bytes.IndexByte(rest, '\n')
		name, value, err := exchange.ParseFieldLine(rest[:i-1])
		if err != nil {
			return h, bad("%v", err)
		}
		rest = rest[i+1:]
		switch {
		case len(name) == 14 && bytes.EqualFold(name, []byte("content-length")):
			if h.length >= 0 {
				return h, bad("more than one Content-Length")
			}
			if len(value) == 0 || len(value) > 18 {
				return h, bad("Content-Length is not a number")
			}
			h.length = 0
			for _, c := range value {
				if c < '0' || c > '9' {
					return h, bad("Content-Length is not a number")
				}
				h.length = h.length*10 + int64(c-'0')
			}
		case len(name) == 17 && bytes.EqualFold(name, []byte("transfer-encoding")):
			if coding || !bytes.EqualFold(value, []byte("chunked")) {
				return h, bad("Transfer-Encoding is not exactly chunked")
			}
			if line[7] == '0' {
				return h, bad("Transfer-Encoding in an HTTP/1.0 response")
			}
			coding = true
		}
	}
	if h.chunked = coding; coding && h.length >= 0 {
		return h, bad("both Content-Length and Transfer-Encoding")
	}
	return h, nil
}
