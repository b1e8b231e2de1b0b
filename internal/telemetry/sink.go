package telemetry

import (
	"io"
	"sync"
	"time"
)

// Sink gathers log lines and writes them in large pieces: a write system call
// for every request would cost more than the line itself. Lines stay whole and
// in order. What is gathered is written after at most the interval, when
// sinkSize bytes have come together, or by Flush.
type Sink struct {
	mu       sync.Mutex
	w        io.Writer
	buf      []byte
	interval time.Duration
	armed    bool
	closed   bool
}

const sinkSize = 32 << 10

// NewSink makes a Sink that writes to w at least every interval. An interval
// of zero writes every line at once.
func NewSink(w io.Writer, interval time.Duration) *Sink {
	return &Sink{w: w, interval: interval}
}

func asSink(w io.Writer) *Sink {
	s, _ := w.(*Sink)
	return s
}

// Write takes one or more whole lines. It never fails: a log that cannot be
// written must not stop a request.
func (s *Sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.interval <= 0 || s.closed {
		_, _ = s.w.Write(p)
		return len(p), nil
	}
	s.buf = append(s.buf, p...)
	if len(s.buf) >= sinkSize {
		s.flush()
		return len(p), nil
	}
	if !s.armed {
		s.armed = true
		time.AfterFunc(s.interval, s.Flush)
	}
	return len(p), nil
}

// Flush writes what is gathered.
func (s *Sink) Flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	s.flush()
}

func (s *Sink) flush() {
	if len(s.buf) > 0 {
		_, _ = s.w.Write(s.buf)
		s.buf = s.buf[:0]
	}
}

// Close writes what is gathered; later lines are written at once.
func (s *Sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.flush()
	return nil
}
