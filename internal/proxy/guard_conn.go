package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
)

// guardConn stands between an HTTP/1.1 connection and net/http. It lets bytes
// through only once they are known to be well framed: a whole head at a time,
// then the body that head announced, then the next head. net/http therefore
// never sees bytes that it could read otherwise than we do, and never more
// than one message ahead.
//
// Three goroutines of net/http may touch it: the one that serves, its
// background reader (never both in Read at once), and whoever shuts down.
type guardConn struct {
	net.Conn
	info    *ConnInfo
	headFor time.Duration // time for a head once its first byte is here; 0 none
	h2c     bool          // an HTTP/2 preface may begin the connection
	refused func(*ConnInfo, *HeadError) (requestID string)

	// Owned by whoever is in Read.
	buf       []byte // pending bytes: buf[pos:]
	pos       int
	ready     int // bytes of buf[pos:] that may be handed out
	scanned   int // bytes of buf[pos:] searched for the end of the head
	delivered int // bytes of the next head that were handed out already
	phase     guardPhase
	length    int64 // of the body, left to read
	chunks    exchange.ChunkScanner
	upgrade   bool
	served    bool // at least one head went through
	head      Head
	err       error // sticky, of the body

	raw    atomic.Bool // hijacked: bytes pass
	fresh  atomic.Bool // nothing was received yet
	answer atomic.Pointer[HeadError]
	armed  atomic.Bool // net/http has read the refused head: its answer is ours
	said   atomic.Bool // our answer was written

	mu       sync.Mutex
	deadline time.Time // as net/http set it
	headEnds time.Time // of the head being received

	closeOnce sync.Once
}

type guardPhase uint8

const (
	phaseHead      guardPhase = iota
	phaseLength               // in a body of known length
	phaseChunked              // in a chunked body
	phaseUndecided            // behind an upgrade request: HTTP or not?
	phaseRefused              // handing out the refusal
	phaseEnd                  // nothing more
)

// refusal is a head that net/http cannot parse. It is what net/http gets to
// see instead of one that we refused, so that it finishes the response before
// it, writes an error (which Write replaces) and closes.
const refusal = "\x00\r\n\r\n"

// tlsGuardConn is a guardConn over TLS: net/http sets Request.TLS from it.
type tlsGuardConn struct{ *guardConn }

func (c tlsGuardConn) ConnectionState() tls.ConnectionState { return *c.info.TLS }

func (c *guardConn) guarded() *guardConn { return c }

// h2cPreface begins an HTTP/2 connection with prior knowledge (RFC 9113 §3.4).
const h2cPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func (c *guardConn) Read(p []byte) (int, error) {
	for {
		if len(p) == 0 {
			return 0, nil
		}
		if c.raw.Load() {
			return c.readRaw(p)
		}
		if c.info.abandoned.Load() {
			return 0, io.ErrUnexpectedEOF
		}
		if c.ready > 0 {
			n := copy(p, c.buf[c.pos:c.pos+c.ready])
			c.ready -= n
			c.drop(n)
			return n, nil
		}
		if c.err != nil {
			return 0, c.err
		}
		switch c.phase {
		case phaseHead:
			if err := c.readHead(); err != nil {
				return 0, err
			}
		case phaseLength, phaseChunked:
			return c.readBody(p)
		case phaseUndecided:
			if len(p) > 1 {
				// net/http wants the next request: the upgrade was not taken,
				// and the client may have sent anything behind it.
				c.phase = phaseEnd
				continue
			}
			// The background reader, which notices disconnects. What it gets
			// is either the first byte of the tunnel or dropped with the rest.
			if c.pos == len(c.buf) {
				return c.Conn.Read(p)
			}
			c.ready = 1
		case phaseRefused:
			n := copy(p, refusal[c.delivered:])
			if c.delivered += n; c.delivered >= len(refusal) {
				c.armed.Store(true)
				c.phase = phaseEnd
			}
			return n, nil
		default:
			return 0, io.EOF
		}
	}
}

