// Package engine is what the embedded backends share: the meaning of
// record.Store, written once over a small ordered table that memory and file
// provide. A backend only stores; versions, tombstones, options, expiry,
// watches and leases are here.
package engine

import (
	"context"
	"time"

	"postern/internal/record"
)

// Backend is a transactional home for tables.
type Backend interface {
	// View runs f on a consistent snapshot.
	View(f func(Tx) error) error
	// Update runs f alone and makes its changes durable before it returns
	// nil. It may run f on another goroutine and commit several together.
	// An error of f undoes at least its own changes: f promises to find its
	// reasons for refusal before it changes anything.
	Update(ctx context.Context, f func(Tx) error) error
	Close() error
}

// State is the store's own few numbers.
type State struct {
	Server   uint64
	Latest   uint64
	NewestAt time.Time
	Fence    uint64
}

// Tx is one transaction.
type Tx interface {
	State() (State, error)
	SetState(State) error
	// Types lists all tables, also empty ones, sorted.
	Types() ([]string, error)
	// Table returns a type's table, or nil if there is none and create is
	// false.
	Table(typ string, create bool) (Table, error)
}

// Meta is what is known about a table.
type Meta struct {
	Options record.Options
	// Horizon is the highest version of a deletion that was forgotten.
	Horizon uint64
	// Live counts living records.
	Live int
}

// Table holds the records of one type: at most one per id, living or dead.
type Table interface {
	Meta() (Meta, error)
	// SetOptions and SetHorizon change parts of Meta; Live is kept by Put
	// and Drop.
	SetOptions(record.Options) error
	SetHorizon(uint64) error
	// Get returns the record with this id, living or dead, or nil.
	Get(id string) (*record.Record, error)
	// Put writes next in place of old (nil if there was none).
	Put(old, next *record.Record) error
	// Drop forgets a record wholly.
	Drop(rec *record.Record) error
	// Ascend gives living or dead records after a version, in version order,
	// until yield returns false. The table must not be changed meanwhile.
	Ascend(dead bool, after uint64, yield func(*record.Record) bool) error
	// Find gives the living records with this index value, in version order.
	Find(index, value string, yield func(*record.Record) bool) error
}
