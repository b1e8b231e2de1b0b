package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	bolt "go.etcd.io/bbolt"

	"postern/internal/record"
)

// makeDir makes the directory, or looks at the one that is there. An existing
// directory keeps its mode: it may be a mounted volume, or hold other things.
func makeDir(dir string, log *slog.Logger) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: the record directory cannot be made: %w; create it for this user, or name another in databroker_storage_connection_string", record.ErrUnavailable, err)
		}
		return syncDir(filepath.Dir(dir))
	case err != nil:
		return fmt.Errorf("%w: the record directory cannot be read: %w; give this user access, or name another in databroker_storage_connection_string", record.ErrUnavailable, err)
	case !fi.IsDir():
		return fmt.Errorf("%w: %s is a file, but records need a directory; name another in databroker_storage_connection_string", record.ErrUnavailable, dir)
	case fi.Mode().Perm()&0o002 != 0 && fi.Mode()&fs.ModeSticky == 0:
		log.Warn("anybody on this machine can replace files in the record directory; chmod it to 700", "dir", dir)
	}
	return nil
}

// lockDir takes the directory for this process, until the file is closed.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		b := backend{dir: dir, path: path}
		return nil, b.explain(err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s cannot be locked: %w; use a file system with locks", record.ErrUnavailable, path, err)
		}
		who := "another process"
		var pid [32]byte
		if n, _ := f.ReadAt(pid[:], 0); n > 0 {
			who += " (pid " + strings.TrimSpace(string(pid[:n])) + ")"
		}
		return nil, fmt.Errorf("%w: %s uses %s; stop it first, or name another directory in databroker_storage_connection_string (several processes share PostgreSQL, not a directory)", record.ErrUnavailable, who, dir)
	}
	// The pid only helps the reader of that message, so failures (a full
	// disk) do not matter.
	if f.Truncate(0) == nil {
		fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// place is the note beside the database that tells a restored or copied
// database from the one last used here. Restoring brings back an older count
// of openings, or makes a new file (another inode), or both.
//
// What it cannot tell is a whole disk set back with everything on it (a
// machine's snapshot), or files overwritten in place together with this note:
// then the operator must ask for a new server version.
type place struct {
	Database string `json:"database"` // random name given when it was made
	Openings uint64 `json:"openings"`
	Inode    uint64 `json:"inode"`
}

// Format is the layout of records.db that this code writes. A higher one is
// refused.
const Format = 1

type header struct {
	Format   int    `json:"format"`
	Database string `json:"database"`
	Openings uint64 `json:"openings"`
}

var (
	bucketStore = []byte("store")
	bucketTypes = []byte("types")
	keyHeader   = []byte("header")
	keyState    = []byte("state")
)

// prepare makes the layout of a new database and refuses one that is not ours
// or of a newer format.
func (b *backend) prepare() error {
	made := false
	err := b.guard(func() error {
		return b.db.View(func(t *bolt.Tx) (err error) {
			_, made, err = b.header(t)
			return err
		})
	})
	if err != nil || made {
		return err
	}
	return b.guard(func() error {
		return b.db.Update(func(t *bolt.Tx) error {
			if _, err := t.CreateBucketIfNotExists(bucketTypes); err != nil {
				return err
			}
			if _, err := t.CreateBucketIfNotExists(bucketStore); err != nil {
				return err
			}
			return putHeader(t, header{Format: Format, Database: randomName()})
		})
	})
}

func (b *backend) header(t *bolt.Tx) (h header, made bool, err error) {
	s := t.Bucket(bucketStore)
	if s == nil {
		if k, _ := t.Cursor().First(); k != nil {
			return h, false, fmt.Errorf("%w: %s is a database of another program; name another directory in databroker_storage_connection_string", record.ErrUnavailable, b.path)
		}
		return h, false, nil
	}
	if err := json.Unmarshal(s.Get(keyHeader), &h); err != nil || h.Format < 1 || t.Bucket(bucketTypes) == nil {
		return h, false, damaged(b.path, "no valid header")
	}
	if h.Format > Format {
		return h, false, fmt.Errorf("%w: %s has format %d, this version of Postern knows up to %d; run the newer version, or restore a backup made before the upgrade", record.ErrUnavailable, b.path, h.Format, Format)
	}
	return h, true, nil
}

func putHeader(t *bolt.Tx, h header) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	return t.Bucket(bucketStore).Put(keyHeader, data)
}

func (b *backend) placePath() string { return filepath.Join(b.dir, "place") }

func (b *backend) inode() (uint64, error) {
	fi, err := os.Stat(b.path)
	if err != nil {
		return 0, err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino, nil
	}
	return 0, nil
}

// moved says why the database is not the one last used here, or "".
func (b *backend) moved() (why string, err error) {
	var h header
	if err := b.guard(func() error {
		return b.db.View(func(t *bolt.Tx) (err error) {
			h, _, err = b.header(t)
			return err
		})
	}); err != nil {
		return "", err
	}
	data, err := os.ReadFile(b.placePath())
	if errors.Is(err, fs.ErrNotExist) {
		if h.Openings == 0 {
			return "", nil // new
		}
		return "it has been used before, but not in this directory", nil
	}
	if err != nil {
		return "", b.explain(err)
	}
	ino, err := b.inode()
	if err != nil {
		return "", b.explain(err)
	}
	var p place
	switch {
	case json.Unmarshal(data, &p) != nil:
		return "the note of the last use is unreadable", nil
	case p.Database != h.Database:
		return "another database was used here last", nil
	case h.Openings < p.Openings:
		return "it was used here later than it remembers", nil
	case p.Inode != ino:
		return "its file was made anew", nil
	}
	return "", nil
}

// notePlace counts this opening, first in the database and then in the note:
// a crash in between leaves the database ahead, which is harmless.
func (b *backend) notePlace() error {
	var h header
	if err := b.guard(func() error {
		return b.db.Update(func(t *bolt.Tx) (err error) {
			if h, _, err = b.header(t); err != nil {
				return err
			}
			h.Openings++
			return putHeader(t, h)
		})
	}); err != nil {
		return err
	}
	ino, err := b.inode()
	if err != nil {
		return b.explain(err)
	}
	data, err := json.Marshal(place{Database: h.Database, Openings: h.Openings, Inode: ino})
	if err != nil {
		return err
	}
	return b.explain(writeFile(b.placePath(), append(bytes.TrimSpace(data), '\n')))
}

// writeFile replaces a file whole, or not at all.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return err
}
