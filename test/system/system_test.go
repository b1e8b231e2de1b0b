// Package system starts the real program and follows the course that a
// newcomer to this kind of product follows, one script per stage. The scripts
// are testdata/*.txtar; their commands are in commands_test.go.
package system

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// program is the built postern binary, top the root of the repository.
var program, top string

func TestMain(m *testing.M) {
	flag.Parse()
	// Most scripts wait for something most of the time.
	if n, err := strconv.Atoi(flag.Lookup("test.parallel").Value.String()); err == nil && n < 8 {
		flag.Set("test.parallel", "8")
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if top, err = filepath.Abs("../.."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "postern-system")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// POSTERN_PROGRAM tests a binary that is there, a release for instance.
	if program = os.Getenv("POSTERN_PROGRAM"); program != "" {
		return m.Run()
	}
	program = filepath.Join(dir, "postern")
	build := exec.Command("go", "build", "-o", program, "./cmd/postern")
	build.Dir = top
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building postern: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			w := newWorld(e)
			e.Values[worldKey{}] = w
			e.Defer(w.close)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_DATA_HOME", filepath.Join(e.WorkDir, "data"))
			e.Setenv("TOP", top)
			e.Setenv("PATH", filepath.Dir(program)+string(os.PathListSeparator)+e.Getenv("PATH"))
			return nil
		},
		Cmds: commands,
	})
}
