package record

import (
	"context"
	"time"
)

// Entry is one decoded record of a copy. Entries are shared and immutable;
// a change makes a new one.
type Entry[T any] struct {
	ID         string
	Version    uint64
	ModifiedAt time.Time
	Namespace  string
	Value      *T
}

// Lookup answers by id. A [Replica] holds all of a type, a [Cache] part of
// it; the answers mean the same.
type Lookup[T any] interface {
	// Lookup returns the record, at least as new as minVersion (0 for any).
	//
	// A copy answers by itself while it is fresh; otherwise the store is
	// asked. ErrNotFound is a fact (from a synced and fresh copy, or from the
	// store). ErrUnavailable: neither could tell; refuse with 503.
	// ErrWrongServer: the store answers, but holds only an older version than
	// minVersion: the asker's version is of another history, treat its handle
	// as void.
	Lookup(ctx context.Context, id string, minVersion uint64) (*Entry[T], error)
	// OnChange calls f for each change that the copy sees, one at a time and
	// in order, after Lookup shows the new state. f must not block and must
	// not call OnChange. The returned function ends the subscription.
	OnChange(f func(Change[T])) (cancel func())
	// Ready is nil once the copy has synced and while it is fresh; otherwise
	// it says why not.
	Ready() error
}

// Change is one step of a copy.
type Change[T any] struct {
	ID string
	// Old is the entry before, nil if there was none (or, in a Cache, if it
	// was not held).
	Old *Entry[T]
	// New is the entry after, nil if the record is gone or cannot be decoded.
	New *Entry[T]
	// Everything says that any record may have changed (ID is ""): the copy
	// lost its place and cannot tell which. Judge all anew.
	Everything bool
}

// Decode turns a record's Data into a value. It must not keep rec.
type Decode[T any] func(rec *Record) (*T, error)

// Source is what a copy needs of a store.
type Source interface {
	Reader
	Watcher
}

// DefaultMaxStale is how old the proof of freshness of a copy may be.
const DefaultMaxStale = 10 * time.Second

// ReplicaOptions tune a Replica or Cache.
type ReplicaOptions struct {
	// MaxStale is how long after the last proof of freshness a copy still
	// answers by itself; 0 means [DefaultMaxStale].
	MaxStale time.Duration
	// OnError is told why a watch ended or a record could not be decoded;
	// the copy goes on trying by itself. It may be nil.
	OnError func(error)
}
