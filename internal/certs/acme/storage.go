package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/caddyserver/certmagic"

	"postern/internal/record"
)

// storageURL is autocert_dir, parsed (configuration.md §2.3).
type storageURL struct {
	kind   string // dir, s3, gs, records
	dir    string
	host   string // s3: endpoint
	secure bool
	region string
	user   string
	pass   string
	bucket string
	prefix string
}

// amazon is bucket.s3.region.amazonaws.com, or the older bucket.s3-region.
var amazon = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*)\.s3[.-]([a-z0-9-]+)\.(amazonaws\.com(?:\.cn)?)$`)

func parseStorage(text string) (storageURL, error) {
	if !strings.Contains(text, "://") {
		if text == "" {
			text = DefaultDir()
		}
		dir, err := filepath.Abs(text)
		if err != nil {
			return storageURL{}, fmt.Errorf("autocert_dir: %w; give an absolute path", err)
		}
		return storageURL{kind: "dir", dir: dir}, nil
	}
	u, err := url.Parse(text)
	if err != nil {
		// The error of url.Parse would repeat the password.
		return storageURL{}, errors.New("autocert_dir: it is not a URL that can be read; write s3://host/bucket/prefix, gs://bucket/prefix, records:// or a directory")
	}
	s := storageURL{kind: strings.ToLower(u.Scheme), prefix: strings.Trim(u.Path, "/")}
	switch s.kind {
	case "records":
		s.prefix = strings.Trim(u.Host+u.Path, "/")
	case "gs":
		s.bucket = u.Host
	case "s3":
		s.host, s.secure = strings.ToLower(u.Host), true
		if m := amazon.FindStringSubmatch(s.host); m != nil && u.User == nil {
			s.bucket, s.region, s.host = m[1], m[2], "s3."+m[2]+"."+m[3]
			break
		}
		if u.User != nil {
			s.user = u.User.Username()
			s.pass, _ = u.User.Password()
		}
		s.bucket, s.prefix, _ = strings.Cut(s.prefix, "/")
		s.region = u.Query().Get("region")
		// Clear text is for this machine alone.
		switch u.Hostname() {
		case "localhost", "127.0.0.1", "::1":
			s.secure = u.Query().Get("tls") == "on"
		}
	default:
		return s, fmt.Errorf("autocert_dir: the scheme %q is not known; write a directory, s3://, gs:// or records://", u.Scheme)
	}
	if s.kind != "records" && s.bucket == "" {
		return s, fmt.Errorf("autocert_dir: it names no bucket; write s3://bucket.s3.region.amazonaws.com/prefix, s3://host/bucket/prefix or gs://bucket/prefix")
	}
	return s, nil
}

// open makes the storage; it may touch the disk, and no network.
func (s storageURL) open(records record.Store, log *slog.Logger) (certmagic.Storage, error) {
	switch s.kind {
	case "records":
		if records == nil {
			return nil, errors.New("autocert_dir: there is no record store")
		}
		return newRecordStorage(records, s.prefix, log), nil
	case "s3":
		o, err := newS3(s)
		if err != nil {
			return nil, fmt.Errorf("autocert_dir: %w", err)
		}
		return newObjectStorage(o, s.prefix, log), nil
	case "gs":
		o, err := newGCS(s)
		if err != nil {
			return nil, fmt.Errorf("autocert_dir: %w", err)
		}
		return newObjectStorage(o, s.prefix, log), nil
	}
	return &certmagic.FileStorage{Path: s.dir}, nil
}

// storageError marks what went wrong in the storage, not at the server.
type storageError struct{ err error }

func (e *storageError) Error() string {
	return "the storage of certificates (autocert_dir) fails: " + e.err.Error()
}
func (e *storageError) Unwrap() error { return e.err }

// checked marks errors of a storage as such, so that the log says who fails.
type checked struct{ certmagic.Storage }

func (c checked) Load(ctx context.Context, key string) ([]byte, error) {
	b, err := c.Storage.Load(ctx, key)
	return b, storageFault(err)
}

func (c checked) Store(ctx context.Context, key string, value []byte) error {
	return storageFault(c.Storage.Store(ctx, key, value))
}

func (c checked) Delete(ctx context.Context, key string) error {
	return storageFault(c.Storage.Delete(ctx, key))
}

func (c checked) Lock(ctx context.Context, name string) error {
	return storageFault(c.Storage.Lock(ctx, name))
}

func (c checked) Unlock(ctx context.Context, name string) error {
	return storageFault(c.Storage.Unlock(ctx, name))
}

func storageFault(err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &storageError{err}
}

// nowhere stands in for a storage that could not be opened.
type nowhere struct{}

var errNowhere = errors.New("it could not be opened")

func (nowhere) Lock(context.Context, string) error                   { return errNowhere }
func (nowhere) Unlock(context.Context, string) error                 { return errNowhere }
func (nowhere) Store(context.Context, string, []byte) error          { return errNowhere }
func (nowhere) Load(context.Context, string) ([]byte, error)         { return nil, errNowhere }
func (nowhere) Delete(context.Context, string) error                 { return errNowhere }
func (nowhere) Exists(context.Context, string) bool                  { return false }
func (nowhere) List(context.Context, string, bool) ([]string, error) { return nil, errNowhere }
func (nowhere) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, errNowhere
}