// readHead reads until a whole head is pending and accepted (or refused).
func (c *guardConn) readHead() error {
	for {
		pending := c.buf[c.pos:]
		if len(pending) > 0 {
			if c.h2c && !c.served && len(pending) >= len(h2cPreface) && string(pending[:len(h2cPreface)]) == h2cPreface {
				c.setHeadDeadline(false)
				c.raw.Store(true)
				return nil
			}
			end, err := scanHeadEnd(pending, c.scanned)
			if err == nil && end > 0 {
				end, err = ParseHead(pending[:end], &c.head)
			}
			if err != nil {
				if c.h2c && !c.served && isPrefix(pending, h2cPreface) {
					err = nil // wait for the rest of it
				} else {
					return c.refuse(err)
				}
			}
			if end > 0 {
				c.setHeadDeadline(false)
				c.accept(end)
				return nil
			}
			c.scanned = len(pending)
			c.setHeadDeadline(true)
		}
		if err := c.fill(); err != nil {
			if len(pending) > 0 && c.headExpired() && errors.Is(err, os.ErrDeadlineExceeded) {
				return c.refuse(&HeadError{http.StatusRequestTimeout, "request head took too long"})
			}
			return err
		}
	}
}

func isPrefix(b []byte, s string) bool { return len(b) < len(s) && s[:len(b)] == string(b) }

// accept hands out a head and prepares for what follows it.
func (c *guardConn) accept(end int) {
	h := &c.head
	c.served = true
	received := &ReceivedHead{Fields: make([]exchange.Field, len(h.Fields))}
	// One string holds the head; everything else are pieces of it.
	text := string(c.buf[c.pos : c.pos+end])
	base := c.buf[c.pos:]
	piece := func(b []byte) string {
		if len(b) == 0 {
			return ""
		}
		off := cap(base) - cap(b)
		return text[off : off+len(b)]
	}
	received.Method, received.Target = piece(h.Method), piece(h.Target)
	for i, f := range h.Fields {
		received.Fields[i] = exchange.Field{Name: piece(f.Name), Value: piece(f.Value)}
	}
	c.info.pushHead(received)

	c.ready, c.scanned, c.upgrade = end, 0, h.Upgrade
	switch {
	case h.Chunked:
		c.phase, c.chunks = phaseChunked, exchange.ChunkScanner{}
	case h.Length > 0:
		c.phase, c.length = phaseLength, h.Length
	default:
		c.endMessage()
	}
}

func (c *guardConn) endMessage() {
	if c.phase = phaseHead; c.upgrade {
		c.phase = phaseUndecided
	}
}

// readBody passes body bytes, checking chunked framing. Where nothing is
// pending it reads straight into p.
func (c *guardConn) readBody(p []byte) (n int, err error) {
	direct := c.pos == len(c.buf)
	if !direct {
		n = copy(p, c.buf[c.pos:])
	} else {
		if c.phase == phaseLength && int64(len(p)) > c.length {
			p = p[:c.length]
		}
		n, err = c.Conn.Read(p)
		if n == 0 {
			return 0, err
		}
	}
	got := n
	if c.phase == phaseLength {
		if int64(n) > c.length {
			n = int(c.length)
		}
		if c.length -= int64(n); c.length == 0 {
			c.endMessage()
		}
	} else {
		var done bool
		var bad error
		n, done, bad = c.chunks.Scan(p[:got])
		if bad != nil {
			c.err = badHead(bad.Error())
			c.phase = phaseEnd
		} else if done {
			c.endMessage()
		}
	}
	if direct {
		if n < got && c.err == nil {
			c.buf = append(c.buf[:0], p[n:got]...)
			c.pos = 0
		}
	} else {
		c.drop(n)
	}
	if n == 0 {
		return 0, c.err
	}
	if err != nil && got == n {
		return n, err
	}
	return n, nil
}

func (c *guardConn) readRaw(p []byte) (int, error) {
	if c.pos < len(c.buf) {
		n := copy(p, c.buf[c.pos:])
		c.drop(n)
		return n, nil
	}
	return c.Conn.Read(p)
}

