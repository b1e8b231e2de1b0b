// Package record is the vocabulary of everything Postern remembers: sessions,
// users, service accounts, directory entries, device credentials, settings.
//
// A [Record] is a typed, versioned JSON document. A [Store] keeps records and
// tells what changed; a [Replica] is a local copy of one type kept fresh by
// watching; a [Cache] is a bounded copy of part of one type. Both answer
// through [Lookup], so that whoever decides cannot tell them apart:
//
//	users := record.NewReplica(store, session.UserType, session.DecodeUser, record.ReplicaOptions{})
//	go users.Run(ctx)
//	user, err := users.Lookup(ctx, id, 0)   // fresh, read through, or refused
//
// Three promises carry the security of the whole:
//
//   - Versions grow. Every write of any record gets the next number of one
//     global sequence, so "at least as new as" is a comparison.
//   - Gone is gone. Where a type keeps tombstones ([Options.Tombstone]) a
//     deleted id is refused to every later write while its tombstone lives.
//   - Fresh or refused. A copy answers only while its watch proves that it is
//     at most [ReplicaOptions.MaxStale] behind; otherwise the store is asked,
//     and if that fails the answer is [ErrUnavailable], never a guess.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Record is one version of one remembered thing. Records handed out by a
// store are shared: readers must not change them (use [Record.Clone]).
type Record struct {
	// Type is a protobuf type URL or a bare name, for example
	// "type.googleapis.com/session.Session" (wire contract §11).
	Type string
	// ID is unique within Type.
	ID string
	// Version is the number of the write that made this record; it is given
	// by the store. In [Writer.Update] it says which version is expected.
	Version uint64
	// ModifiedAt is the store's wall clock at that write.
	ModifiedAt time.Time
	// DeletedAt is zero for a living record. A deletion, as seen in a watch,
	// has DeletedAt set and no Data, Namespace or Index.
	DeletedAt time.Time
	// Namespace is the id of the namespace the record belongs to, or "".
	Namespace string
	// Data is the document in protobuf's JSON form.
	Data json.RawMessage
	// Index holds this record's values for the secondary indexes that its
	// type declares ([Options.Indexes]); an index may be left out.
	Index map[string]string
}

// Clone returns a copy that shares nothing with r.
func (r *Record) Clone() *Record {
	if r == nil {
		return nil
	}
	c := *r
	c.Data = slices.Clone(r.Data)
	c.Index = maps.Clone(r.Index)
	return &c
}

// Deleted tells whether r marks a deletion.
func (r *Record) Deleted() bool { return !r.DeletedAt.IsZero() }

// Limits of what a store takes. They are far above what Postern writes itself
// and bound what a hostile identity provider or API client can make us keep.
const (
	MaxTypeBytes  = 256
	MaxIDBytes    = 1024
	MaxIndexBytes = 1024 // name or value of one index entry
	MaxIndexes    = 16   // per record and per type
	MaxDataBytes  = 16 << 20
	MaxBatch      = 10_000 // records in one Put
)

// Check refuses a record that no store may take. The error wraps [ErrInvalid].
func (r *Record) Check() error {
	switch {
	case r == nil:
		return fmt.Errorf("%w: it is nil; pass a record", ErrInvalid)
	case r.Type == "" || len(r.Type) > MaxTypeBytes:
		return fmt.Errorf("%w: type has %d bytes; give 1 to %d", ErrInvalid, len(r.Type), MaxTypeBytes)
	case r.ID == "" || len(r.ID) > MaxIDBytes:
		return fmt.Errorf("%w: id of a %s has %d bytes; give 1 to %d", ErrInvalid, r.Type, len(r.ID), MaxIDBytes)
	case r.Deleted():
		return nil // nothing but type and id counts
	case len(r.Data) > MaxDataBytes:
		return fmt.Errorf("%w: data of a %s has %d bytes; at most %d are kept", ErrInvalid, r.Type, len(r.Data), MaxDataBytes)
	case !json.Valid(r.Data):
		return fmt.Errorf("%w: data of a %s is not JSON; encode it in protobuf's JSON form", ErrInvalid, r.Type)
	case len(r.Index) > MaxIndexes:
		return fmt.Errorf("%w: a %s has %d index values; at most %d are kept", ErrInvalid, r.Type, len(r.Index), MaxIndexes)
	}
	for name, value := range r.Index {
		if name == "" || len(name) > MaxIndexBytes || len(value) > MaxIndexBytes {
			return fmt.Errorf("%w: index %.40q of a %s is empty or longer than %d bytes; shorten it", ErrInvalid, name, r.Type, MaxIndexBytes)
		}
	}
	return nil
}

