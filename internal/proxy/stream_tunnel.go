package proxy

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"postern/internal/exchange"
)

// streamConn is the client's end of a tunnel that is a stream of HTTP/2 or
// HTTP/3 (RFC 8441, RFC 9220): what it sends is the request's body, what it
// gets is the response's. A stream belongs to its handler: once that has
// returned (detach), nobody may touch it any more.
type streamConn struct {
	x    *response
	info *ConnInfo

	reading sync.Mutex // held while reading
	writing sync.Mutex // held while writing
	state   sync.Mutex
	over    bool
}

// openStream answers an extended CONNECT with 200 and gives its stream.
func (x *response) openStream(h exchange.HeaderSeq) (net.Conn, error) {
	header := x.w.Header()
	if h != nil {
		for name, value := range h {
			if connectionField(name) || !validHeaderValue(value) {
				continue
			}
			name = http.CanonicalHeaderKey(name)
			if name != "Content-Length" {
				header[name] = append(header[name], value)
			}
		}
	}
	if header["Content-Type"] == nil {
		header["Content-Type"] = nil // nobody must guess
	}
	c := &streamConn{x: x, info: ConnInfoFrom(x.r.Context())}
	x.begun, x.tunneled, x.status, x.stream = true, true, http.StatusOK, c
	// A tunnel lasts longer than a request may take to arrive.
	if err := x.rc.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	x.w.WriteHeader(http.StatusOK)
	if err := x.rc.Flush(); err != nil {
		return nil, err
	}
	return c, nil
}

// Read reads the request's body, of which net/http and quic-go allow one reader
// at a time.
func (c *streamConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if c.isOver() {
		return 0, net.ErrClosed
	}
	return c.x.r.Body.Read(p)
}

func (c *streamConn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if c.isOver() {
		return 0, net.ErrClosed
	}
	n, err := c.x.w.Write(p)
	c.x.size.Add(int64(n))
	if err == nil {
		err = c.x.rc.Flush()
	}
	return n, err
}

func (c *streamConn) isOver() bool {
	c.state.Lock()
	defer c.state.Unlock()
	return c.over
}

// CloseWrite is refused: only the end of the handler ends our direction, so
// that the end of one is the end of both.
func (c *streamConn) CloseWrite() error { return errors.ErrUnsupported }

// Close ends the reading, and a write that is stuck. What was written before
// still arrives.
func (c *streamConn) Close() error {
	c.SetReadDeadline(time.Unix(1, 0))
	if c.writing.TryLock() {
		c.writing.Unlock()
		return nil
	}
	return c.SetWriteDeadline(time.Unix(1, 0))
}

// detach is called by the handler before it returns.
func (c *streamConn) detach() {
	c.state.Lock()
	c.over = true
	c.state.Unlock()
	if !c.writing.TryLock() {
		c.x.rc.SetWriteDeadline(time.Unix(1, 0))
		c.writing.Lock()
	}
	c.writing.Unlock()
}

func (c *streamConn) SetReadDeadline(t time.Time) error {
	c.state.Lock()
	defer c.state.Unlock()
	if c.over {
		return net.ErrClosed
	}
	return c.x.rc.SetReadDeadline(t)
}

func (c *streamConn) SetWriteDeadline(t time.Time) error {
	c.state.Lock()
	defer c.state.Unlock()
	if c.over {
		return net.ErrClosed
	}
	return c.x.rc.SetWriteDeadline(t)
}

func (c *streamConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *streamConn) LocalAddr() net.Addr {
	if c.info == nil {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(c.info.Local)
}

func (c *streamConn) RemoteAddr() net.Addr {
	if c.info == nil {
		return &net.TCPAddr{}
	}
	return net.TCPAddrFromAddrPort(c.info.Direct)
}
