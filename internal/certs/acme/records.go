package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"postern/internal/record"
)

// recordStorage keeps everything in the record store: sealed as all records
// are, shared by all replicas, locked by leases. autocert_dir records://.
type recordStorage struct {
	store  record.Store
	prefix string
	log    *slog.Logger

	mu     sync.Mutex
	leases map[string]*heldLease
}

// RecordType is the type of the records that hold ACME accounts, certificates
// and open challenges.
const RecordType = "postern.acme.Item"

type recordItem struct {
	Value []byte `json:"value"`
}

type heldLease struct {
	lease record.Lease
	stop  context.CancelFunc
	done  chan struct{}
}

// A replica that dies gives its locks up after this.
const leaseTTL = 30 * time.Second

var actor = record.System("autocert")

func newRecordStorage(store record.Store, prefix string, log *slog.Logger) *recordStorage {
	return &recordStorage{store: store, prefix: prefix, log: log, leases: map[string]*heldLease{}}
}

func (s *recordStorage) id(key string) string { return path.Join(s.prefix, key) }

func notExist(key string, err error) error {
	if errors.Is(err, record.ErrNotFound) {
		return fmt.Errorf("%s: %w", key, fs.ErrNotExist)
	}
	return err
}

func (s *recordStorage) Store(ctx context.Context, key string, value []byte) error {
	data, err := json.Marshal(recordItem{value})
	if err != nil {
		return err
	}
	_, err = s.store.Put(ctx, actor, &record.Record{Type: RecordType, ID: s.id(key), Data: data})
	return err
}

func (s *recordStorage) Load(ctx context.Context, key string) ([]byte, error) {
	rec, err := s.store.Get(ctx, RecordType, s.id(key))
	if err != nil {
		return nil, notExist(key, err)
	}
	var item recordItem
	err = json.Unmarshal(rec.Data, &item)
	return item.Value, err
}

// below lists the records at a key and under it.
func (s *recordStorage) below(ctx context.Context, key string) ([]*record.Record, error) {
	id := s.id(key)
	page, err := s.store.List(ctx, RecordType, record.Query{Match: func(r *record.Record) bool {
		return id == "" || r.ID == id || strings.HasPrefix(r.ID, id+"/")
	}})
	return page.Records, err
}

func (s *recordStorage) Delete(ctx context.Context, key string) error {
	list, err := s.below(ctx, key)
	if err != nil || len(list) == 0 {
		return err
	}
	ids := make([]string, len(list))
	for i, r := range list {
		ids[i] = r.ID
	}
	return s.store.Delete(ctx, actor, RecordType, ids...)
}

func (s *recordStorage) Exists(ctx context.Context, key string) bool {
	if _, err := s.store.Get(ctx, RecordType, s.id(key)); err == nil {
		return true
	}
	list, err := s.below(ctx, key)
	return err == nil && len(list) > 0
}

func (s *recordStorage) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	list, err := s.below(ctx, dir)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(list))
	for i, r := range list {
		keys[i] = strings.TrimPrefix(strings.TrimPrefix(r.ID, s.prefix), "/")
	}
	return listing(keys, dir, recursive)
}

// listing makes of all keys under dir what certmagic.Storage.List gives: them,
// or the names directly in dir.
func listing(keys []string, dir string, recursive bool) ([]string, error) {
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s: %w", dir, fs.ErrNotExist)
	}
	if !recursive {
		base := ""
		if dir = strings.Trim(dir, "/"); dir != "" {
			base = dir + "/"
		}
		for i, k := range keys {
			first, _, _ := strings.Cut(strings.TrimPrefix(k, base), "/")
			keys[i] = base + first
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

func (s *recordStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	rec, err := s.store.Get(ctx, RecordType, s.id(key))
	if errors.Is(err, record.ErrNotFound) && s.Exists(ctx, key) {
		return certmagic.KeyInfo{Key: key}, nil
	}
	if err != nil {
		return certmagic.KeyInfo{}, notExist(key, err)
	}
	var item recordItem
	err = json.Unmarshal(rec.Data, &item)
	return certmagic.KeyInfo{Key: key, Modified: rec.ModifiedAt, Size: int64(len(item.Value)), IsTerminal: true}, err
}

// Lock implements certmagic.Locker by a lease that is prolonged until Unlock.
func (s *recordStorage) Lock(ctx context.Context, name string) error {
	for {
		lease, err := s.store.Acquire(ctx, "acme/"+s.id(name), leaseTTL)
		if err == nil {
			s.hold(name, lease)
			return nil
		}
		if !errors.Is(err, record.ErrLeaseHeld) {
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *recordStorage) hold(name string, lease record.Lease) {
	ctx, stop := context.WithCancel(context.Background())
	h := &heldLease{lease: lease, stop: stop, done: make(chan struct{})}
	s.mu.Lock()
	s.leases[name] = h
	s.mu.Unlock()
	go func() {
		defer close(h.done)
		tick := time.NewTicker(leaseTTL / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			l, err := s.store.Renew(ctx, h.lease, leaseTTL)
			switch {
			case err == nil:
				h.lease = l
			case errors.Is(err, record.ErrLeaseLost):
				s.log.Warn("autocert: a lock was lost; another replica may do the same work", "lock", name)
				return
			}
		}
	}()
}

// Unlock implements certmagic.Locker.
func (s *recordStorage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	h := s.leases[name]
	delete(s.leases, name)
	s.mu.Unlock()
	if h == nil {
		return nil
	}
	h.stop()
	<-h.done
	return s.store.Release(ctx, h.lease)
}