// Actor says who makes a write, for the audit trail. Kind is required.
type Actor struct {
	// Kind is one of the Actor constants.
	Kind string
	// ID is the person's user id, the service account's id, the lease or
	// worker name; "" where there is none.
	ID string
	// Via is the way in: "sign_in", "refresh", "scim", "console", "cli" ...
	Via string
	// Lease, if set, fences the write: it fails with [ErrLeaseLost] unless the
	// lease is still held, checked together with the write. It keeps a leader
	// that was paused for too long from writing over its successor's work.
	Lease *Lease
}

// Kinds of [Actor].
const (
	ActorUser           = "user"
	ActorServiceAccount = "service_account"
	ActorOperator       = "operator" // command line or control socket
	ActorSystem         = "system"   // Postern itself: refresh, expiry, sync
)

// System is the actor for what Postern does by itself; via says which part.
func System(via string) Actor { return Actor{Kind: ActorSystem, Via: via} }

// Check refuses an actor that the audit trail could not name.
func (a Actor) Check() error {
	if a.Kind == "" {
		return fmt.Errorf("%w: the write names no actor; say who makes it", ErrInvalid)
	}
	return nil
}

// Op is what a write did to a record.
type Op string

// What can happen to a record.
const (
	OpPut    Op = "put"
	OpUpdate Op = "update"
	OpDelete Op = "delete"
	OpClear  Op = "clear"       // every record was removed
	OpServer Op = "new_version" // the store began a new server version
)

// Write is one acknowledged write as the audit trail sees it. It carries no
// data, so a trail of writes gives no secret away.
type Write struct {
	Actor   Actor
	Op      Op
	Type    string
	ID      string
	Version uint64
	At      time.Time
}

// Errors of stores and lookups; test with [errors.Is].
var (
	// ErrNotFound: there is no such record (now). From a Lookup it is a fact,
	// not a guess.
	ErrNotFound = errors.New("no such record")
	// ErrConflict: the record is not at the expected version, or exists
	// already where it was to be created. Read it again and decide anew.
	ErrConflict = errors.New("the record was changed by somebody else")
	// ErrDeleted: the id was deleted and may not be written again. What it
	// named (a session, mostly) must be made anew under a new id.
	ErrDeleted = errors.New("the record was deleted and cannot come back")
	// ErrUnavailable: the store cannot answer now, or a copy is stale and the
	// store cannot be reached. Refuse (503); never take it for "not found".
	ErrUnavailable = errors.New("the record store is unavailable")
	// ErrHistoryGone: a watch cannot resume from its cursor, since deletions
	// after it are forgotten. Start again from the zero cursor.
	ErrHistoryGone = errors.New("the change history no longer reaches back that far")
	// ErrWrongServer: a cursor or minimum version is from another server
	// version (the store was cleared, or restored from a backup).
	ErrWrongServer = errors.New("the version belongs to another server version")
	// ErrNoIndex: the index is not declared in the type's options.
	ErrNoIndex = errors.New("the index is not declared for this type")
	// ErrLeaseHeld: somebody else holds the lease; try later.
	ErrLeaseHeld = errors.New("the lease is held by somebody else")
	// ErrLeaseLost: the lease ran out or is somebody else's; stop working.
	ErrLeaseLost = errors.New("the lease is lost")
	// ErrInvalid: the record or argument can never be stored.
	ErrInvalid = errors.New("the record is not acceptable")
)
