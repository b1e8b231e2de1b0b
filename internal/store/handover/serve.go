package handover

import (
	"context"
	"encoding/gob"
	"net/http"
	"time"

	"postern/internal/record"
)

// Handler serves a store to [Remote]. Whoever reaches it may do everything:
// it belongs on a connection that nobody else holds.
func Handler(s record.Store) http.Handler {
	mux := http.NewServeMux()
	call := func(name string, f func(ctx context.Context, q *request) (answer, error)) {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) {
			var q request
			var a answer
			err := gob.NewDecoder(r.Body).Decode(&q)
			if err == nil {
				a, err = f(r.Context(), &q)
			}
			if err != nil {
				a = answer{Error: toWireError(err)}
			}
			_ = gob.NewEncoder(w).Encode(a)
		})
	}
	call("get", func(ctx context.Context, q *request) (answer, error) {
		rec, err := s.Get(ctx, q.Type, q.ID)
		return answer{Records: toWire(rec)}, err
	})
	call("list", func(ctx context.Context, q *request) (answer, error) {
		p, err := s.List(ctx, q.Type, record.Query{Text: q.Text, Offset: q.Offset, Limit: q.Limit})
		return answer{Records: toWire(p.Records...), Total: p.Total, Versions: p.At}, err
	})
	call("find", func(ctx context.Context, q *request) (answer, error) {
		recs, err := s.Find(ctx, q.Type, q.Index, q.Value)
		return answer{Records: toWire(recs...)}, err
	})
	call("types", func(ctx context.Context, _ *request) (answer, error) {
		types, err := s.Types(ctx)
		return answer{Types: types}, err
	})
	call("options", func(ctx context.Context, q *request) (answer, error) {
		o, err := s.Options(ctx, q.Type)
		return answer{Options: o}, err
	})
	call("version", func(ctx context.Context, _ *request) (answer, error) {
		v, err := s.ServerVersion(ctx)
		return answer{Versions: v}, err
	})
	call("put", func(ctx context.Context, q *request) (answer, error) {
		recs, err := s.Put(ctx, q.By, fromWire(q.Records)...)
		return answer{Records: toWire(recs...)}, err
	})
	call("update", func(ctx context.Context, q *request) (answer, error) {
		var rec *record.Record
		if list := fromWire(q.Records); len(list) > 0 {
			rec = list[0]
		}
		rec, err := s.Update(ctx, q.By, rec)
		return answer{Records: toWire(rec)}, err
	})
	call("delete", func(ctx context.Context, q *request) (answer, error) {
		return answer{}, s.Delete(ctx, q.By, q.Type, q.IDs...)
	})
	call("set-options", func(ctx context.Context, q *request) (answer, error) {
		return answer{}, s.SetOptions(ctx, q.Type, q.Options)
	})
	call("acquire", func(ctx context.Context, q *request) (answer, error) {
		l, err := s.Acquire(ctx, q.ID, q.TTL)
		return answer{Lease: l}, err
	})
	call("renew", func(ctx context.Context, q *request) (answer, error) {
		l, err := s.Renew(ctx, q.Lease, q.TTL)
		return answer{Lease: l}, err
	})
	call("release", func(ctx context.Context, q *request) (answer, error) {
		return answer{}, s.Release(ctx, q.Lease)
	})
	call("new-version", func(ctx context.Context, q *request) (answer, error) {
		v, err := s.NewServerVersion(ctx, q.By)
		return answer{Versions: v}, err
	})
	call("clear", func(ctx context.Context, q *request) (answer, error) {
		v, err := s.Clear(ctx, q.By)
		return answer{Versions: v}, err
	})
	mux.HandleFunc("POST /watch", func(w http.ResponseWriter, r *http.Request) { watch(w, r, s) })
	return mux
}

// watch writes one event for each time that it is asked, so that a slow
// reader is as far behind as it seems, here too.
func watch(w http.ResponseWriter, r *http.Request, s record.Store) {
	rc := http.NewResponseController(w)
	enc, dec := gob.NewEncoder(w), gob.NewDecoder(r.Body)
	send := func(ev wireEvent) bool { return enc.Encode(ev) == nil && rc.Flush() == nil }
	var q request
	if err := dec.Decode(&q); err != nil {
		send(wireEvent{Error: toWireError(err)})
		return
	}
	stream, err := s.Watch(r.Context(), q.Type, q.Cursor)
	if err != nil {
		send(wireEvent{Error: toWireError(err)})
		return
	}
	defer stream.Close()
	if !send(wireEvent{}) { // it is open
		return
	}
	for {
		var next bool
		if dec.Decode(&next) != nil {
			return
		}
		ev, err := stream.Next(r.Context())
		if err != nil {
			send(wireEvent{Error: toWireError(err)})
			return
		}
		line := wireEvent{Kind: ev.Kind, Cursor: ev.Cursor}
		if ev.Kind == record.Changed {
			line.Record = toWire(ev.Record)[0]
		} else {
			line.AsOf = toClock(ev.AsOf)
		}
		if !send(line) {
			return
		}
	}
}

// Serve answers on one connection until it ends or ctx does.
func Serve(ctx context.Context, ln *OneConn, h http.Handler) error {
	srv := &http.Server{Handler: h, Protocols: cleartext2(), IdleTimeout: -1, ReadHeaderTimeout: 10 * time.Second,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 1000}}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	defer srv.Close()
	return srv.Serve(ln)
}

func cleartext2() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}
