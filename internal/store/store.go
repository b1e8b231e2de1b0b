// Package store opens the place where records live and stands above every
// backend: it checks what is written, seals it (encryption at rest), and
// tells the audit trail.
//
//	s, err := store.Open(ctx, store.Options{Type: "file", ConnectionString: "file:///var/lib/postern",
//		Secrets: [][]byte{shared}})
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"

	"postern/internal/record"
	"postern/internal/store/file"
	"postern/internal/store/memory"
)

// Options of Open.
type Options struct {
	// Type is the backend: "memory" (also if empty) or "file".
	Type string
	// ConnectionString says where; for "file" it is file:///directory. If it
	// is empty, records are kept in the folder "records" of DataDir.
	ConnectionString string
	DataDir          string
	// Secrets are the shared secrets, the current one first. The others (the
	// previous ones) open what they sealed and never seal. If there are none,
	// the file backend makes one and keeps it in its directory.
	Secrets [][]byte
	// OnWrite is told of every acknowledged write, before its caller hears of
	// it. It may be nil.
	OnWrite func(ctx context.Context, writes []record.Write)
	// Carried, if not nil, is what [Carry] wrote of a memory store that the new
	// one continues. Other backends do not read it.
	Carried io.Reader
	// Logger may be nil.
	Logger *slog.Logger
}

// Open opens the record store that the options name. The zero server version
// never occurs; compare [record.Versions.Server] to notice a restored backup.
func Open(ctx context.Context, o Options) (record.Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch o.Type {
	case "", "memory":
		if o.Carried != nil {
			m, err := memory.Restore(o.Carried)
			if err != nil {
				return nil, err
			}
			return guard(m, nil, o.OnWrite), nil
		}
		return guard(memory.New(), nil, o.OnWrite), nil
	case "file":
		return openFile(ctx, o)
	case "postgres":
		return nil, errors.New("databroker_storage_type: postgres is not in this version of Postern; use file (one machine) or memory")
	}
	return nil, fmt.Errorf("databroker_storage_type: %q is unknown; use memory or file", o.Type)
}

// Carry writes what a memory store holds, for Options.Carried of the process
// that follows. For backends that keep their records elsewhere it writes
// nothing. What it writes is not encrypted.
func Carry(s record.Store, w io.Writer) error {
	if g, ok := s.(*guarded); ok {
		s = g.Store
	}
	if d, ok := s.(interface{ Dump(io.Writer) error }); ok {
		return d.Dump(w)
	}
	return nil
}

func openFile(ctx context.Context, o Options) (record.Store, error) {
	dir, err := o.Dir()
	if err != nil {
		return nil, err
	}
	secrets := o.Secrets
	if len(secrets) == 0 {
		made, err := LoadOrCreateSecret(dir)
		if err != nil {
			return nil, err
		}
		secrets = [][]byte{made}
	}
	inner, err := file.Open(dir, file.Options{Opaque: true, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	ring, err := openRing(ctx, inner, secrets)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the records in %s: %w", dir, err), inner.Close())
	}
	return guard(inner, ring, o.OnWrite), nil
}

// Dir is the directory of the file backend.
func (o Options) Dir() (string, error) {
	if o.ConnectionString == "" {
		if o.DataDir == "" {
			return "", errors.New("databroker_storage_type file needs a directory; set databroker_storage_connection_string to file:///directory, or data_dir")
		}
		return filepath.Join(o.DataDir, "records"), nil
	}
	u, err := url.Parse(o.ConnectionString)
	if err != nil || u.Scheme != "file" || u.Host != "" && u.Host != "localhost" || !filepath.IsAbs(u.Path) ||
		u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return "", errors.New("databroker_storage_connection_string: the file backend takes file:///directory with an absolute path")
	}
	return filepath.Clean(u.Path), nil
}
