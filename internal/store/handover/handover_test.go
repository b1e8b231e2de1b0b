package handover

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/record"
	"postern/internal/record/recordtest"
	"postern/internal/store/memory"
)

// remote is a store behind a connection.
func remote(t *testing.T, s record.Store) *Remote {
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, NewOneConn(a), http.StripPrefix("/records", Handler(s)))
	}()
	client, err := Dial(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); <-done; client.Close() })
	return NewRemote(client, "http://successor/records")
}

// The store at the other end keeps the whole contract.
func TestContract(t *testing.T) {
	recordtest.Run(t, func(t *testing.T) record.Store {
		inner := memory.New()
		t.Cleanup(func() { inner.Close() })
		return remote(t, inner)
	})
}

// So does one that can move.
func TestMovableContract(t *testing.T) {
	recordtest.Run(t, func(t *testing.T) record.Store { return NewMovable(memory.New()) })
}

var me = record.Actor{Kind: record.ActorSystem, Via: "test"}

// Calls wait while the store moves and then reach the new place; those under
// way end first; a watch goes on from its cursor.
func TestMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		first, second := memory.New(), memory.New()
		defer second.Close()
		m := NewMovable(first)
		defer m.Close()
		if _, err := m.Put(ctx, me, &record.Record{Type: "a", ID: "1", Data: []byte(`{}`)}); err != nil {
			t.Fatal(err)
		}
		inner, err := m.Pause(ctx)
		if err != nil || inner != first {
			t.Fatal(inner, err)
		}
		if _, err := m.Pause(ctx); err == nil {
			t.Error("paused twice")
		}
		done := make(chan error, 1)
		go func() {
			_, err := m.Put(ctx, me, &record.Record{Type: "a", ID: "2", Data: []byte(`{}`)})
			done <- err
		}()
		synctest.Wait()
		select {
		case err := <-done:
			t.Fatal("a write passed while the store moved:", err)
		default:
		}
		inner.Close()
		m.Resume(second)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := second.Get(ctx, "a", "2"); err != nil {
			t.Error(err)
		}
		// Nobody waits for ever, and a call can give up.
		if _, err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Get(ctx, "a", "2"); !errors.Is(err, record.ErrUnavailable) {
			t.Error(err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := m.Get(short, "a", "2"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		m.Resume(second)
		if _, err := m.Get(ctx, "a", "2"); err != nil {
			t.Error(err)
		}
	})
}

// slow holds a call until it is let go.
type slow struct {
	record.Store
	in, out chan struct{}
}

func (s slow) Get(context.Context, string, string) (*record.Record, error) {
	close(s.in)
	<-s.out
	return nil, record.ErrNotFound
}

// A move waits for calls under way, and is given up if they do not end.
func TestMoveWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := memory.New()
		defer inner.Close()
		s := slow{inner, make(chan struct{}), make(chan struct{})}
		m := NewMovable(s)
		go m.Get(t.Context(), "a", "1")
		<-s.in
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.Pause(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		if _, err := m.List(t.Context(), "a", record.Query{}); err != nil {
			t.Error("after a move that was given up:", err)
		}
		go func() { time.Sleep(time.Second); close(s.out) }()
		if _, err := m.Pause(t.Context()); err != nil {
			t.Error(err)
		}
		m.Resume(inner)
	})
}

// A lost connection is unavailable, at once.
func TestLost(t *testing.T) {
	a, b := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	inner := memory.New()
	defer inner.Close()
	go Serve(ctx, NewOneConn(a), http.StripPrefix("/records", Handler(inner)))
	client, err := Dial(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	r := NewRemote(client, "http://successor/records")
	w, err := r.Watch(t.Context(), "a", record.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for err == nil {
		_, err = w.Next(t.Context())
	}
	if !errors.Is(err, record.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := r.Get(t.Context(), "a", "1"); !errors.Is(err, record.ErrUnavailable) {
		t.Error(err)
	}
	if _, err := r.Watch(t.Context(), "a", record.Cursor{}); !errors.Is(err, record.ErrUnavailable) {
		t.Error(err)
	}
}
