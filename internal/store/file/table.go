package file

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"maps"
	"math"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"

	"postern/internal/record"
	"postern/internal/store/engine"
)

// Layout inside the database:
//
//	store/header            JSON: format, name, openings
//	store/state             server version, latest version, its time, fence
//	types/<type>/options    JSON
//	types/<type>/counts     horizon, number of living records
//	types/<type>/record/    id -> record, living or dead
//	types/<type>/living/    version -> id
//	types/<type>/dead/      version -> id
//	types/<type>/index/     name, value, version -> id, of living records
//
// Watching, listing, expiry, capacity and forgetting all walk the version
// order, so it needs no change log beside the records.
var (
	keyOptions   = []byte("options")
	keyCounts    = []byte("counts")
	bucketRecord = []byte("record")
	bucketLiving = []byte("living")
	bucketDead   = []byte("dead")
	bucketIndex  = []byte("index")
)

func randomName() string { return rand.Text() }

// tx is an engine.Tx.
type tx struct {
	t      *bolt.Tx
	types  *bolt.Bucket
	tables map[string]*table
	// writes counts changes that matter; making an empty table does not.
	writes int
}

func newTx(t *bolt.Tx) *tx {
	return &tx{t: t, types: t.Bucket(bucketTypes), tables: make(map[string]*table)}
}

func (x *tx) State() (st engine.State, err error) {
	b := x.t.Bucket(bucketStore).Get(keyState)
	switch len(b) {
	case 0:
		return st, nil
	case 32:
		return engine.State{Server: binary.BigEndian.Uint64(b), Latest: binary.BigEndian.Uint64(b[8:]),
			NewestAt: fromNano(binary.BigEndian.Uint64(b[16:])), Fence: binary.BigEndian.Uint64(b[24:])}, nil
	}
	return st, damaged(x.t.DB().Path(), "the store's state has a wrong length")
}

func (x *tx) SetState(st engine.State) error {
	x.writes++
	b := make([]byte, 0, 32)
	b = binary.BigEndian.AppendUint64(b, st.Server)
	b = binary.BigEndian.AppendUint64(b, st.Latest)
	b = binary.BigEndian.AppendUint64(b, toNano(st.NewestAt))
	b = binary.BigEndian.AppendUint64(b, st.Fence)
	return x.t.Bucket(bucketStore).Put(keyState, b)
}

// Times are kept as nanoseconds since 1970; the zero time as its own number.
func toNano(t time.Time) uint64 {
	if t.IsZero() {
		return math.MaxUint64
	}
	return uint64(t.UnixNano())
}

func fromNano(n uint64) time.Time {
	if n == math.MaxUint64 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}

func (x *tx) Types() (types []string, err error) {
	err = x.types.ForEachBucket(func(k []byte) error {
		types = append(types, string(k))
		return nil
	})
	for typ := range maps.Keys(x.tables) { // made in this transaction
		if !slices.Contains(types, typ) {
			types = append(types, typ)
		}
	}
	slices.Sort(types)
	return types, err
}

func (x *tx) Table(typ string, create bool) (engine.Table, error) {
	if t := x.tables[typ]; t != nil {
		return t, nil
	}
	b := x.types.Bucket([]byte(typ))
	if b == nil {
		if !create {
			return nil, nil
		}
		var err error
		if b, err = x.types.CreateBucket([]byte(typ)); err != nil {
			return nil, err
		}
		for _, name := range [][]byte{bucketRecord, bucketLiving, bucketDead, bucketIndex} {
			if _, err := b.CreateBucket(name); err != nil {
				return nil, err
			}
		}
	}
	t := &table{x: x, typ: typ, b: b, records: b.Bucket(bucketRecord), living: b.Bucket(bucketLiving), dead: b.Bucket(bucketDead), index: b.Bucket(bucketIndex)}
	if t.records == nil || t.living == nil || t.dead == nil || t.index == nil {
		return nil, damaged(x.t.DB().Path(), "a table is incomplete")
	}
	x.tables[typ] = t
	return t, nil
}

// table is an engine.Table.
type table struct {
	x                            *tx
	typ                          string
	b                            *bolt.Bucket
	records, living, dead, index *bolt.Bucket
	meta                         *engine.Meta // read once per transaction
}

func (t *table) Meta() (engine.Meta, error) {
	if t.meta != nil {
		return *t.meta, nil
	}
	var m engine.Meta
	if data := t.b.Get(keyOptions); data != nil {
		if err := json.Unmarshal(data, &m.Options); err != nil {
			return m, damaged(t.x.t.DB().Path(), "a table's options are unreadable")
		}
	}
	if data := t.b.Get(keyCounts); len(data) == 16 {
		m.Horizon, m.Live = binary.BigEndian.Uint64(data), int(binary.BigEndian.Uint64(data[8:]))
	} else if data != nil {
		return m, damaged(t.x.t.DB().Path(), "a table's counts have a wrong length")
	}
	t.meta = &m
	return m, nil
}

func (t *table) setMeta(change func(*engine.Meta)) error {
	if _, err := t.Meta(); err != nil {
		return err
	}
	t.x.writes++
	change(t.meta)
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16), t.meta.Horizon)
	return t.b.Put(keyCounts, binary.BigEndian.AppendUint64(b, uint64(t.meta.Live)))
}

