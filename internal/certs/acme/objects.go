package acme

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// objects is a bucket, as much of it as is needed. Keys do not begin with a
// slash. get and remove give fs.ErrNotExist, put errTaken.
type objects interface {
	get(ctx context.Context, key string) (value []byte, info objectInfo, err error)
	// put writes whatever is there (anyTag), only if nothing is (noTag), or
	// only over the version with a tag.
	put(ctx context.Context, key string, value []byte, over string) (tag string, err error)
	remove(ctx context.Context, key string) error
	list(ctx context.Context, prefix string) ([]string, error)
}

const (
	anyTag = ""
	noTag  = "*"
)

// errTaken: the object is not in the state that the put expects.
var errTaken = errors.New("somebody else wrote it")

type objectInfo struct {
	tag      string
	modified time.Time
}

// objectStorage keeps everything as objects of a bucket. Locks are objects
// that are created by one writer only, name their holder, and expire.
type objectStorage struct {
	objects objects
	prefix  string
	log     *slog.Logger
	ttl     time.Duration

	mu    sync.Mutex
	locks map[string]*objectLock
}

// lockObject is what a lock holds.
type lockObject struct {
	Holder  string    `json:"holder"`
	Expires time.Time `json:"expires"`
}

type objectLock struct {
	stop context.CancelFunc
	done chan struct{}
	tag  string
}

// objectLockTTL is how long the lock of a replica that died stays.
const objectLockTTL = time.Minute

// maxObject bounds what is read back.
const maxObject = 4 << 20

func newObjectStorage(o objects, prefix string, log *slog.Logger) *objectStorage {
	return &objectStorage{objects: o, prefix: prefix, log: log, ttl: objectLockTTL, locks: map[string]*objectLock{}}
}

func (s *objectStorage) key(key string) string { return path.Join(s.prefix, key) }

func (s *objectStorage) Store(ctx context.Context, key string, value []byte) error {
	_, err := s.objects.put(ctx, s.key(key), value, anyTag)
	return err
}

func (s *objectStorage) Load(ctx context.Context, key string) ([]byte, error) {
	b, _, err := s.objects.get(ctx, s.key(key))
	return b, err
}

// below gives the keys at and under key, without the prefix.
func (s *objectStorage) below(ctx context.Context, key string) ([]string, error) {
	full := s.key(key)
	list, err := s.objects.list(ctx, full)
	var out []string
	for _, k := range list {
		if full == "" || k == full || strings.HasPrefix(k, full+"/") {
			out = append(out, strings.TrimPrefix(strings.TrimPrefix(k, s.prefix), "/"))
		}
	}
	return out, err
}

func (s *objectStorage) Delete(ctx context.Context, key string) error {
	list, err := s.below(ctx, key)
	for _, k := range list {
		if e := s.objects.remove(ctx, s.key(k)); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (s *objectStorage) Exists(ctx context.Context, key string) bool {
	list, err := s.below(ctx, key)
	return err == nil && len(list) > 0
}

func (s *objectStorage) List(ctx context.Context, dir string, recursive bool) ([]string, error) {
	list, err := s.below(ctx, dir)
	if err != nil {
		return nil, err
	}
	return listing(list, dir, recursive)
}

func (s *objectStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	b, info, err := s.objects.get(ctx, s.key(key))
	if errors.Is(err, fs.ErrNotExist) && s.Exists(ctx, key) {
		return certmagic.KeyInfo{Key: key}, nil
	}
	return certmagic.KeyInfo{Key: key, Modified: info.modified, Size: int64(len(b)), IsTerminal: err == nil}, err
}

// Lock implements certmagic.Locker.
func (s *objectStorage) Lock(ctx context.Context, name string) error {
	key := s.key(path.Join("locks", certmagic.StorageKeys.Safe(name)+".lock"))
	holder := rand.Text()
	for {
		tag, err := s.take(ctx, key, holder)
		if err == nil {
			s.hold(name, key, holder, tag)
			return nil
		}
		if !errors.Is(err, errTaken) {
			return err
		}
		select {
		case <-time.After(s.ttl / 60):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take creates the lock, or takes over one that has expired.
func (s *objectStorage) take(ctx context.Context, key, holder string) (string, error) {
	tag, err := s.write(ctx, key, holder, noTag)
	if !errors.Is(err, errTaken) {
		return tag, err
	}
	b, info, err := s.objects.get(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errTaken // given up this moment: once more
	}
	if err != nil {
		return "", err
	}
	var l lockObject
	// The clocks of replicas differ by seconds.
	if json.Unmarshal(b, &l) == nil && time.Now().Before(l.Expires.Add(s.ttl/6)) {
		return "", errTaken
	}
	return s.write(ctx, key, holder, info.tag)
}

// write writes the lock and reads it back: a server that does not know
// conditional writes would let two holders in.
func (s *objectStorage) write(ctx context.Context, key, holder, over string) (string, error) {
	b, err := json.Marshal(lockObject{holder, time.Now().Add(s.ttl)})
	if err != nil {
		return "", err
	}
	if _, err := s.objects.put(ctx, key, b, over); err != nil {
		return "", err
	}
	b, info, err := s.objects.get(ctx, key)
	if err != nil {
		return "", err
	}
	var l lockObject
	if json.Unmarshal(b, &l) != nil || l.Holder != holder {
		return "", fmt.Errorf("%w: the lock %s", errTaken, key)
	}
	return info.tag, nil
}

func (s *objectStorage) hold(name, key, holder, tag string) {
	ctx, stop := context.WithCancel(context.Background())
	l := &objectLock{stop: stop, done: make(chan struct{}), tag: tag}
	s.mu.Lock()
	s.locks[name] = l
	s.mu.Unlock()
	go func() {
		defer close(l.done)
		tick := time.NewTicker(s.ttl / 3)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			tag, err := s.write(ctx, key, holder, l.tag)
			switch {
			case err == nil:
				l.tag = tag
			case errors.Is(err, errTaken):
				s.log.Warn("autocert: a lock was lost; another replica may do the same work", "lock", name)
				l.tag = ""
				return
			}
		}
	}()
}

// Unlock implements certmagic.Locker.
func (s *objectStorage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	l := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	l.stop()
	<-l.done
	if l.tag == "" {
		return nil // somebody else's by now
	}
	err := s.objects.remove(ctx, s.key(path.Join("locks", certmagic.StorageKeys.Safe(name)+".lock")))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
