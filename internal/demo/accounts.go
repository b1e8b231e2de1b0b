package demo

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Account is a local account of the demonstration with its password in clear:
// it is printed, written to the ready file and kept in accounts.json (0600).
type Account struct {
	Email    string   `json:"email"`
	Password string   `json:"password"`
	Groups   []string `json:"groups"`
	Name     string   `json:"name,omitempty"`
}

// cast are the people of the demonstration.
var cast = []Account{
	{Email: "ada@example.com", Name: "Ada Lindqvist", Groups: []string{"staff", "astronomy"}},
	{Email: "grace@example.com", Name: "Grace Okafor", Groups: []string{"staff", "finance"}},
}

// loadAccounts reads accounts.json of a former start, or makes the accounts
// with new passwords.
func loadAccounts(dir string) ([]Account, error) {
	file := filepath.Join(dir, "accounts.json")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		accounts := make([]Account, len(cast))
		for i, a := range cast {
			a.Password = password()
			accounts[i] = a
		}
		return accounts, writeJSON(file, accounts)
	}
	if err != nil {
		return nil, fmt.Errorf("the accounts of a former start cannot be read: %w; mend the permissions, or start with another --data-dir", err)
	}
	var accounts []Account
	if err := json.Unmarshal(b, &accounts); err != nil || len(accounts) == 0 {
		return nil, fmt.Errorf("%s does not hold accounts any more; delete it to get new ones", file)
	}
	return accounts, nil
}

// password is easy to type and has 60 bits: four groups of three letters from
// an alphabet of 32 without look-alikes.
func password() string {
	const letters = "abcdefghijkmnpqrstuvwxyz23456789"
	b := make([]byte, 12)
	rand.Read(b)
	out := make([]byte, 0, 15)
	for i, c := range b {
		if i > 0 && i%3 == 0 {
			out = append(out, '-')
		}
		out = append(out, letters[c%32])
	}
	return string(out)
}

// writeJSON writes v for its owner alone and puts it in place by rename, so
// that nobody ever reads half of it.
func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(file, append(b, '\n'))
}

func writeFile(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return fmt.Errorf("%w; give a --data-dir that can be written", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("%s could not be written: %w; make room or give another --data-dir", file, err)
	}
	return os.Rename(f.Name(), file)
}
