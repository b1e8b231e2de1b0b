// Command broken proves that the security tests can fail. Every folder beside
// it is one row of known vulnerability classes: break.json names a source file,
// a small change that opens the hole, and the test that must notice. The change
// is laid over the tree with go test -overlay; nothing on disk is touched.
//
//	go run ./test/broken            all rows
//	go run ./test/broken -run CVE   rows whose name matches
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
)

// row is one break.json.
type row struct {
	Name    string   `json:"-"`
	Why     string   `json:"why"`     // the class of bug, in one line
	Package string   `json:"package"` // "./internal/proxy"
	Test    string   `json:"test"`    // name of the test that must fail
	Changes []change `json:"changes"`
}

// change replaces Old, which must stand in File exactly once, by New.
type change struct {
	File string `json:"file"`
	Old  string `json:"old"`
	New  string `json:"new"`
}

func main() {
	match := flag.String("run", "", "regexp: only rows whose name matches")
	flag.Parse()
	rows, err := load("test/broken", *match)
	if err != nil {
		fmt.Fprintln(os.Stderr, "broken:", err)
		os.Exit(2)
	}
	failed := 0
	for _, r := range rows {
		if err := r.run(); err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n", r.Name, err)
			continue
		}
		fmt.Printf("ok   %s: %s notices (%s)\n", r.Name, r.Test, r.Why)
	}
	fmt.Printf("broken builds: %d passed, %d failed\n", len(rows)-failed, failed)
	if failed > 0 || len(rows) == 0 {
		os.Exit(1)
	}
}

func load(dir, match string) ([]row, error) {
	re, err := regexp.Compile(match)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*", "break.json"))
	if err != nil {
		return nil, err
	}
	sort.Strings(files)
	var rows []row
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if !re.MatchString(name) {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		r := row{Name: name}
		dec := json.NewDecoder(strings.NewReader(string(b)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&r); err != nil {
			return nil, fmt.Errorf("%s: %v", f, err)
		}
		if r.Test == "" || r.Package == "" || len(r.Changes) == 0 {
			return nil, fmt.Errorf("%s: package, test and changes are required", f)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// run builds the overlay and expects exactly the named test to fail.
func (r row) run() error {
	tmp, err := os.MkdirTemp("", "broken")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	replace := map[string]string{}
	for i, c := range r.Changes {
		abs, err := filepath.Abs(c.File)
		if err != nil {
			return err
		}
		src := abs
		if done, ok := replace[abs]; ok {
			src = done
		}
		b, err := os.ReadFile(src)
		if err != nil {
			return err
		}
		if n := strings.Count(string(b), c.Old); n != 1 {
			return fmt.Errorf("%s holds the text to change %d times, want once: bring break.json up to date\n%s", c.File, n, c.Old)
		}
		out := filepath.Join(tmp, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(out, []byte(strings.Replace(string(b), c.Old, c.New, 1)), 0o600); err != nil {
			return err
		}
		replace[abs] = out
	}
	overlay := filepath.Join(tmp, "overlay.json")
	b, _ := json.Marshal(map[string]any{"Replace": replace})
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-overlay", overlay, "-run", "^"+r.Test+"$", r.Package)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil && strings.Contains(string(out), "no tests to run"):
		return fmt.Errorf("%s has no test %s", r.Package, r.Test)
	case err == nil:
		return fmt.Errorf("%s passes although the build is broken", r.Test)
	case !strings.Contains(string(out), "--- FAIL: "+r.Test):
		return fmt.Errorf("the broken build fails in another way:\n%s", tail(string(out), 15))
	}
	return nil
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	if len(l) > lines {
		l = l[len(l)-lines:]
	}
	return strings.Join(l, "\n")
}
