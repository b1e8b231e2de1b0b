package store

import (
	"context"
	"fmt"
	"time"

	"postern/internal/record"
)

// guarded stands above a backend: it checks, seals (if it has a ring), and
// tells of writes. Watching, leases and the rest pass through.
type guarded struct {
	record.Store
	ring    *ring
	onWrite func(context.Context, []record.Write)
}

func guard(inner record.Store, r *ring, onWrite func(context.Context, []record.Write)) record.Store {
	return &guarded{Store: inner, ring: r, onWrite: onWrite}
}

func (g *guarded) tell(ctx context.Context, writes ...record.Write) {
	if g.onWrite != nil && len(writes) > 0 {
		g.onWrite(ctx, writes)
	}
}

func checkType(typ string) error {
	if typ == record.KeyringType {
		return fmt.Errorf("%w: %s belongs to the store itself; choose another type", record.ErrInvalid, typ)
	}
	return nil
}

func check(recs ...*record.Record) error {
	for _, rec := range recs {
		if err := rec.Check(); err != nil {
			return err
		}
		if err := checkType(rec.Type); err != nil {
			return err
		}
	}
	return nil
}

// seal is the kept form of a record.
func (g *guarded) seal(rec *record.Record) *record.Record {
	if g.ring == nil {
		return rec
	}
	return g.ring.keys.Load().seal(rec)
}

func (g *guarded) open(ctx context.Context, kept *record.Record, id string) (*record.Record, error) {
	if g.ring == nil {
		return kept, nil
	}
	return g.ring.open(ctx, kept, id)
}

