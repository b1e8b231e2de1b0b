package handover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"postern/internal/record"
)

// The wire is HTTP/2 with gob (which, unlike JSON, keeps every byte of a
// string) between two processes of one user on one machine, over a connection
// that only they hold. Both ends are Postern, of two versions that follow each
// other: fields may be added, and never change their meaning.

// request is every argument that a call may have.
type request struct {
	Type    string
	ID      string
	IDs     []string
	Index   string
	Value   string
	Text    string
	Offset  int
	Limit   int
	By      record.Actor
	Records []*wireRecord
	Options record.Options
	Cursor  record.Cursor
	Lease   record.Lease
	TTL     time.Duration
}

// answer is everything that a call may give.
type answer struct {
	Records  []*wireRecord
	Total    int
	Versions record.Versions
	Types    []string
	Options  record.Options
	Lease    record.Lease
	Error    *wireError
}

// wireRecord is a record whose data crosses byte by byte.
type wireRecord struct {
	Type       string
	ID         string
	Version    uint64
	ModifiedAt time.Time
	DeletedAt  time.Time
	Namespace  string
	Data       []byte
	Index      map[string]string
}

func toWire(recs ...*record.Record) []*wireRecord {
	out := make([]*wireRecord, 0, len(recs))
	for _, r := range recs {
		if r != nil {
			out = append(out, &wireRecord{r.Type, r.ID, r.Version, r.ModifiedAt, r.DeletedAt, r.Namespace, r.Data, r.Index})
		}
	}
	return out
}

func fromWire(list []*wireRecord) []*record.Record {
	if len(list) == 0 {
		return nil
	}
	out := make([]*record.Record, len(list))
	for i, r := range list {
		if r != nil { // gob gives none that is
			out[i] = &record.Record{Type: r.Type, ID: r.ID, Version: r.Version, ModifiedAt: r.ModifiedAt, DeletedAt: r.DeletedAt, Namespace: r.Namespace, Data: r.Data, Index: r.Index}
		}
	}
	return out
}

// wireEvent is one line of a watch.
type wireEvent struct {
	Kind   record.EventKind
	Record *wireRecord
	Cursor record.Cursor
	AsOf   int64 // CLOCK_MONOTONIC, which all processes share
	Error  *wireError
}

// clock is CLOCK_MONOTONIC in nanoseconds.
func clock() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return 0
	}
	return ts.Nano()
}

func toClock(t time.Time) int64   { return clock() - int64(time.Since(t)) }
func fromClock(n int64) time.Time { return time.Now().Add(-time.Duration(clock() - n)) }

// wireError is an error that keeps what [errors.Is] finds in it.
type wireError struct {
	Kind string
	Text string
}

var kinds = []struct {
	name string
	err  error
}{
	{"not_found", record.ErrNotFound}, {"conflict", record.ErrConflict}, {"deleted", record.ErrDeleted},
	{"history_gone", record.ErrHistoryGone}, {"wrong_server", record.ErrWrongServer}, {"no_index", record.ErrNoIndex},
	{"lease_held", record.ErrLeaseHeld}, {"lease_lost", record.ErrLeaseLost}, {"invalid", record.ErrInvalid},
}

func toWireError(err error) *wireError {
	if err == nil {
		return nil
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &wireError{k.name, err.Error()}
		}
	}
	return &wireError{"unavailable", err.Error()}
}

// Error is the text that the other process gave.
func (e *wireError) Error() string { return e.Text }

// Unwrap gives the error of package record that it was; ErrUnavailable if it
// was none of them.
func (e *wireError) Unwrap() error {
	for _, k := range kinds {
		if k.name == e.Kind {
			return k.err
		}
	}
	return record.ErrUnavailable
}

// lost is the error of a connection that failed.
func lost(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: the process that holds the records does not answer: %w", record.ErrUnavailable, err)
}
