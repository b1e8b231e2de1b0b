package memory

import (
	"encoding/gob"
	"fmt"
	"io"

	"postern/internal/record"
	"postern/internal/store/engine"
)

// image is everything that a store holds, but its leases.
type image struct {
	State  engine.State
	Tables []imageTable
}

type imageTable struct {
	Type         string
	Meta         engine.Meta
	Living, Dead []*record.Record
}

// Dump writes all records with their versions, and what is known of deleted
// ones, for [Restore] in the process that follows this one. The stream is
// unencrypted: it belongs on a private connection, never on a disk.
func (s *store) Dump(w io.Writer) error {
	s.b.mu.RLock()
	defer s.b.mu.RUnlock()
	im := image{State: s.b.state}
	for typ, t := range s.b.tables {
		x := imageTable{Type: typ, Meta: t.meta}
		t.living.ascend(0, func(r *record.Record) bool { x.Living = append(x.Living, r); return true })
		t.dead.ascend(0, func(r *record.Record) bool { x.Dead = append(x.Dead, r); return true })
		im.Tables = append(im.Tables, x)
	}
	return gob.NewEncoder(w).Encode(im)
}

// Restore makes a store of what Dump wrote: the same history, so that every
// session and every watch goes on.
func Restore(r io.Reader) (record.Store, error) {
	var im image
	if err := gob.NewDecoder(r).Decode(&im); err != nil {
		return nil, fmt.Errorf("records carried over cannot be read: %w; restart instead", err)
	}
	b := &backend{tables: make(map[string]*table)}
	b.state = im.State
	for _, x := range im.Tables {
		et, err := b.Table(x.Type, true)
		if err != nil {
			return nil, err
		}
		t := et.(*table)
		t.meta = x.Meta
		t.meta.Live = 0 // counted by Put
		for _, rec := range append(x.Living, x.Dead...) {
			if err := t.Put(nil, rec); err != nil {
				return nil, err
			}
		}
	}
	return serve(b), nil
}