// fill reads more of the connection into buf.
func (c *guardConn) fill() error {
	if c.buf == nil {
		c.buf = *guardBuffers.Get().(*[]byte)
	}
	if c.pos > 0 && len(c.buf) == cap(c.buf) {
		c.buf = c.buf[:copy(c.buf, c.buf[c.pos:])]
		c.pos = 0
	}
	if len(c.buf) == cap(c.buf) {
		grown := make([]byte, len(c.buf), 2*cap(c.buf))
		copy(grown, c.buf)
		c.recycle()
		c.buf = grown
	}
	n, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		c.fresh.Store(false)
		return nil
	}
	if err != nil && c.pos == len(c.buf) {
		c.recycle()
	}
	return err
}

// drop forgets n pending bytes and returns an empty buffer to the pool.
func (c *guardConn) drop(n int) {
	if c.pos += n; c.pos == len(c.buf) {
		c.recycle()
	}
}

func (c *guardConn) recycle() {
	if cap(c.buf) == guardBufferSize {
		b := c.buf[:0]
		guardBuffers.Put(&b)
	}
	c.buf, c.pos = nil, 0
}

const guardBufferSize = 4 << 10

var guardBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, guardBufferSize)
	return &b
}}

// refuse makes net/http answer what came before, and then our error.
func (c *guardConn) refuse(err error) error {
	var bad *HeadError
	if !errors.As(err, &bad) {
		bad = errHeadRequestLine
	}
	c.setHeadDeadline(false)
	c.answer.Store(bad)
	c.phase, c.delivered = phaseRefused, 0
	c.recycle()
	return nil
}

// setHeadDeadline starts or stops the clock of the head being received.
func (c *guardConn) setHeadDeadline(on bool) {
	if c.headFor <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if on == !c.headEnds.IsZero() {
		return
	}
	c.headEnds = time.Time{}
	if on {
		c.headEnds = time.Now().Add(c.headFor)
	}
	c.applyDeadlineLocked()
}

func (c *guardConn) headExpired() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.headEnds.IsZero() && !time.Now().Before(c.headEnds)
}

func (c *guardConn) applyDeadlineLocked() error {
	t := c.deadline
	if !c.headEnds.IsZero() && (t.IsZero() || c.headEnds.Before(t)) {
		t = c.headEnds
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *guardConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.applyDeadlineLocked()
}

func (c *guardConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// Write passes what net/http writes, except its answer to a refused head.
func (c *guardConn) Write(p []byte) (int, error) {
	if !c.armed.Load() {
		return c.Conn.Write(p)
	}
	c.sayRefusal()
	return len(p), nil
}

func (c *guardConn) sayRefusal() {
	if c.said.Swap(true) {
		return
	}
	bad := c.answer.Load()
	id := ""
	if c.refused != nil {
		id = c.refused(c.info, bad)
	}
	writePlainError(c.Conn, bad.Status, bad.Reason, id)
}

// writePlainError writes a whole HTTP/1.1 response that ends its connection.
func writePlainError(w io.Writer, status int, reason, requestID string) {
	body := fmt.Sprintf("%d %s: %s\n", status, http.StatusText(status), reason)
	head := fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: %d\r\n",
		status, http.StatusText(status), len(body))
	if requestID != "" {
		head += "X-Request-Id: " + requestID + "\r\n"
	}
	io.WriteString(w, head+"\r\n"+body)
}

// CloseWrite ends our direction, which net/http does before it lingers.
func (c *guardConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// lingerFor is how long a client that was refused, or answered in the middle of
// its body, may go on sending before its connection is reset: a reset at once
// could take our answer with it.
const lingerFor = 500 * time.Millisecond

func (c *guardConn) Close() error {
	err := net.ErrClosed
	c.closeOnce.Do(func() {
		armed := c.armed.Load()
		if armed {
			c.sayRefusal()
		}
		if armed || c.info.abandoned.Load() && !c.raw.Load() {
			c.CloseWrite()
			c.Conn.SetReadDeadline(time.Now().Add(lingerFor))
			io.CopyN(io.Discard, c.Conn, 256<<10)
		}
		err = c.Conn.Close()
	})
	return err
}

// ReadFrom lets net/http and tunnels use splice and sendfile below us.
func (c *guardConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok && !c.armed.Load() {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c}, r)
}
