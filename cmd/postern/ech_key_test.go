package main

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/certs"
)

func echKeyRun(args ...string) (string, error) {
	root := rootCommand()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"ech-key"}, args...))
	err := root.Execute()
	return out.String(), err
}

// TestECHKeyRotation: the new key stands first, the one before is kept, the one
// before that is not, and the record publishes the first.
func TestECHKeyRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ech.pem")
	var first []string
	for i := range 3 {
		out, err := echKeyRun("--public-name", "cover.test", "--file", file, "App.Test", "wiki.test.")
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		keys, err := certs.ParseECHKeys(b)
		if err != nil || len(keys) != min(i+1, 2) {
			t.Fatalf("run %d: %d keys, %v", i, len(keys), err)
		}
		current := base64.StdEncoding.EncodeToString(keys[0].List)
		for _, host := range []string{"app.test", "wiki.test"} {
			if !strings.Contains(out, host+". IN HTTPS 1 . ech="+current+"\n") {
				t.Errorf("run %d: no record of %s in\n%s", i, host, out)
			}
		}
		if strings.Contains(out, "PRIVATE KEY") {
			t.Error("the secret is printed, too")
		}
		if i > 0 && base64.StdEncoding.EncodeToString(keys[1].List) != first[i-1] {
			t.Errorf("run %d: the key before is not the second", i)
		}
		first = append(first, current)
		if info, _ := os.Stat(file); i == 0 && info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", info.Mode())
		} else if i == 1 && info.Mode().Perm() != 0o600 || i == 2 && info.Mode().Perm() != 0o640 {
			t.Errorf("run %d: mode %v", i, info.Mode())
		}
		if i == 1 {
			os.Chmod(file, 0o640)
		}
	}
	if first[0] == first[1] || first[1] == first[2] {
		t.Error("the same key twice")
	}
	// Without a file, everything is printed.
	out, err := echKeyRun("--public-name", "cover.test")
	if keys, perr := certs.ParseECHKeys([]byte(out)); err != nil || perr != nil || !strings.Contains(out, "ech="+base64.StdEncoding.EncodeToString(keys[0].List)) {
		t.Errorf("%v %v\n%s", err, perr, out)
	}
	// What it cannot do, it says, and leaves the file alone.
	bad := filepath.Join(t.TempDir(), "other.pem")
	os.WriteFile(bad, []byte("something else"), 0o600)
	for says, args := range map[string][]string{
		"--public-name": {}, "is no host name": {"--public-name", "10.0.0.1"}, "from 0 to 7": {"--public-name", "a.test", "--keep", "9"},
		"holds no key": {"--public-name", "a.test", "--file", bad}, "directory that can be written": {"--public-name", "a.test", "--file", filepath.Join(bad+"x", "y")},
	} {
		if _, err := echKeyRun(args...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if b, _ := os.ReadFile(bad); string(b) != "something else" {
		t.Error("a foreign file was overwritten")
	}
}
