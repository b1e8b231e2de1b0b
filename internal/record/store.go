package record

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Store keeps records. Consumers ask for the part they need ([Reader],
// [Writer], ...). All methods may be called concurrently. Every
// implementation passes recordtest.Run.
//
// Durability: a write is acknowledged (a nil error) only once it would
// survive a crash of the process, and of the machine where the backend keeps
// anything across restarts.
type Store interface {
	Reader
	Writer
	Watcher
	Leaser
	Admin
	// Close ends all watches and refuses further calls with ErrUnavailable.
	Close() error
}

// Reader reads what is stored now: a read that begins after a write was
// acknowledged sees that write. Errors other than those named wrap
// [ErrUnavailable].
type Reader interface {
	// Get returns the living record, or ErrNotFound if there is none, it was
	// deleted, or its type's TTL has passed.
	Get(ctx context.Context, typ, id string) (*Record, error)
	// List returns living records of a type in version order, oldest change
	// first.
	List(ctx context.Context, typ string, q Query) (Page, error)
	// Find returns the living records whose Index[index] is exactly value, in
	// version order. ErrNoIndex if the type does not declare the index.
	Find(ctx context.Context, typ, index, value string) ([]*Record, error)
	// Types returns the types that have living records, sorted.
	Types(ctx context.Context) ([]string, error)
	// Options returns the options of a type; the zero Options if none were set.
	Options(ctx context.Context, typ string) (Options, error)
	// ServerVersion tells where the store is. It is cheap.
	ServerVersion(ctx context.Context) (Versions, error)
}

// Query narrows a List.
type Query struct {
	// Text keeps records whose id or any string inside Data contains it,
	// ignoring case.
	Text string
	// Match keeps records for which it returns true. It sees clear data, and
	// must not call the store.
	Match func(*Record) bool
	// Offset and Limit cut a page out of what remains; Limit 0 means all.
	Offset, Limit int
}

// Page is one answer of List.
type Page struct {
	Records []*Record
	// Total counts all records that the query keeps, before the page was cut.
	Total int
	// At is the store's place at the time of reading.
	At Versions
}

// Versions says where a store is.
type Versions struct {
	// Server identifies the history: record versions compare only within one
	// server version. It changes when the store is cleared or restored, is
	// never 0, and fits the integers of JavaScript (below 2^53).
	Server uint64
	// Latest is the version of the newest write, 0 in an empty store.
	Latest uint64
	// NewestAt is the wall-clock time of that write. A node whose own clock is
	// behind it by more than [MaxClockLag] should not serve.
	NewestAt time.Time
}

// MaxClockLag is how far a node's clock may be behind the newest record.
const MaxClockLag = 60 * time.Second

// CheckClock refuses a wall clock that is more than [MaxClockLag] behind the
// newest record: expiries would be judged too late on such a node.
func (v Versions) CheckClock(now time.Time) error {
	if lag := v.NewestAt.Sub(now); lag > MaxClockLag {
		return fmt.Errorf("this machine's clock is %s behind the newest record (written %s); set the clock (NTP) before serving",
			lag.Round(time.Second), v.NewestAt.UTC().Format(time.RFC3339))
	}
	return nil
}

// Writer changes records. Each call is atomic: all of it or, on error,
// nothing; only an error that wraps ErrUnavailable leaves open whether the
// write took place. Every written or deleted record gets the next global
// version.
type Writer interface {
	// Put writes records whatever was there before, and returns them with
	// their new versions, in order. A record whose DeletedAt is set is
	// deleted. ErrDeleted if any id has a tombstone that forbids it.
	Put(ctx context.Context, by Actor, recs ...*Record) ([]*Record, error)
	// Update writes rec if the stored version is rec.Version; Version 0
	// creates it, and only if it does not exist. ErrConflict if the version
	// differs, ErrNotFound if there is no such record, ErrDeleted if the id
	// has a tombstone.
	Update(ctx context.Context, by Actor, rec *Record) (*Record, error)
	// Delete removes records; ids that do not exist are no error. Where the
	// type keeps tombstones, an id unknown so far is forbidden too, so that a
	// deletion that overtakes its creation wins.
	Delete(ctx context.Context, by Actor, typ string, ids ...string) error
	// SetOptions replaces the options of a type and applies them to what is
	// already stored.
	SetOptions(ctx context.Context, typ string, o Options) error
}

// Options of one record type. The zero value keeps everything.
type Options struct {
	// TTL removes a record this long after its last write; 0 keeps it.
	TTL time.Duration `json:"ttl,omitempty"`
	// Capacity is how many records are kept; when there are more, those
	// written longest ago are removed. 0 means no limit.
	Capacity int `json:"capacity,omitempty"`
	// Indexes declares the secondary indexes that Find may use.
	Indexes []string `json:"indexes,omitempty"`
	// Tombstone is how long a deleted id (by whatever way: Delete, TTL,
	// Capacity, Clear) may not be written again. It must outlive every token
	// that can name the id; [Forever] suits session ids. 0 allows it at once.
	Tombstone time.Duration `json:"tombstone,omitempty"`
	// EndsWithServer removes all records of the type when a new server
	// version begins. Sessions do: after a restore nobody knows which of
	// them were revoked since the backup.
	EndsWithServer bool `json:"ends_with_server,omitempty"`
}

// Forever is a Tombstone that is never lifted.
const Forever = time.Duration(1<<63 - 1)

// History is how long a deletion is remembered for watchers, where the type
// asks for no longer Tombstone. A watcher cut off for longer starts anew.
const History = time.Hour

// Check refuses options that cannot be meant.
func (o Options) Check() error {
	if o.TTL < 0 || o.Capacity < 0 || o.Tombstone < 0 {
		return fmt.Errorf("%w: ttl, capacity and tombstone cannot be negative; use 0 for none", ErrInvalid)
	}
	if len(o.Indexes) > MaxIndexes {
		return fmt.Errorf("%w: %d indexes declared; at most %d are kept", ErrInvalid, len(o.Indexes), MaxIndexes)
	}
	for _, name := range o.Indexes {
		if name == "" || len(name) > MaxIndexBytes {
			return fmt.Errorf("%w: an index name is empty or longer than %d bytes; shorten it", ErrInvalid, MaxIndexBytes)
		}
	}
	return nil
}

// Equal tells whether two options mean the same.
func (o Options) Equal(p Options) bool {
	return o.TTL == p.TTL && o.Capacity == p.Capacity && o.Tombstone == p.Tombstone &&
		o.EndsWithServer == p.EndsWithServer && slices.Equal(o.Indexes, p.Indexes)
}

// Retention is how long a deletion is kept: for watchers, and to refuse the id.
func (o Options) Retention() time.Duration { return max(History, o.Tombstone) }

// Watcher tells what changes.
type Watcher interface {
	// Watch streams a type (or, if typ is "", all types).
	//
	// From the zero cursor it gives all living records, then a [Synced] mark,
	// then changes. From a cursor of an earlier event it gives what changed
	// since, then Synced, then changes. Events are in version order. Changes
	// of one record that follow each other quickly may arrive as one, the
	// latest; a deletion is never left out. Heartbeats come at least every
	// [Heartbeat] while nothing changes.
	//
	// ErrWrongServer if the cursor is of another server version,
	// ErrHistoryGone if it is too old or from the future. Both may also end a
	// running stream.
	Watch(ctx context.Context, typ string, after Cursor) (Stream, error)
}

// Cursor is a place in a store's history. The zero Cursor is its beginning.
type Cursor struct {
	Server  uint64
	Version uint64
}

// Heartbeat is the longest silence of a healthy stream.
const Heartbeat = 2 * time.Second

// Stream is a running watch, for one goroutine.
type Stream interface {
	// Next waits for the next event. After an error the stream is over.
	Next(ctx context.Context) (Event, error)
	// Close frees the stream; it may be called at any time, also twice.
	Close() error
}

// EventKind says what an Event is.
type EventKind uint8

const (
	// Changed carries a record: a living one, or a deletion.
	Changed EventKind = iota + 1
	// Synced says that everything that was there when the watch began has
	// been delivered. It comes once.
	Synced
	// Progress says that everything written before AsOf has been delivered.
	Progress
)

// Event is one step of a Stream.
type Event struct {
	Kind   EventKind
	Record *Record // Changed only
	// Cursor is where to resume after this event. During the first sync it is
	// the zero cursor, since half a sync cannot be resumed.
	Cursor Cursor
	// AsOf (Synced and Progress) is the moment, on this process's monotonic
	// clock, at which the store was seen to hold nothing newer.
	AsOf time.Time
}

// Leaser gives named, expiring locks, so that one node does what only one
// should.
type Leaser interface {
	// Acquire takes the lease for ttl, or fails with ErrLeaseHeld.
	Acquire(ctx context.Context, name string, ttl time.Duration) (Lease, error)
	// Renew prolongs a held lease to ttl from now. ErrLeaseLost if it ran out
	// or was taken, even if nobody holds it now.
	Renew(ctx context.Context, l Lease, ttl time.Duration) (Lease, error)
	// Release gives the lease up; a lease already lost is no error.
	Release(ctx context.Context, l Lease) error
}

// Lease is a lock held until it expires.
type Lease struct {
	Name string
	// ID is the secret by which the holder is known.
	ID string
	// Fence grows with every Acquire of the store: of two holders, the one
	// with the larger number is the rightful one.
	Fence   uint64
	Expires time.Time
}

// Admin is for operators, backups and the databroker's Clear.
type Admin interface {
	// NewServerVersion begins a new history: every cursor and handle of the
	// old one is void, and records of types with EndsWithServer are removed.
	// It must be called after a store was restored from a backup.
	NewServerVersion(ctx context.Context, by Actor) (Versions, error)
	// Clear removes all records and begins a new history. Tombstones stay,
	// and what is removed gets one where its type keeps them.
	Clear(ctx context.Context, by Actor) (Versions, error)
}

// KeyringType is the one type that belongs to the store package: the wrapped
// data keys of encryption at rest. It is not listed, and survives Clear.
const KeyringType = "postern.store.Keyring"
