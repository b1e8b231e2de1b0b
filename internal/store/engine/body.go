package engine

import (
	"encoding/binary"
	"maps"
	"slices"

	"postern/internal/record"
)

// AppendString appends s behind its length, so that what follows cannot be
// taken for part of it.
func AppendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// AppendBody appends what a kept record holds besides its head: namespace,
// index values in the order of their names, and data.
func AppendBody(b []byte, rec *record.Record) []byte {
	b = AppendString(b, rec.Namespace)
	b = binary.AppendUvarint(b, uint64(len(rec.Index)))
	for _, name := range slices.Sorted(maps.Keys(rec.Index)) {
		b = AppendString(AppendString(b, name), rec.Index[name])
	}
	return append(b, rec.Data...)
}

// ReadBody reads what AppendBody wrote into rec, and says whether it could. The
// data alias b; rec is not to be used if it could not.
func ReadBody(b []byte, rec *record.Record) bool {
	ok := true
	str := func() string {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			ok = false
			return ""
		}
		s := string(b[w : w+int(n)])
		b = b[w+int(n):]
		return s
	}
	rec.Namespace = str()
	n, w := binary.Uvarint(b)
	if !ok || w <= 0 || n > record.MaxIndexes {
		return false
	}
	if b = b[w:]; n > 0 {
		rec.Index = make(map[string]string, n)
		for range n {
			name := str()
			rec.Index[name] = str()
		}
	}
	rec.Data = b
	return ok
}
