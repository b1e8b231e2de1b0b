package handover

import (
	"bytes"
	"context"
	"encoding/gob"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"postern/internal/record"
)

// OneConn is a listener that gives one connection and then waits until that
// is closed.
type OneConn struct {
	mu   sync.Mutex
	conn net.Conn
	addr net.Addr
	done chan struct{}
	once sync.Once
}

// NewOneConn makes a listener of a connection.
func NewOneConn(c net.Conn) *OneConn {
	l := &OneConn{addr: c.LocalAddr(), done: make(chan struct{})}
	l.conn = &closing{Conn: c, l: l}
	return l
}

type closing struct {
	net.Conn
	l *OneConn
}

func (c *closing) Close() error {
	c.l.Close()
	return c.Conn.Close()
}

// Accept implements net.Listener.
func (l *OneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.conn
	l.conn = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (l *OneConn) Close() error { l.once.Do(func() { close(l.done) }); return nil }

// Addr implements net.Listener.
func (l *OneConn) Addr() net.Addr { return l.addr }

// Done is closed when the connection is.
func (l *OneConn) Done() <-chan struct{} { return l.done }

// Dial makes an HTTP client of a connection. All requests go over it; when it
// is lost, they fail.
func Dial(ctx context.Context, c net.Conn) (*http.ClientConn, error) {
	t := &http.Transport{Protocols: cleartext2(), DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	return t.NewClientConn(ctx, "http", "successor:80")
}

// Remote is the store that a [Handler] serves.
type Remote struct {
	client http.RoundTripper
	base   string
	ctx    context.Context
	cancel context.CancelFunc
}

var _ record.Store = (*Remote)(nil)

// NewRemote makes a store of a Handler at base, a URL without a final slash.
func NewRemote(client http.RoundTripper, base string) *Remote {
	r := &Remote{client: client, base: base}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// post sends a call. done must be called when its answer is read.
func (r *Remote) post(ctx context.Context, name string, body io.Reader) (res *http.Response, done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if r.ctx.Err() != nil {
		return nil, nil, fmt.Errorf("%w: it was closed; the process is stopping", record.ErrUnavailable)
	}
	call, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(r.ctx, cancel)
	req, err := http.NewRequestWithContext(call, http.MethodPost, r.base+"/"+name, body)
	if err == nil {
		res, err = r.client.RoundTrip(req)
	}
	if err == nil && res.StatusCode != http.StatusOK {
		res.Body.Close()
		err = fmt.Errorf("it answered %s to %s", res.Status, name)
	}
	if err != nil {
		stop()
		cancel()
		return nil, nil, lost(ctx, err)
	}
	return res, func() { stop(); cancel(); res.Body.Close() }, nil
}

func (r *Remote) call(ctx context.Context, name string, q *request) (a answer, err error) {
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(q); err != nil {
		return answer{}, fmt.Errorf("%w: %w", record.ErrInvalid, err)
	}
	res, done, err := r.post(ctx, name, &body)
	if err != nil {
		return answer{}, err
	}
	defer done()
	if err := gob.NewDecoder(res.Body).Decode(&a); err != nil {
		return answer{}, lost(ctx, err)
	}
	if a.Error != nil {
		return answer{}, a.Error
	}
	return a, nil
}

// one is the single record of an answer.
func (a answer) one() (*record.Record, error) {
	if recs := fromWire(a.Records); len(recs) == 1 && recs[0] != nil {
		return recs[0], nil
	}
	return nil, fmt.Errorf("%w: an answer without its record", record.ErrUnavailable)
}

// Get implements record.Reader.
func (r *Remote) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	a, err := r.call(ctx, "get", &request{Type: typ, ID: id})
	if err != nil {
		return nil, err
	}
	return a.one()
}

// List implements record.Reader. A Match is applied here, to the whole list.
func (r *Remote) List(ctx context.Context, typ string, q record.Query) (record.Page, error) {
	if q.Match == nil {
		a, err := r.call(ctx, "list", &request{Type: typ, Text: q.Text, Offset: q.Offset, Limit: q.Limit})
		return record.Page{Records: fromWire(a.Records), Total: a.Total, At: a.Versions}, err
	}
	a, err := r.call(ctx, "list", &request{Type: typ, Text: q.Text})
	if err != nil {
		return record.Page{}, err
	}
	p := record.Page{At: a.Versions}
	for _, rec := range fromWire(a.Records) {
		if !q.Keeps(rec) {
			continue
		}
		if p.Total >= q.Offset && (q.Limit <= 0 || len(p.Records) < q.Limit) {
			p.Records = append(p.Records, rec)
		}
		p.Total++
	}
	return p, nil
}

// Find implements record.Reader.
func (r *Remote) Find(ctx context.Context, typ, index, value string) ([]*record.Record, error) {
	a, err := r.call(ctx, "find", &request{Type: typ, Index: index, Value: value})
	return fromWire(a.Records), err
}

// Types implements record.Reader.
func (r *Remote) Types(ctx context.Context) ([]string, error) {
	a, err := r.call(ctx, "types", &request{})
	return a.Types, err
}

// Options implements record.Reader.
func (r *Remote) Options(ctx context.Context, typ string) (record.Options, error) {
	a, err := r.call(ctx, "options", &request{Type: typ})
	return a.Options, err
}

// ServerVersion implements record.Reader.
func (r *Remote) ServerVersion(ctx context.Context) (record.Versions, error) {
	a, err := r.call(ctx, "version", &request{})
	return a.Versions, err
}

// Put implements record.Writer.
func (r *Remote) Put(ctx context.Context, by record.Actor, recs ...*record.Record) ([]*record.Record, error) {
	for _, rec := range recs {
		if err := rec.Check(); err != nil {
			return nil, err
		}
	}
	a, err := r.call(ctx, "put", &request{By: by, Records: toWire(recs...)})
	return fromWire(a.Records), err
}

// Update implements record.Writer.
func (r *Remote) Update(ctx context.Context, by record.Actor, rec *record.Record) (*record.Record, error) {
	if err := rec.Check(); err != nil {
		return nil, err
	}
	a, err := r.call(ctx, "update", &request{By: by, Records: toWire(rec)})
	if err != nil {
		return nil, err
	}
	return a.one()
}

// Delete implements record.Writer.
func (r *Remote) Delete(ctx context.Context, by record.Actor, typ string, ids ...string) error {
	_, err := r.call(ctx, "delete", &request{By: by, Type: typ, IDs: ids})
	return err
}

// SetOptions implements record.Writer.
func (r *Remote) SetOptions(ctx context.Context, typ string, o record.Options) error {
	_, err := r.call(ctx, "set-options", &request{Type: typ, Options: o})
	return err
}

// Acquire implements record.Leaser.
func (r *Remote) Acquire(ctx context.Context, name string, ttl time.Duration) (record.Lease, error) {
	a, err := r.call(ctx, "acquire", &request{ID: name, TTL: ttl})
	return a.Lease, err
}

// Renew implements record.Leaser.
func (r *Remote) Renew(ctx context.Context, l record.Lease, ttl time.Duration) (record.Lease, error) {
	a, err := r.call(ctx, "renew", &request{Lease: l, TTL: ttl})
	return a.Lease, err
}

// Release implements record.Leaser.
func (r *Remote) Release(ctx context.Context, l record.Lease) error {
	_, err := r.call(ctx, "release", &request{Lease: l})
	return err
}

// NewServerVersion implements record.Admin.
func (r *Remote) NewServerVersion(ctx context.Context, by record.Actor) (record.Versions, error) {
	a, err := r.call(ctx, "new-version", &request{By: by})
	return a.Versions, err
}

// Clear implements record.Admin.
func (r *Remote) Clear(ctx context.Context, by record.Actor) (record.Versions, error) {
	a, err := r.call(ctx, "clear", &request{By: by})
	return a.Versions, err
}

// Watch implements record.Watcher.
func (r *Remote) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	asks, body := io.Pipe()
	s := &stream{asks: make(chan struct{}, 1), events: make(chan wireEvent, 2), closed: make(chan struct{})}
	go func() {
		enc := gob.NewEncoder(body)
		err := enc.Encode(&request{Type: typ, Cursor: after})
		for err == nil {
			select {
			case <-s.asks:
				err = enc.Encode(true)
			case <-s.closed:
				err = io.EOF
			}
		}
		body.CloseWithError(err)
	}()
	// The stream outlives the call: only Close and the end of the store end it.
	res, done, err := r.post(context.WithoutCancel(ctx), "watch", asks)
	if err != nil {
		s.Close()
		return nil, err
	}
	s.done = done
	dec := gob.NewDecoder(res.Body)
	var first wireEvent
	if err := dec.Decode(&first); err != nil {
		s.Close()
		return nil, lost(ctx, err)
	}
	if first.Error != nil {
		s.Close()
		return nil, first.Error
	}
	go s.read(dec)
	return s, nil
}

// Close implements record.Store for this end: the other keeps its store.
func (r *Remote) Close() error {
	r.cancel()
	return nil
}

// stream is a running watch.
type stream struct {
	asks   chan struct{}
	asked  bool
	events chan wireEvent
	done   func()
	once   sync.Once
	closed chan struct{}
	err    error
}

// read gives on what comes: at most the event asked for and an error.
func (s *stream) read(dec *gob.Decoder) {
	for {
		var ev wireEvent
		if err := dec.Decode(&ev); err != nil {
			ev = wireEvent{Error: &wireError{Kind: "unavailable", Text: lost(context.Background(), err).Error()}}
		}
		s.events <- ev
		if ev.Error != nil {
			return
		}
	}
}

// Next implements record.Stream.
func (s *stream) Next(ctx context.Context) (record.Event, error) {
	if err := ctx.Err(); err != nil {
		return record.Event{}, err
	}
	select {
	case <-s.closed:
		s.err = fmt.Errorf("%w: the watch was closed", record.ErrUnavailable)
	default:
	}
	if s.err != nil {
		return record.Event{}, s.err
	}
	if !s.asked {
		s.asked = true
		s.asks <- struct{}{}
	}
	select {
	case <-ctx.Done():
		return record.Event{}, ctx.Err()
	case <-s.closed:
		s.err = fmt.Errorf("%w: the watch was closed", record.ErrUnavailable)
		return record.Event{}, s.err
	case line := <-s.events:
		s.asked = false
		if line.Error != nil {
			s.err = line.Error
			return record.Event{}, s.err
		}
		ev := record.Event{Kind: line.Kind, Cursor: line.Cursor}
		if line.Record != nil {
			ev.Record = fromWire([]*wireRecord{line.Record})[0]
		}
		if line.AsOf != 0 {
			ev.AsOf = fromClock(line.AsOf)
		}
		return ev, nil
	}
}

// Close implements record.Stream.
func (s *stream) Close() error {
	s.once.Do(func() {
		close(s.closed)
		if s.done != nil {
			s.done()
		}
	})
	return nil
}
