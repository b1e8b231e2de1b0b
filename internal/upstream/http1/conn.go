// Package http1 speaks HTTP/1.1 with an upstream over one connection, in the
// goroutine that asks: no reader beside it, no header map, and no second
// opinion about where an answer ends.
//
//	c := http1.NewConn(conn)
//	c.Write(head)                       // a whole request, or its head
//	answer, err := c.ReadHead(&expect)  // 1xx one by one, then the final one
//	for { data, err := c.Next() }       // the body, as it comes
//	if c.Reusable() && c.Quiet() { ... } // another request may follow
//
// It reads strictly (RFC 9112): what two parsers could read in two ways is an
// error, because whoever disagrees about the end of an answer hands one
// visitor the bytes of another. After any error the connection is not
// reusable.
package http1

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"postern/internal/exchange"
)

// Limits on an answer's head; the same as for requests.
const (
	MaxHeadBytes  = 128 << 10
	MaxHeadFields = 1000
)

// MaxInterim bounds the 1xx answers to one request.
const MaxInterim = 64

// Malformed is an answer that breaks the protocol.
type Malformed struct{ Reason string }

func (e *Malformed) Error() string { return e.Reason }

func malformed(format string, args ...any) error { return &Malformed{fmt.Sprintf(format, args...)} }

// errBytesAfterEnd: the upstream says more than it was asked.
var errBytesAfterEnd = malformed("bytes follow the end of the response")

// Conn is a connection to an upstream. One goroutine uses it, but Write, Close
// and SetDeadline may be called from others meanwhile.
type Conn struct {
	net.Conn
	raw    syscall.RawConn // of the socket beneath; nil if it has none
	secure bool            // there is TLS between raw and Conn

	look  func(fd uintptr) bool // made once: peek runs for every request
	one   [1]byte
	saw   int
	errno error

	head    []byte  // buffer of heads
	pooled  *[]byte // where head came from, if it goes back there
	in      []byte  // read and not used yet; in head or in body
	body    *[]byte
	scanned int // bytes of in that cannot be the end of the head

	full, little bool // what the last read of the body brought

	phase    phase
	left     int64 // of a body of known length
	chunks   exchange.ChunkScanner
	trailers []byte // text of the trailer section
	interim  int
	begun    int  // exchanges
	keep     bool // the upstream lets the connection stay
	failed   bool
}

type phase uint8

const (
	idle     phase = iota
	inHead         // a request was begun
	inLength       // body of known length
	inChunks       // chunked body
	inClose        // body that ends with the connection
	ended          // the answer is whole
	tunnel         // after 101
)

// NewConn begins to speak HTTP/1.1 over c: a socket, or a connection over one
// that tells it by NetConn, as *tls.Conn does.
func NewConn(c net.Conn) *Conn {
	out := &Conn{Conn: c}
	out.look = func(fd uintptr) bool {
		out.saw, _, out.errno = syscall.Recvfrom(int(fd), out.one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	}
	for beneath := c; ; {
		if _, ok := beneath.(*tls.Conn); ok {
			out.secure = true
		}
		if s, ok := beneath.(syscall.Conn); ok {
			out.raw, _ = s.SyscallConn()
		}
		wrapper, ok := beneath.(interface{ NetConn() net.Conn })
		if !ok {
			return out
		}
		beneath = wrapper.NetConn()
	}
}

// Begin starts an exchange. The connection must be new or reusable.
func (c *Conn) Begin() {
	c.begun++
	c.phase, c.interim, c.keep = inHead, 0, false
	c.full, c.little = false, false
	c.trailers = c.trailers[:0]
}

// Used reports whether an exchange was begun before the one under way: the
// upstream may have closed such a connection while it rested.
func (c *Conn) Used() bool { return c.begun > 1 }

// Reusable reports whether the last answer ended exactly and the upstream lets
// the connection stay. Whether the request was sent whole is the caller's to
// know.
func (c *Conn) Reusable() bool {
	return !c.failed && c.keep && c.phase == ended && len(c.in) == 0
}

// Rest gives back what an idle connection does not need. Whatever Next gave
// is used up by then.
func (c *Conn) Rest() {
	c.release()
	c.in, c.phase = nil, idle
	c.dropHead()
	c.trailers = nil
}

func (c *Conn) dropHead() {
	if c.pooled != nil {
		heads.Put(c.pooled)
	}
	c.head, c.pooled = nil, nil
}

// Fail makes the connection unusable for another request.
func (c *Conn) Fail() { c.failed = true }

// Quiet reports whether nothing has arrived on an idle connection: neither its
// end nor an answer to a question that nobody asked. Of a connection without a
// socket that is never known.
func (c *Conn) Quiet() bool {
	if c.raw == nil {
		return false // nobody can tell
	}
	seen := c.peek()
	if !c.secure || seen == theEnd {
		return seen == nothing
	}
	// TLS reads ahead: what came behind the last answer may have left the
	// socket and wait there, so it is asked for what it has. It also brings
	// session tickets at any time, which are used up here. Whatever else it
	// brings is not for us.
	until := time.Unix(1, 0)
	if seen == something {
		until = time.Now().Add(2 * time.Millisecond)
	}
	c.Conn.SetReadDeadline(until)
	n, err := c.Conn.Read(c.one[:])
	c.Conn.SetReadDeadline(time.Time{})
	var timeout interface{ Timeout() bool }
	return n == 0 && errors.As(err, &timeout) && timeout.Timeout() && c.peek() == nothing
}

type arrived uint8

const (
	theEnd arrived = iota
	something
	nothing
)

// peek looks at what has arrived on the socket, without waiting or taking it.
func (c *Conn) peek() arrived {
	err := c.raw.Read(c.look)
	switch {
	case err == nil && (c.errno == syscall.EAGAIN || c.errno == syscall.EWOULDBLOCK):
		return nothing
	case err != nil || c.errno != nil || c.saw == 0:
		return theEnd
	}
	return something
}

// Interrupt makes pending and later reads and writes fail, from any goroutine.
func (c *Conn) Interrupt() { c.Conn.SetDeadline(time.Unix(1, 0)) }

const (
	headSize = 4 << 10
	bodySize = 32 << 10
)

var heads = sync.Pool{New: func() any {
	b := make([]byte, headSize)
	return &b
}}

var bodies = sync.Pool{New: func() any {
	b := make([]byte, bodySize)
	return &b
}}

func (c *Conn) release() {
	if c.body != nil {
		bodies.Put(c.body)
		c.body = nil
	}
}

func (c *Conn) fail(err error) error {
	c.failed = true
	return err
}

// more reads on into the head buffer, behind what is there.
func (c *Conn) more() error {
	if len(c.in) == 0 {
		if c.head == nil {
			c.pooled = heads.Get().(*[]byte)
			c.head = *c.pooled
		}
		c.in = c.head[:0]
	}
	if len(c.in) == cap(c.in) {
		// Either the head is large, or the buffer's beginning is used up.
		buf := c.head
		if len(c.in)*2 > len(buf) {
			buf = make([]byte, 2*len(buf))
		}
		n := copy(buf, c.in)
		c.head, c.in = buf, buf[:n]
	}
	n, err := c.Conn.Read(c.in[len(c.in):cap(c.in)])
	if n > 0 {
		c.in = c.in[:len(c.in)+n]
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	if err == io.EOF && len(c.in) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}
