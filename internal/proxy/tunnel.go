package proxy

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// errCut is what both directions of a cut tunnel see.
var errCut = errors.New("the stream was cut")

// cuttable is the client's end of a tunnel that can be cut from another
// goroutine. A WebSocket is told why: it gets a close frame (RFC 6455 §7.4.1)
// at the next frame boundary towards the client.
type cuttable struct {
	net.Conn
	websocket bool

	reason atomic.Pointer[goodbye] // set: cut

	mu       sync.Mutex // held while writing
	said     bool       // the close frame was sent
	frames   frameTracker
	draining sync.Once
	closed   sync.Once
}

const (
	// cutWait is how long a cut waits for a frame boundary, and how long the
	// client has to take the close frame in.
	cutWait = time.Second

	policyClosure    = 1008
	goingAwayClosure = 1001
)

// goodbye is why a tunnel is cut.
type goodbye struct {
	code uint16
	text string
}

// cut ends the tunnel. It returns at once, or as soon as a close frame was
// taken in.
func (c *cuttable) cut(code uint16, text string) {
	if !c.reason.CompareAndSwap(nil, &goodbye{code, text}) {
		return
	}
	// Whoever writes or reads now is stopped, however slow the other end is.
	// Nothing passes from here on.
	time.AfterFunc(cutWait, func() { c.reallyClose() })
	if c.mu.TryLock() {
		c.sayGoodbye()
		c.mu.Unlock()
	} // else the writer says it when its frame is out
	c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// politely reports whether a cut tunnel was ended by a close frame. If the cut
// came just behind the last write, the frame is sent now.
func (c *cuttable) politely() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason.Load() != nil {
		c.sayGoodbye()
	}
	return c.said
}

// sayGoodbye sends the close frame if the client is between frames. c.mu is
// held.
func (c *cuttable) sayGoodbye() {
	if !c.websocket || c.said || !c.frames.boundary() {
		return
	}
	why := c.reason.Load()
	text := why.text
	if len(text) > 123 {
		text = text[:123]
	}
	frame := append(make([]byte, 0, 4+len(text)), 0x88, byte(2+len(text)))
	frame = binary.BigEndian.AppendUint16(frame, why.code)
	frame = append(frame, text...)
	c.Conn.SetWriteDeadline(time.Now().Add(cutWait))
	_, err := c.Conn.Write(frame)
	c.said = err == nil
	c.websocket = false // no more
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		cw.CloseWrite()
	}
}

func (c *cuttable) Read(p []byte) (int, error) {
	if c.reason.Load() != nil {
		return 0, errCut
	}
	n, err := c.Conn.Read(p)
	if c.reason.Load() != nil {
		return 0, errCut
	}
	return n, err
}

func (c *cuttable) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reason.Load() != nil {
		if !c.websocket {
			return 0, errCut
		}
		n := c.frames.feed(p, true)
		n, err := c.Conn.Write(p[:n])
		if err == nil {
			err = errCut
			c.sayGoodbye()
		}
		return n, err
	}
	n, err := c.Conn.Write(p)
	if c.websocket {
		c.frames.feed(p[:n], false)
	}
	if c.reason.Load() != nil {
		c.sayGoodbye()
		if err == nil {
			err = errCut
		}
	}
	return n, err
}

// CloseWrite ends our direction.
func (c *cuttable) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Close closes the connection, or after a cut leaves that to the end of
// cutWait, so that a reset does not overtake the close frame.
func (c *cuttable) Close() error {
	if c.reason.Load() != nil {
		c.draining.Do(func() {
			go func() {
				c.Conn.SetReadDeadline(time.Now().Add(cutWait))
				io.CopyN(io.Discard, c.Conn, 1<<20)
				c.politely() // a close frame under way is not cut short, except by cutWait
				c.reallyClose()
			}()
		})
		return nil
	}
	return c.reallyClose()
}

func (c *cuttable) reallyClose() (err error) {
	c.closed.Do(func() { err = c.Conn.Close() })
	return err
}

// frameTracker follows WebSocket frames (RFC 6455 §5.2) in a byte stream.
type frameTracker struct {
	head [14]byte
	have int    // bytes of head read
	left uint64 // payload bytes to come
}

// boundary reports whether the stream is between two frames.
func (t *frameTracker) boundary() bool { return t.have == 0 && t.left == 0 }

// feed follows p and returns how many bytes it took: all of them, or with
// stop those up to the first boundary.
func (t *frameTracker) feed(p []byte, stop bool) int {
	i := 0
	for i < len(p) {
		if stop && t.boundary() {
			return i
		}
		if t.left > 0 {
			n := min(uint64(len(p)-i), t.left)
			t.left -= n
			i += int(n)
			continue
		}
		t.head[t.have] = p[i]
		t.have++
		i++
		need := 2
		if t.have >= 2 {
			switch t.head[1] & 0x7F {
			case 126:
				need += 2
			case 127:
				need += 8
			}
			if t.head[1]&0x80 != 0 {
				need += 4
			}
		}
		if t.have < 2 || t.have < need {
			continue
		}
		switch n := t.head[1] & 0x7F; n {
		case 126:
			t.left = uint64(binary.BigEndian.Uint16(t.head[2:]))
		case 127:
			t.left = binary.BigEndian.Uint64(t.head[2:])
		default:
			t.left = uint64(n)
		}
		t.have = 0
	}
	return i
}
