// Package file keeps records in one directory, in an embedded database
// (bbolt), for a single process. The directory holds:
//
//	records.db   the database
//	lock         held while a process uses the directory; names its pid
//	place        which database belongs here, to notice a restored backup
//
// and, where no secret is configured, shared_secret (made by package store).
// Everything is 0600, and 0700 for a directory made here.
//
// What is acknowledged is on disk: every commit is synced before any of its
// writers hears of it. Writers that come together share one commit.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"postern/internal/record"
	"postern/internal/store/engine"
)

// Options of Open.
type Options struct {
	// Opaque says that Data is sealed by a layer above and is not JSON.
	Opaque bool
	// Logger hears of a restored backup and the like; nil for silence.
	Logger *slog.Logger
}

// Store is the open directory.
type Store struct {
	*engine.Store
	restored bool
}

// Restored tells whether Open found the database restored from a backup or
// copied here, and so began a new server version.
func (s *Store) Restored() bool { return s.restored }

// Open opens the directory, making it if need be. Its errors say what to do.
func Open(dir string, o Options) (*Store, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := open(dir, o.Logger)
	if err != nil {
		return nil, err
	}
	eng, err := engine.New(b, engine.Options{Opaque: o.Opaque})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	s := &Store{Store: eng}
	if err := s.settle(b, o.Logger); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// settle begins a new server version if the database was not the one that
// was last used in this directory, and notes that it now is.
func (s *Store) settle(b *backend, log *slog.Logger) error {
	why, err := b.moved()
	if err != nil {
		return err
	}
	if why != "" {
		s.restored = true
		log.Warn("the record database looks restored or copied: all sessions end, people sign in again", "dir", b.dir, "because", why)
		if _, err := s.NewServerVersion(context.Background(), record.System("restore")); err != nil {
			return err
		}
	}
	return b.notePlace()
}

// backend is an engine.Backend over bbolt.
type backend struct {
	dir  string
	path string
	lock *os.File
	log  *slog.Logger

	mu sync.RWMutex // held for writing only to replace db
	db *bolt.DB
	// broken, once set, is why nothing more is tried: the file is damaged.
	broken atomic.Pointer[error]

	queue  chan *op
	close  sync.Once
	done   chan struct{}
	writer sync.WaitGroup
}

// checkLimit is the largest file whose every page is checked when it is
// opened; beyond it a check would delay the start too long, and damage shows
// when it is met.
const checkLimit = 512 << 20

func open(dir string, log *slog.Logger) (_ *backend, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := makeDir(dir, log); err != nil {
		return nil, err
	}
	b := &backend{dir: dir, path: filepath.Join(dir, "records.db"), log: log, queue: make(chan *op, maxTogether), done: make(chan struct{})}
	if b.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if b.db != nil {
				b.db.Close()
			}
			b.lock.Close()
		}
	}()
	if err := b.create(); err != nil {
		return nil, b.explain(err)
	}
	if err := b.openDB(); err != nil {
		return nil, err
	}
	if err := b.prepare(); err != nil {
		return nil, err
	}
	b.writer.Go(b.write)
	return b, nil
}

