package upstream

import (
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

// upload is a request body on its way.
type upload interface {
	// begun reports whether any of it was read from the client.
	begun() bool
	// moved is how many bytes came from the client.
	moved() int64
	// failure is what reading the client failed with, if it did.
	failure() error
	// interrupt unblocks whoever waits for the body, from any goroutine.
	interrupt()
	// finish ends reading; where the source can be closed, also a pending
	// read, and waits for that.
	finish()
}

// smallBody is the largest body, in bytes, of which the first piece is read
// before the request goes out: mostly it is all there, and leaves together
// with the head.
const smallBody = 16 << 10

var errBodyTooLong = errors.New("the body is longer than its Content-Length")

// sender moves a request body to an HTTP/1.1 connection, from a goroutine
// beside the one that waits for the answer, which may come early. What is read
// of a small body at once goes out with the head.
type sender struct {
	src     exchange.BodySource
	out     *outgoing
	touched func() // bytes moved
	ended   func() // the whole body was read

	conn    *http1.Conn // while run runs
	n       atomic.Int64
	stopped atomic.Bool
	client  atomic.Pointer[error] // reading the client failed
	done    chan struct{}         // run is over; nil before start
	whole   bool                  // everything is sent; valid once done
	kept    []byte                // what goes out with the head, again if need be

	first   sync.Mutex
	reading bool // readFirst waits for the client
}

func (s *sender) begun() bool  { return s.done != nil }
func (s *sender) moved() int64 { return s.n.Load() }

func (s *sender) failure() error {
	if err := s.client.Load(); err != nil {
		return *err
	}
	return nil
}

// read reads the client once.
func (s *sender) read(p []byte) (int, error) {
	if s.stopped.Load() {
		return 0, errBodyStopped
	}
	n, err := s.src.Read(p)
	if n > 0 {
		s.touched()
		if total := s.n.Add(int64(n)); s.out.size >= 0 && total > s.out.size {
			err = errBodyTooLong
		}
	}
	if err == io.EOF && s.n.Load() < s.out.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF && !s.stopped.Load() {
		s.client.CompareAndSwap(nil, &err)
	}
	return n, err
}

// readFirst reads the first piece of a small body, once.
func (s *sender) readFirst() error {
	if s.kept != nil {
		return nil
	}
	if s.src == nil {
		return io.ErrUnexpectedEOF
	}
	b := make([]byte, s.out.size+1)
	s.first.Lock()
	s.reading = true
	s.first.Unlock()
	n, err := s.read(b)
	s.first.Lock()
	s.reading = false
	s.first.Unlock()
	if err != nil && err != io.EOF {
		return err
	}
	if s.kept = b[:n]; int64(n) == s.out.size {
		s.whole = true
		s.ended()
	}
	return nil
}

// start begins to send over a connection.
func (s *sender) start(c *http1.Conn) {
	s.conn, s.done = c, make(chan struct{})
	go s.run()
}

func (s *sender) run() {
	defer close(s.done)
	if s.src == nil {
		err := io.ErrUnexpectedEOF
		s.client.CompareAndSwap(nil, &err)
		s.conn.Interrupt()
		return
	}
	var kept patient
	defer kept.free()
	if s.out.size > patientSize {
		kept.large = copyBuffers.Get().(*[]byte)
	}
	// Room in front of the data for the size of its chunk, and behind it for
	// the line end.
	const before, after = chunkFraming - 2, 2
	for {
		buf := kept.next()
		room := buf[before : len(buf)-after]
		n, err := s.read(room)
		if n > 0 && (err == nil || err == io.EOF) {
			data := room[:n]
			if s.out.size < 0 {
				data = chunk(buf, before, n)
			}
			if _, failed := s.conn.Write(data); failed != nil {
				return // the answer, or the lack of one, says why
			}
		}
		if err == nil && s.out.size >= 0 && s.n.Load() == s.out.size {
			err = io.EOF
		}
		switch {
		case err == nil:
			kept.took(n)
		case err == io.EOF:
			if s.out.size < 0 {
				if _, failed := s.conn.Write(s.end(buf[:0])); failed != nil {
					return
				}
			}
			s.whole = true
			s.ended()
			return
		default:
			s.conn.Interrupt()
			return
		}
	}
}

// chunk frames n bytes of data at offset at of buf.
func chunk(buf []byte, at, n int) []byte {
	var digits [10]byte
	size := append(strconv.AppendInt(digits[:0], int64(n), 16), "\r\n"...)
	start := at - len(size)
	copy(buf[start:], size)
	copy(buf[at+n:], "\r\n")
	return buf[start : at+n+2]
}

// end is the last chunk, with the announced trailers that came.
func (s *sender) end(b []byte) []byte {
	b = append(b, "0\r\n"...)
	if names := s.out.announced(); len(names) > 0 {
		for name, value := range s.src.Trailers() {
			if containsFold(names, name) && exchange.IsFieldValue(value) {
				b = append(b, name...)
				b = append(b, ": "...)
				b = append(b, value...)
				b = append(b, "\r\n"...)
			}
		}
	}
	return append(b, "\r\n"...)
}

// endFor is how long the rest of a body may take to go out behind a whole
// answer, until its connections are given up: what the client has sent already
// takes no time, and an upload that goes on must not hold the answer back.
const endFor = 50 * time.Millisecond

// sent reports whether everything went out and nobody writes any more.
func (s *sender) sent() bool {
	if s == nil {
		return true
	}
	if s.done == nil {
		return s.whole
	}
	select {
	case <-s.done:
		return s.whole
	default:
	}
	clock := time.NewTimer(endFor)
	defer clock.Stop()
	select {
	case <-s.done:
		return s.whole
	case <-clock.C:
		return false
	}
}

// failsFor is how long a read of the client may take to fail by itself once
// the exchange is interrupted. A client whose read fails ends its context too,
// sometimes before the read returns, and that failure says more than being
// closed by us.
const failsFor = 10 * time.Millisecond

func (s *sender) interrupt() {
	s.first.Lock()
	defer s.first.Unlock()
	s.stopped.Store(true)
	if c, ok := s.src.(io.Closer); ok && s.reading {
		time.AfterFunc(failsFor, func() {
			s.first.Lock()
			defer s.first.Unlock()
			if s.reading {
				c.Close()
			}
		})
	}
}

func (s *sender) finish() {
	if s.done == nil {
		return
	}
	select {
	case <-s.done:
		return
	default:
	}
	s.conn.Interrupt()
	if s.failure() != nil || s.n.Load() == s.out.size {
		<-s.done // it is about to be, and the source need not be closed
		return
	}
	if s.stopped.Swap(true) {
		clock := time.NewTimer(failsFor)
		defer clock.Stop()
		select {
		case <-s.done:
			return
		case <-clock.C:
		}
	}
	if c, ok := s.src.(io.Closer); ok {
		c.Close()
		<-s.done
	}
}
