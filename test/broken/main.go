// Command broken proves that the security tests can fail. Every folder beside
// it is one row of known vulnerability classes: break.json names a source file,
// a small change that opens the hole, and the test that must notice. The change
// is laid over the tree with go test -overlay; nothing on disk is touched.
//
// A test that fails anyway proves nothing, so the tests named are first run on
// the tree as it is.
//
//	go run ./test/broken            all rows
//	go run ./test/broken -run cve   rows whose name matches
//	go run ./test/broken -n         only check that every change still applies
//	go run ./test/broken -table     the table of docs/security-tests.md
package main

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"
)

// row is one break.json.
type row struct {
	Name    string   `json:"-"`
	Row     string   `json:"row"`     // "CVE-2023-33189", or the name of a class of ours
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
	check := flag.Bool("n", false, "only check that every change applies to the current source")
	print := flag.Bool("table", false, "print the table of docs/security-tests.md")
	jobs := flag.Int("j", min(2, runtime.NumCPU()), "rows built at once")
	flag.Parse()
	rows, err := load("test/broken", *match)
	if err != nil {
		fmt.Fprintln(os.Stderr, "broken:", err)
		os.Exit(2)
	}
	if len(rows) == 0 {
		fmt.Fprintln(os.Stderr, "broken: no row matches")
		os.Exit(1)
	}
	if *print {
		fmt.Print(table(rows))
		return
	}
	failed := 0
	if !*check {
		failed += baseline(rows, *jobs)
	}
	failed += each(len(rows), *jobs, func(i int) (string, error) {
		r := rows[i]
		if *check {
			dir, _, err := r.overlay()
			os.RemoveAll(dir)
			return r.Name, err
		}
		began := time.Now()
		err := r.run()
		return fmt.Sprintf("%s: %s notices (%s; %.1fs)", r.Name, r.Test, r.Why, time.Since(began).Seconds()), err
	}, func(i int) string { return rows[i].Name })
	fmt.Printf("broken builds: %d rows, %d failures\n", len(rows), failed)
	if failed > 0 {
		os.Exit(1)
	}
}

// each calls f for 0..n-1, jobs at once, prints what comes of it and counts
// failures.
func each(n, jobs int, f func(int) (string, error), name func(int) string) (failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, max(1, jobs))
	for i := range n {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			said, err := f(i)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
				fmt.Printf("FAIL %s: %v\n", name(i), err)
				return
			}
			fmt.Println("ok  ", said)
		}()
	}
	wg.Wait()
	return failed
}

// baseline runs the tests of all rows on the tree as it is: they must pass.
func baseline(rows []row, jobs int) (failed int) {
	tests := map[string][]string{}
	for _, r := range rows {
		tests[r.Package] = append(tests[r.Package], r.Test)
	}
	packages := slices.Sorted(maps.Keys(tests))
	return each(len(packages), jobs, func(i int) (string, error) {
		pkg := packages[i]
		slices.Sort(tests[pkg])
		names := slices.Compact(tests[pkg])
		out, err := goTest(pkg, "^("+strings.Join(names, "|")+")$")
		if err != nil {
			err = fmt.Errorf("the tests do not pass on the tree as it is:\n%s", tail(out, 30))
		}
		return fmt.Sprintf("%s: %d tests pass unbroken", pkg, len(names)), err
	}, func(i int) string { return packages[i] })
}

// goTest runs the tests of pkg that match, linked without debug information.
func goTest(pkg, match string, flags ...string) (string, error) {
	args := append([]string{"test", "-count=1", "-vet=off", "-ldflags=-s -w", "-timeout=60s", "-run", match}, flags...)
	out, err := exec.Command("go", append(args, pkg)...).CombinedOutput()
	return string(out), err
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
		if r.Row == "" || r.Why == "" || r.Test == "" || r.Package == "" || len(r.Changes) == 0 {
			return nil, fmt.Errorf("%s: row, why, package, test and changes are required", f)
		}
		rows = append(rows, r)
	}
	return rows, nil
}

// overlay writes the changed sources and the overlay file into a new folder.
func (r row) overlay() (dir, file string, err error) {
	tmp, err := os.MkdirTemp("", "broken")
	if err != nil {
		return "", "", err
	}
	replace := map[string]string{}
	for i, c := range r.Changes {
		abs, err := filepath.Abs(c.File)
		if err != nil {
			return tmp, "", err
		}
		src := abs
		if done, ok := replace[abs]; ok {
			src = done
		}
		b, err := os.ReadFile(src)
		if err != nil {
			return tmp, "", err
		}
		if n := strings.Count(string(b), c.Old); n != 1 {
			return tmp, "", fmt.Errorf("%s holds the text to change %d times, want once: bring break.json up to date\n%s", c.File, n, c.Old)
		}
		if c.Old == c.New {
			return tmp, "", fmt.Errorf("%s: the change changes nothing", c.File)
		}
		out := filepath.Join(tmp, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(out, []byte(strings.Replace(string(b), c.Old, c.New, 1)), 0o600); err != nil {
			return tmp, "", err
		}
		replace[abs] = out
	}
	file = filepath.Join(tmp, "overlay.json")
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return tmp, "", err
	}
	return tmp, file, os.WriteFile(file, b, 0o600)
}

// run builds the overlay and expects exactly the named test to fail.
func (r row) run() error {
	tmp, overlay, err := r.overlay()
	defer os.RemoveAll(tmp)
	if err != nil {
		return err
	}
	out, err := goTest(r.Package, "^"+r.Test+"$", "-overlay", overlay)
	switch {
	case err == nil && strings.Contains(out, "no tests to run"):
		return fmt.Errorf("%s has no test %s", r.Package, r.Test)
	case err == nil:
		return fmt.Errorf("%s passes although the build is broken", r.Test)
	case !strings.Contains(out, "--- FAIL: "+r.Test):
		return fmt.Errorf("the broken build fails in another way:\n%s", tail(out, 15))
	}
	return nil
}

// table is the part of docs/security-tests.md that is made from the rows:
// published holes by number, then classes of our own by name.
func table(rows []row) string {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b row) int {
		pa, pb := strings.HasPrefix(a.Row, "CVE-"), strings.HasPrefix(b.Row, "CVE-")
		switch {
		case pa != pb && pa:
			return -1
		case pa != pb:
			return 1
		}
		return cmp.Or(strings.Compare(a.Row, b.Row), strings.Compare(a.Name, b.Name))
	})
	var b strings.Builder
	b.WriteString("|Row|What the broken build does|Test that notices|Broken build|\n|-|-|-|-|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "|%s|%s|`%s` in `%s`|[%s](../test/broken/%s/break.json)|\n", r.Row, r.Why, r.Test, strings.TrimPrefix(r.Package, "./"), r.Name, r.Name)
	}
	return b.String()
}

func tail(s string, lines int) string {
	l := strings.Split(strings.TrimSpace(s), "\n")
	if len(l) > lines {
		l = l[len(l)-lines:]
	}
	return strings.Join(l, "\n")
}