// create makes a database under another name and renames it when it is whole,
// so that a crash leaves no half of one.
func (b *backend) create() error {
	if _, err := os.Stat(b.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	half := b.path + ".new"
	if err := os.Remove(half); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(half, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	b.db = db
	err = errors.Join(b.prepare(), db.Close())
	if b.db = nil; err != nil {
		return err
	}
	if err := os.Rename(half, b.path); err != nil {
		return err
	}
	return syncDir(b.dir)
}

func (b *backend) openDB() error {
	if err := checkFile(b.path, checkLimit); err != nil {
		return b.explain(err)
	}
	return b.guard(func() error {
		db, err := bolt.Open(b.path, 0o600, &bolt.Options{
			Timeout:      time.Second, // ours is the lock that tells; this one only backs it
			FreelistType: bolt.FreelistMapType,
		})
		if err != nil {
			return err
		}
		b.db = db
		return nil
	})
}

// guard runs f with the panics and memory faults of a damaged file turned
// into errors. They are final: the database is not touched again.
func (b *backend) guard(f func() error) (err error) {
	if why := b.broken.Load(); why != nil {
		return *why
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = damaged(b.path, fmt.Sprint(r))
			b.broken.Store(&err)
		}
	}()
	return b.explain(f())
}

func damaged(path, what string) error {
	return fmt.Errorf("%w: %s is damaged (%s); restore the directory from a backup, or move the file away to start empty (everybody signs in again)",
		record.ErrUnavailable, path, what)
}

// explain adds to an error of the system what the operator can do.
func (b *backend) explain(err error) error {
	switch {
	case err == nil || errors.Is(err, record.ErrUnavailable):
		return err
	case is(err, syscall.ENOSPC), is(err, syscall.EDQUOT), is(err, syscall.EFBIG):
		return fmt.Errorf("%w: no room to write %s (%w); free disk space or raise the limit. What was acknowledged before is safe", record.ErrUnavailable, b.path, err)
	case is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s cannot be written (%w); give this user write access to %s, or choose another directory in databroker_storage_connection_string", record.ErrUnavailable, b.path, err, b.dir)
	case errors.Is(err, bolterrors.ErrDatabaseNotOpen):
		return fmt.Errorf("%w: it was closed; the process is stopping", record.ErrUnavailable)
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("%w: another program holds %s; stop it first", record.ErrUnavailable, b.path)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return damaged(b.path, err.Error())
	}
	var sys syscall.Errno
	if errors.As(err, &sys) || is(err, syscall.EIO) {
		return fmt.Errorf("%w: %s: %w; check the disk", record.ErrUnavailable, b.path, err)
	}
	return err
}

// is also knows an error by its text, since bbolt does not wrap all of them.
func is(err error, no syscall.Errno) bool {
	return errors.Is(err, no) || strings.HasSuffix(err.Error(), no.Error())
}

// View implements engine.Backend.
func (b *backend) View(f func(engine.Tx) error) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.guard(func() error {
		return b.db.View(func(t *bolt.Tx) error { return f(newTx(t)) })
	})
}

// op is one Update on its way through the writer.
type op struct {
	f     func(engine.Tx) error
	taken atomic.Bool // by the writer, or by its own caller giving up
	err   error
	done  chan struct{}
}

// maxTogether bounds how many updates share a commit.
const maxTogether = 256

// Update implements engine.Backend.
func (b *backend) Update(ctx context.Context, f func(engine.Tx) error) error {
	o := &op{f: f, done: make(chan struct{})}
	select {
	case b.queue <- o:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.done:
		return b.explain(bolterrors.ErrDatabaseNotOpen)
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		if o.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
	case <-b.done:
		if o.taken.CompareAndSwap(false, true) {
			return b.explain(bolterrors.ErrDatabaseNotOpen)
		}
	}
	<-o.done // it is being written: wait for the truth
	return o.err
}

// write is the only writer. While it syncs one commit, the next ones gather
// in the queue and become one commit too.
func (b *backend) write() {
	for {
		var batch []*op
		select {
		case o := <-b.queue:
			batch = append(batch, o)
		case <-b.done:
			return
		}
	gather:
		for len(batch) < maxTogether {
			select {
			case o := <-b.queue:
				batch = append(batch, o)
			default:
				break gather
			}
		}
		b.commit(batch)
	}
}

// commit runs a batch in one transaction and tells each caller.
func (b *backend) commit(batch []*op) {
	mine := batch[:0]
	for _, o := range batch {
		if o.taken.CompareAndSwap(false, true) {
			mine = append(mine, o)
		}
	}
	if len(mine) == 0 {
		return
	}
	var began bool
	b.mu.RLock()
	err := b.guard(func() error {
		return b.db.Update(func(t *bolt.Tx) error {
			began = true
			tx := newTx(t)
			for _, o := range mine {
				before := tx.writes
				o.err = o.f(tx)
				if o.err != nil && tx.writes != before {
					return o.err // half done: nothing of this transaction may stay
				}
			}
			return nil
		})
	})
	b.mu.RUnlock()
	if err != nil {
		if began && b.broken.Load() == nil {
			b.reopen()
		}
		for _, o := range mine {
			o.err = err
		}
	}
	for _, o := range mine {
		close(o.done)
	}
}

// reopen reads the database afresh after a failed commit. The failure may
// have struck anywhere, even after the last byte was written, so what memory
// believes about the file is worth nothing.
func (b *backend) reopen() {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.guard(b.db.Close)
	if err == nil {
		err = b.openDB()
	}
	if err != nil {
		err = fmt.Errorf("%w: %s could not be reopened after a failed write: %w; restart once the disk is well", record.ErrUnavailable, b.path, err)
		b.broken.CompareAndSwap(nil, &err)
		b.log.Error("the record database is out of use", "error", err)
	}
}

// Close implements engine.Backend.
func (b *backend) Close() (err error) {
	b.close.Do(func() {
		close(b.done)
		b.writer.Wait()
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.broken.Load() == nil {
			err = b.guard(b.db.Close)
		}
		err = errors.Join(err, b.lock.Close())
	})
	return err
}
