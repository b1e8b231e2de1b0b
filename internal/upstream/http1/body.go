package http1

import (
	"errors"
	"io"

	"postern/internal/exchange"
)

// Next gives the next piece of the body, never empty, which is valid until the
// following call. io.EOF is the body's proper end; what comes to less than
// that is io.ErrUnexpectedEOF or *Malformed.
func (c *Conn) Next() ([]byte, error) {
	for {
		switch c.phase {
		case inLength:
			if len(c.in) == 0 {
				if err := c.fill(); err != nil {
					return nil, brokenOff(err)
				}
			}
			data := c.in
			if int64(len(data)) > c.left {
				return nil, c.fail(errBytesAfterEnd)
			}
			c.in = nil
			if c.left -= int64(len(data)); c.left == 0 {
				c.phase = ended
			}
			return data, nil
		case inChunks:
			if len(c.in) == 0 {
				if err := c.fill(); err != nil {
					return nil, brokenOff(err)
				}
			}
			data, err := c.chunk()
			if err != nil {
				return nil, c.fail(err)
			}
			if len(data) > 0 {
				return data, nil
			}
		case inClose:
			if len(c.in) == 0 {
				// The connection's proper end only: a TLS record that breaks
				// off is io.ErrUnexpectedEOF (RFC 9112 §9.8).
				switch err := c.fill(); {
				case err == io.EOF:
					c.phase = ended
					continue
				case err != nil:
					return nil, err
				}
			}
			data := c.in
			c.in = nil
			return data, nil
		default:
			c.release()
			return nil, io.EOF
		}
	}
}

// fill reads some of the body, and whatever stands behind it: a body that is
// followed by anything fails.
//
// A stream that mostly waits makes do with the buffer of the head: ten thousand
// of them then cost what they hold, not what they might carry.
func (c *Conn) fill() error {
	buf := c.head
	switch {
	case c.body != nil && c.little && c.phase != inLength:
		c.release()
	case c.body == nil && (c.full || c.phase == inLength && c.left > int64(len(buf))):
		c.body = bodies.Get().(*[]byte)
	}
	if c.body != nil {
		buf = *c.body
	}
	n, err := c.Conn.Read(buf)
	c.full, c.little = n == len(buf), n < headSize/4
	if n > 0 {
		c.in = buf[:n]
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// brokenOff is the end of a connection in the midst of a body.
func brokenOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Ready reports whether Next has a piece, or the end of the body, at hand: it
// will not wait for the upstream.
func (c *Conn) Ready() bool {
	switch c.phase {
	case inLength, inClose:
		return len(c.in) > 0
	case inChunks:
		probe := c.chunks
		for in := c.in; len(in) > 0; {
			data, n, done, err := probe.Next(in)
			if len(data) > 0 || done || err != nil {
				return true
			}
			in = in[n:]
		}
		return false
	}
	return true
}

// chunk takes framing, and at most one run of data, out of what was read.
func (c *Conn) chunk() ([]byte, error) {
	trailing := c.chunks.InTrailers()
	data, n, done, err := c.chunks.Next(c.in)
	if err != nil {
		return nil, malformed("%v", err)
	}
	if trailing {
		c.trailers = append(c.trailers, c.in[:n]...)
	}
	c.in = c.in[n:]
	if done {
		if len(c.in) > 0 {
			return nil, errBytesAfterEnd
		}
		c.phase = ended
	}
	return data, nil
}

// Trailers are the fields behind a chunked body that has ended, without those
// that frame, route or belong to this connection.
func (c *Conn) Trailers() []exchange.Field {
	if len(c.trailers) <= 2 {
		return nil
	}
	var out []exchange.Field
	for text := string(c.trailers); len(text) > 2; {
		line, rest := cutLine(text)
		text = rest
		if name, value, err := exchange.ParseField(line); err == nil && kindOf(name) == endToEnd {
			out = append(out, exchange.Field{Name: name, Value: value})
		}
	}
	return out
}

func cutLine(s string) (line, rest string) {
	for i := 0; i < len(s); i++ {
		if s[i] == '\r' && i+1 < len(s) && s[i+1] == '\n' {
			return s[:i], s[i+2:]
		}
	}
	return s, ""
}

// Read reads from a connection after 101: first what came with the head.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.in) > 0 {
		n := copy(p, c.in)
		if c.in = c.in[n:]; len(c.in) == 0 {
			c.in = nil
			c.dropHead()
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends our direction of a connection after 101.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
