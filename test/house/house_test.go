// Package house checks the house rules that no compiler knows: who may import
// whom (the floors of ARCHITECTURE.md), that every package says what it is
// for, and that heavy parts stay where they belong.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// pkg is one Go package of the product with the imports of its non-test files.
type pkg struct {
	dir     string // relative to the root, slash-separated
	doc     string
	imports map[string]string // import path -> file
	calls   []string          // "file: what" for forbidden constructs
}

// room is the folder name that the floor table uses: "store" for
// internal/store/file, "cmd/postern" for the program.
func room(dir string) string {
	if strings.HasPrefix(dir, "cmd/") {
		return dir
	}
	name, _, _ := strings.Cut(strings.TrimPrefix(dir, "internal/"), "/")
	return name
}

func packages(t *testing.T) map[string]*pkg {
	t.Helper()
	out := map[string]*pkg{}
	for _, top := range []string{"cmd", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() {
				if d.Name() == "testdata" {
					return filepath.SkipDir
				}
				return nil
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			rel, _ := filepath.Rel(root, filepath.Dir(path))
			dir := filepath.ToSlash(rel)
			p := out[dir]
			if p == nil {
				p = &pkg{dir: dir, imports: map[string]string{}}
				out[dir] = p
			}
			return p.add(path)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(out) < 10 {
		t.Fatalf("found only %d packages: the walk is broken", len(out))
	}
	return out
}

func (p *pkg) add(path string) error {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
	if err != nil {
		return err
	}
	if f.Doc != nil {
		p.doc += f.Doc.Text()
	}
	file := filepath.Base(path)
	for _, im := range f.Imports {
		name, _ := strconv.Unquote(im.Path.Value)
		p.imports[name] = file
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				p.calls = append(p.calls, file+": func init")
			}
		case *ast.AssignStmt:
			for _, l := range n.Lhs {
				if s, ok := l.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.SelectorExpr); ok {
						s = x
					}
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "http" && strings.HasPrefix(s.Sel.Name, "Default") {
						p.calls = append(p.calls, file+": writes http."+s.Sel.Name)
					}
				}
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && (n.Sel.Name == "Now" || n.Sel.Name == "Since") {
				p.calls = append(p.calls, file+": time."+n.Sel.Name)
			}
		}
		return true
	})
	return nil
}

// blocks returns the fenced blocks under the "Floors" heading of ARCHITECTURE.md.
func blocks(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "\n## Floors")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no section that begins with \"Floors\"")
	}
	m := regexp.MustCompile("(?s)\n```\n(.*?)```").FindAllStringSubmatch(rest, -1)
	if len(m) < 2 {
		t.Fatal("ARCHITECTURE.md: want two fenced blocks under Floors: the floors and the parts with one home")
	}
	return []string{m[0][1], m[1][1]}
}

type place struct{ floor, order int } // order 0: imports nobody of its own floor

func floors(t *testing.T) map[string]place {
	t.Helper()
	out := map[string]place{}
	for _, line := range strings.Split(strings.TrimSpace(blocks(t)[0]), "\n") {
		w := strings.Fields(line)
		n, err := strconv.Atoi(w[0])
		if err != nil {
			t.Fatalf("floor table: %q does not begin with a number", line)
		}
		order := 0
		for _, name := range w[2:] {
			if name == "<" {
				order++
				continue
			}
			out[name] = place{n, order}
		}
	}
	return out
}

func TestFloors(t *testing.T) {
	at := floors(t)
	seen := map[string]bool{}
	for _, p := range packages(t) {
		me := room(p.dir)
		seen[me] = true
		mine, ok := at[me]
		if !ok {
			t.Errorf("%s stands on no floor: add it to the table in ARCHITECTURE.md or to an existing room", p.dir)
			continue
		}
		for path, file := range p.imports {
			dep, ok := strings.CutPrefix(path, "postern/")
			if !ok {
				continue
			}
			other := room(dep)
			if other == me {
				continue
			}
			theirs, ok := at[other]
			if !ok {
				t.Errorf("%s/%s imports %s, which stands on no floor", p.dir, file, path)
				continue
			}
			if theirs.floor > mine.floor || theirs.floor == mine.floor && theirs.order >= mine.order {
				t.Errorf("%s/%s imports %s: floor %d may not look at floor %d", p.dir, file, path, mine.floor, theirs.floor)
			}
		}
	}
	for name := range at {
		if !seen[name] {
			t.Errorf("the floor table names %q, which does not exist: no empty rooms", name)
		}
	}
}

func TestPartsWithOneHome(t *testing.T) {
	for _, line := range strings.Split(strings.TrimSpace(blocks(t)[1]), "\n") {
		w := strings.Fields(line)
		part, homes := w[0], w[1:]
		used := false
		for _, p := range packages(t) {
			for path, file := range p.imports {
				if path != part && !strings.HasPrefix(path, part+"/") {
					continue
				}
				used = true
				ok := false
				for _, h := range homes {
					if p.dir == h || p.dir == "internal/"+h {
						ok = true
					}
				}
				if !ok {
					t.Errorf("%s/%s imports %s, whose home is %s", p.dir, file, path, strings.Join(homes, ", "))
				}
			}
		}
		if !used {
			t.Errorf("ARCHITECTURE.md gives %s a home, but nobody imports it", part)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for _, p := range packages(t) {
		want := "Package " + filepath.Base(p.dir) + " "
		if strings.HasPrefix(p.dir, "cmd/") {
			want = "Command " + filepath.Base(p.dir) + " "
		}
		if !strings.HasPrefix(p.doc, want) {
			t.Errorf("%s has no package comment that begins with %q", p.dir, want)
		}
	}
}

func TestNeverConstructs(t *testing.T) {
	for _, p := range packages(t) {
		pure := room(p.dir) == "policy" && p.dir != "internal/policy/policytest" || room(p.dir) == "route"
		for _, c := range p.calls {
			if strings.Contains(c, ": time.") && !pure {
				continue
			}
			t.Errorf("%s/%s is not done here (ARCHITECTURE.md, Never)", p.dir, c)
		}
		if pure {
			for _, path := range []string{"os", "net", "net/http", "log", "log/slog"} {
				if file, ok := p.imports[path]; ok {
					t.Errorf("%s/%s imports %s: policy and route are functions of their arguments", p.dir, file, path)
				}
			}
		}
	}
}