func (g *guarded) openAll(ctx context.Context, kept []*record.Record) ([]*record.Record, error) {
	if g.ring == nil {
		return kept, nil
	}
	out := make([]*record.Record, len(kept))
	for i, k := range kept {
		var err error
		if out[i], err = g.ring.open(ctx, k, ""); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// written is the record as it was given, with what the backend added.
func (g *guarded) written(given, kept *record.Record) *record.Record {
	if g.ring == nil {
		return kept
	}
	out := given.Clone()
	out.Version, out.ModifiedAt, out.DeletedAt = kept.Version, kept.ModifiedAt, kept.DeletedAt
	if out.Deleted() {
		out.Data, out.Index, out.Namespace = nil, nil, ""
	}
	return out
}

func (g *guarded) Put(ctx context.Context, by record.Actor, recs ...*record.Record) ([]*record.Record, error) {
	if len(recs) > record.MaxBatch {
		return nil, fmt.Errorf("%w: %d records in one batch; give at most %d", record.ErrInvalid, len(recs), record.MaxBatch)
	}
	if err := check(recs...); err != nil {
		return nil, err
	}
	sealed := make([]*record.Record, len(recs))
	for i, rec := range recs {
		sealed[i] = g.seal(rec)
	}
	kept, err := g.Store.Put(ctx, by, sealed...)
	if err != nil {
		return nil, err
	}
	out, writes := make([]*record.Record, len(recs)), make([]record.Write, len(recs))
	for i, rec := range recs {
		out[i] = g.written(rec, kept[i])
		writes[i] = record.Write{Actor: by, Op: record.OpPut, Type: rec.Type, ID: rec.ID, Version: kept[i].Version, At: kept[i].ModifiedAt}
		if rec.Deleted() {
			writes[i].Op = record.OpDelete
		}
	}
	g.tell(ctx, writes...)
	return out, nil
}

func (g *guarded) Update(ctx context.Context, by record.Actor, rec *record.Record) (*record.Record, error) {
	if err := check(rec); err != nil {
		return nil, err
	}
	kept, err := g.Store.Update(ctx, by, g.seal(rec))
	if err != nil {
		return nil, err
	}
	g.tell(ctx, record.Write{Actor: by, Op: record.OpUpdate, Type: rec.Type, ID: rec.ID, Version: kept.Version, At: kept.ModifiedAt})
	return g.written(rec, kept), nil
}

func (g *guarded) Delete(ctx context.Context, by record.Actor, typ string, ids ...string) error {
	hidden := ids
	if g.ring != nil {
		hidden = make([]string, len(ids))
	}
	for i, id := range ids {
		if err := check(&record.Record{Type: typ, ID: id, DeletedAt: time.Unix(1, 0)}); err != nil {
			return err
		}
		if g.ring != nil {
			hidden[i] = g.ring.keys.Load().names.hideID(typ, id)
		}
	}
	if err := g.Store.Delete(ctx, by, typ, hidden...); err != nil {
		return err
	}
	if g.onWrite != nil {
		writes, now := make([]record.Write, len(ids)), time.Now()
		for i, id := range ids {
			writes[i] = record.Write{Actor: by, Op: record.OpDelete, Type: typ, ID: id, At: now}
		}
		g.tell(ctx, writes...)
	}
	return nil
}

func (g *guarded) SetOptions(ctx context.Context, typ string, o record.Options) error {
	if err := check(&record.Record{Type: typ, ID: "-", DeletedAt: time.Unix(1, 0)}); err != nil {
		return err
	}
	return g.Store.SetOptions(ctx, typ, o)
}

func (g *guarded) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	if g.ring == nil {
		return g.Store.Get(ctx, typ, id)
	}
	kept, err := g.Store.Get(ctx, typ, g.ring.keys.Load().names.hideID(typ, id))
	if err != nil {
		return nil, err
	}
	rec, err := g.ring.open(ctx, kept, id)
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (g *guarded) List(ctx context.Context, typ string, q record.Query) (record.Page, error) {
	if g.ring == nil {
		return g.Store.List(ctx, typ, q)
	}
	if err := checkType(typ); err != nil {
		return record.Page{}, err
	}
	// The backend cannot look inside, so a filtered page is cut here.
	below := q
	if q.Filters() {
		below = record.Query{}
	}
	page, err := g.Store.List(ctx, typ, below)
	if err != nil {
		return record.Page{}, err
	}
	if page.Records, err = g.openAll(ctx, page.Records); err != nil || !q.Filters() {
		return page, err
	}
	all := page.Records
	page.Records, page.Total = nil, 0
	for _, rec := range all {
		if !q.Keeps(rec) {
			continue
		}
		if page.Total >= q.Offset && (q.Limit <= 0 || len(page.Records) < q.Limit) {
			page.Records = append(page.Records, rec)
		}
		page.Total++
	}
	return page, nil
}

func (g *guarded) Find(ctx context.Context, typ, index, value string) ([]*record.Record, error) {
	if g.ring == nil {
		return g.Store.Find(ctx, typ, index, value)
	}
	kept, err := g.Store.Find(ctx, typ, index, g.ring.keys.Load().names.hideValue(typ, index, value))
	if err != nil {
		return nil, err
	}
	return g.openAll(ctx, kept)
}

func (g *guarded) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	if err := checkType(typ); err != nil {
		return nil, err
	}
	inner, err := g.Store.Watch(ctx, typ, after)
	if err != nil || g.ring == nil {
		return inner, err
	}
	return &opened{Stream: inner, g: g}, nil
}

// opened is a stream whose records are opened on the way.
type opened struct {
	record.Stream
	g *guarded
}

func (o *opened) Next(ctx context.Context) (record.Event, error) {
	ev, err := o.Stream.Next(ctx)
	if err != nil || ev.Kind != record.Changed {
		return ev, err
	}
	rec, err := o.g.open(ctx, ev.Record, "")
	if rec == nil {
		return record.Event{}, err
	}
	// A damaged record must not stop the watch of all others. It arrives
	// without data, which no reader can decode, so it is refused by itself.
	ev.Record = rec
	return ev, nil
}

func (g *guarded) NewServerVersion(ctx context.Context, by record.Actor) (record.Versions, error) {
	v, err := g.Store.NewServerVersion(ctx, by)
	if err == nil {
		g.tell(ctx, record.Write{Actor: by, Op: record.OpServer, Version: v.Latest, At: time.Now()})
	}
	return v, err
}

func (g *guarded) Clear(ctx context.Context, by record.Actor) (record.Versions, error) {
	v, err := g.Store.Clear(ctx, by)
	if err == nil {
		g.tell(ctx, record.Write{Actor: by, Op: record.OpClear, Version: v.Latest, At: time.Now()})
	}
	return v, err
}
