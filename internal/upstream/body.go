package upstream

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"postern/internal/exchange"
)

// copySize is the size of pooled copy buffers.
const copySize = 32 << 10

var copyBuffers = sync.Pool{New: func() any {
	b := make([]byte, copySize)
	return &b
}}

// requestBody carries a request body to Transport. It reads the client in a
// goroutine of its own, so that Transport, which waits for its writer, can be
// stopped at any moment, however long the client is silent.
type requestBody struct {
	src      exchange.BodySource
	size     int64 // -1 unknown
	expect   bool  // wait for 100 (Continue) from upstream before reading
	trailers http.Header
	touched  func() // bytes moved
	ended    func() // whole body read

	parts   chan bodyPart
	stopped chan struct{}
	done    chan struct{} // the reading goroutine is gone
	start   sync.Once
	stop    sync.Once
	started atomic.Bool
	drained atomic.Bool // the source ended or failed: nothing reads it any more
	n       atomic.Int64

	// Whether the upstream spoke, and said Continue, before we sent the body.
	spoke, goAhead atomic.Bool

	rest []byte
	last error
	sent []byte // what Transport has read, while it is little
	much bool   // it was more

	mu  sync.Mutex
	err error // of the client
}

type bodyPart struct {
	p   []byte
	err error
}

func newRequestBody(src exchange.BodySource, size int64) *requestBody {
	return &requestBody{
		src:     src,
		size:    size,
		parts:   make(chan bodyPart),
		stopped: make(chan struct{}),
		done:    make(chan struct{}),
	}
}

// Read is called by Transport.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.expect && !b.goAhead.Load() && b.spoke.Load() {
		// A final answer came instead of 100 (Continue). Nothing is sent, and
		// Transport closes the connection behind the answer.
		<-b.stopped
		return 0, errBodyStopped
	}
	b.started.Store(true)
	b.start.Do(func() {
		if b.src == nil {
			close(b.done)
			b.last = io.ErrUnexpectedEOF
			return
		}
		go b.readAll()
	})
	for len(b.rest) == 0 {
		if b.last != nil {
			return 0, b.last
		}
		select {
		case part := <-b.parts:
			b.rest, b.last = part.p, part.err
		case <-b.stopped:
			return 0, errBodyStopped
		}
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	if b.much = b.much || len(b.sent)+n > replaySize; b.much {
		b.sent = nil
	} else {
		b.sent = append(b.sent, p[:n]...)
	}
	return n, nil
}

// replaySize is how much of a body is kept, in case its connection turns out
// to be one that the upstream has closed meanwhile.
const replaySize = 16 << 10

// readAll reads the client into two buffers in turn: a part is handed over
// only when the one before it was used up.
func (b *requestBody) readAll() {
	defer close(b.done)
	one, two := copyBuffers.Get().(*[]byte), copyBuffers.Get().(*[]byte)
	defer func() {
		// Transport may still copy from a buffer unless it took the last part.
		select {
		case <-b.stopped:
		default:
			copyBuffers.Put(one)
			copyBuffers.Put(two)
		}
	}()
	for {
		n, err := b.src.Read(*one)
		if n > 0 {
			b.n.Add(int64(n))
			b.touched()
		}
		if err == nil && b.n.Load() == b.size {
			err = io.EOF // which some tell in a read of its own
		}
		if err != nil {
			b.drained.Store(true)
			if err == io.EOF {
				b.copyTrailers()
				b.ended()
			} else {
				b.mu.Lock()
				b.err = err
				b.mu.Unlock()
			}
		}
		if n > 0 || err != nil {
			// The copy that err ends with belongs to the part.
			part := bodyPart{(*one)[:n], err}
			if err != nil {
				part.p = append([]byte(nil), part.p...)
			}
			select {
			case b.parts <- part:
			case <-b.stopped:
				return
			}
		}
		if err != nil {
			return
		}
		one, two = two, one
	}
}

// copyTrailers takes over the announced trailers that came.
func (b *requestBody) copyTrailers() {
	if len(b.trailers) == 0 {
		return
	}
	for name, value := range b.src.Trailers() {
		k := http.CanonicalHeaderKey(name)
		if _, announced := b.trailers[k]; announced && exchange.IsFieldValue(value) {
			b.trailers[k] = append(b.trailers[k], value)
		}
	}
}

func (b *requestBody) begun() bool  { return b.started.Load() }
func (b *requestBody) moved() int64 { return b.n.Load() }

func (b *requestBody) failure() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// Close is Transport's; the body may yet be sent again elsewhere.
func (b *requestBody) Close() error { return nil }

// again lets Transport send the body over another connection, as long as what
// it read of it is still here and none of it can have been seen: nothing was
// written to the first connection, or, over HTTP/2, the upstream says that it
// did not begin with the request. Its writer is done.
func (b *requestBody) again() (io.ReadCloser, error) {
	if b.much {
		return nil, errBodyStopped
	}
	return &replay{b, b.sent}, nil
}

// replay is a body from its beginning.
type replay struct {
	*requestBody
	kept []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.kept) > 0 {
		n := copy(p, r.kept)
		r.kept = r.kept[n:]
		return n, nil
	}
	return r.requestBody.Read(p)
}

// finish ends reading. Where the source can be closed, a pending read of the
// client is interrupted and waited for.
func (b *requestBody) finish() {
	if b == nil {
		return
	}
	b.stop.Do(func() { close(b.stopped) })
	if !b.started.Load() {
		return
	}
	if b.drained.Load() {
		// Closing it now could end the client's next request instead.
		<-b.done
		return
	}
	select {
	case <-b.done:
		return
	default:
	}
	if c, ok := b.src.(io.Closer); ok {
		c.Close()
		<-b.done
	}
}

// interrupt unblocks whoever waits for the body, without waiting for the
// client; finish follows.
func (b *requestBody) interrupt() {
	if b != nil {
		b.stop.Do(func() { close(b.stopped) })
	}
}