func (t *table) SetOptions(o record.Options) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if err := t.setMeta(func(m *engine.Meta) { m.Options = o }); err != nil {
		return err
	}
	return t.b.Put(keyOptions, data)
}

func (t *table) SetHorizon(v uint64) error {
	return t.setMeta(func(m *engine.Meta) { m.Horizon = v })
}

func (t *table) Get(id string) (*record.Record, error) {
	data := t.records.Get([]byte(id))
	if data == nil {
		return nil, nil
	}
	return decode(t.typ, id, data)
}

func (t *table) Put(old, next *record.Record) error {
	t.x.writes++
	if old != nil {
		if err := t.unlink(old); err != nil {
			return err
		}
	}
	id := []byte(next.ID)
	if err := t.records.Put(id, encode(next)); err != nil {
		return err
	}
	if next.Deleted() {
		return t.dead.Put(versionKey(next.Version), id)
	}
	for name, value := range next.Index {
		if err := t.index.Put(indexKey(name, value, next.Version), id); err != nil {
			return err
		}
	}
	if err := t.living.Put(versionKey(next.Version), id); err != nil {
		return err
	}
	return t.setMeta(func(m *engine.Meta) { m.Live++ })
}

func (t *table) Drop(rec *record.Record) error {
	t.x.writes++
	if err := t.unlink(rec); err != nil {
		return err
	}
	return t.records.Delete([]byte(rec.ID))
}

// unlink takes a record out of the orders and indexes.
func (t *table) unlink(old *record.Record) error {
	if old.Deleted() {
		return t.dead.Delete(versionKey(old.Version))
	}
	for name, value := range old.Index {
		if err := t.index.Delete(indexKey(name, value, old.Version)); err != nil {
			return err
		}
	}
	if err := t.living.Delete(versionKey(old.Version)); err != nil {
		return err
	}
	return t.setMeta(func(m *engine.Meta) { m.Live-- })
}

func (t *table) Ascend(dead bool, after uint64, yield func(*record.Record) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	b := t.living
	if dead {
		b = t.dead
	}
	c := b.Cursor()
	for k, id := c.Seek(versionKey(after + 1)); k != nil; k, id = c.Next() {
		rec, err := t.linked(id, k)
		if err != nil {
			return err
		}
		if !yield(rec) {
			return nil
		}
	}
	return nil
}

func (t *table) Find(index, value string, yield func(*record.Record) bool) error {
	prefix := indexKey(index, value, 0)
	prefix = prefix[:len(prefix)-8]
	c := t.index.Cursor()
	for k, id := c.Seek(prefix); len(k) == len(prefix)+8 && string(k[:len(prefix)]) == string(prefix); k, id = c.Next() {
		rec, err := t.linked(id, k[len(prefix):])
		if err != nil {
			return err
		}
		if !yield(rec) {
			return nil
		}
	}
	return nil
}

// linked reads the record that an order or index points to.
func (t *table) linked(id, version []byte) (*record.Record, error) {
	rec, err := t.Get(string(id))
	if err != nil {
		return nil, err
	}
	if rec == nil || len(version) != 8 || rec.Version != binary.BigEndian.Uint64(version) {
		return nil, errRecord
	}
	return rec, nil
}

func versionKey(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// indexKey joins unambiguously, since each part is preceded by its length.
func indexKey(name, value string, version uint64) []byte {
	b := engine.AppendString(make([]byte, 0, len(name)+len(value)+16), name)
	return binary.BigEndian.AppendUint64(engine.AppendString(b, value), version)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode writes a record: format byte, version, times, namespace, index,
// data, and a checksum over type, id and all of it. The checksum finds
// accidents; against intent stands the seal of the layer above.
func encode(rec *record.Record) []byte {
	b := make([]byte, 0, 64+len(rec.Data))
	b = append(b, Format)
	b = binary.BigEndian.AppendUint64(b, rec.Version)
	b = binary.BigEndian.AppendUint64(b, toNano(rec.ModifiedAt))
	b = binary.BigEndian.AppendUint64(b, toNano(rec.DeletedAt))
	b = engine.AppendBody(b, rec)
	return binary.BigEndian.AppendUint32(b, checksum(rec.Type, rec.ID, b))
}

func checksum(typ, id string, b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, engine.AppendString(engine.AppendString(nil, typ), id))
	return crc32.Update(sum, castagnoli, b)
}

func decode(typ, id string, data []byte) (*record.Record, error) {
	if len(data) < 31 || data[0] != Format {
		return nil, errRecord
	}
	b, sum := data[:len(data)-4], binary.BigEndian.Uint32(data[len(data)-4:])
	if checksum(typ, id, b) != sum {
		return nil, errRecord
	}
	rec := &record.Record{Type: typ, ID: id, Version: binary.BigEndian.Uint64(b[1:]),
		ModifiedAt: fromNano(binary.BigEndian.Uint64(b[9:])), DeletedAt: fromNano(binary.BigEndian.Uint64(b[17:]))}
	if !engine.ReadBody(b[25:], rec) {
		return nil, errRecord
	}
	if len(rec.Data) == 0 {
		rec.Data = nil
	}
	rec.Data = slices.Clone(rec.Data)
	return rec, nil
}
