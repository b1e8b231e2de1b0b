package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the table of docs/security-tests.md anew")

const (
	document = "docs/security-tests.md"
	begin    = "<!-- table: begin -->\n"
	end      = "<!-- table: end -->\n"
)

func root(t *testing.T) []row {
	t.Helper()
	t.Chdir("../..")
	rows, err := load("test/broken", "")
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// The table says what is there: go test ./test/broken -update writes it anew.
func TestTableIsTrue(t *testing.T) {
	rows := root(t)
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(text), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no table between its marks", document)
	}
	want := table(rows)
	if *update {
		if err := os.WriteFile(document, []byte(before+begin+want+end+after), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if was != want {
		t.Errorf("%s is out of date: run go test ./test/broken -update", document)
	}
}

// Every change applies to the source of today and every test named exists.
// Whether the tests notice is what go run ./test/broken shows.
func TestRowsApply(t *testing.T) {
	for _, r := range root(t) {
		dir, _, err := r.overlay()
		os.RemoveAll(dir)
		if err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		if r.Name != strings.ToLower(r.Name) {
			t.Errorf("%s: folder names are in lower case", r.Name)
		}
		files, _ := filepath.Glob(filepath.Join(r.Package, "*_test.go"))
		found := false
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || regexp.MustCompile(`(?m)^func `+r.Test+`\(`).Match(b)
		}
		if !found {
			t.Errorf("%s: %s has no test %s", r.Name, r.Package, r.Test)
		}
	}
}
