package store

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// secretFile is the name of the made secret inside the file backend's
// directory (decisions 11). It lies beside the records that it seals, so it
// protects a copied database file, not a stolen directory; who wants that
// configures shared_secret from elsewhere.
const secretFile = "shared_secret"

// secretBytes is the length of a made secret, that of a configured one.
const secretBytes = 32

// LoadOrCreateSecret returns the secret kept in dir, and makes it (and dir) the
// first time. Processes that come together get the same one.
func LoadOrCreateSecret(dir string) ([]byte, error) {
	path := filepath.Join(dir, secretFile)
	secret, err := loadSecret(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := createSecret(dir, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("no shared_secret is configured and none can be made: %w; configure shared_secret, or give this user write access to %s", err, dir)
	}
	return loadSecret(path)
}

func loadSecret(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the made secret cannot be read: %w; give this user access, or configure shared_secret", err)
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o); chmod it to 600, and if others may have read it, configure a new shared_secret", path, fi.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the made secret cannot be read: %w; give this user access, or configure shared_secret", err)
	}
	secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(data)))
	if err != nil || len(secret) != secretBytes {
		return nil, fmt.Errorf("%s does not hold a secret (base64 of %d bytes); restore it from a backup", path, secretBytes)
	}
	return secret, nil
}

// createSecret writes the secret whole under another name and then links it,
// so that a crash leaves no half of one and of two makers one wins.
func createSecret(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	secret := make([]byte, secretBytes)
	rand.Read(secret)
	f, err := os.CreateTemp(dir, "."+secretFile+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(base64.StdEncoding.EncodeToString(secret) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
