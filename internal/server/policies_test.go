package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/config"
	"postern/internal/policy/impact"
)

func policiesConfig(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, problems := config.Load(t.Context(), config.Text("config.yaml", config.YAML, []byte(text)))
	if cfg == nil {
		t.Fatalf("%v", problems)
	}
	return cfg
}

const testedRoute = `
routes:
  - from: https://app.example.com
    to: http://127.0.0.1:1
    policy:
      - allow: {and: [{domain: example.com}]}
    allowed_users: [u9]
    policy_tests:
      - {name: staff, user: {id: u1, email: ada@example.com}, expect: allow, reasons: [domain-ok]}
      - {name: named, user: {id: u9, email: eve@else.test}, expect: allow}
      - {name: stranger, user: {id: u2, email: eve@else.test}, expect: %STRANGER%}
`

func TestPolicyTestsBesideRoutes(t *testing.T) {
	good := policiesConfig(t, strings.Replace(testedRoute, "%STRANGER%", "deny", 1))
	if problems := Check(good); config.Fatal(problems) {
		t.Errorf("%v", problems)
	}
	bad := policiesConfig(t, strings.Replace(testedRoute, "%STRANGER%", "allow", 1))
	problems := Check(bad)
	if !config.Fatal(problems) {
		t.Fatal("a failing policy test does not refuse the configuration")
	}
	p := problems[len(problems)-1]
	if p.File != "config.yaml" || p.Line != 11 || p.Column != 9 || p.Path != "routes[0].policy_tests[2]" || !strings.Contains(p.Message, "stranger") || !strings.Contains(p.Message, "domain-unauthorized") {
		t.Errorf("%+v", p)
	}
	for _, broken := range []string{"[{expect: maybe}]", "[{expect: allow, usr: {}}]", "7", "{policy: {}, cases: [{expect: deny}]}", "[]"} {
		text := testedRoute[:strings.Index(testedRoute, "policy_tests:")] + "policy_tests: " + broken + "\n"
		if problems := Check(policiesConfig(t, text)); !config.Fatal(problems) {
			t.Errorf("policy_tests: %s is accepted", broken)
		} else if p := problems[len(problems)-1]; p.Line != 8 {
			t.Errorf("policy_tests: %s: %+v", broken, p)
		}
	}
}

func TestPolicyTestFiles(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "tests.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := "policy_tests: [" + file + "]\n" + strings.Replace(testedRoute, "%STRANGER%", "deny", 1)
	write("name: by url\ncases:\n  - {request: {url: https://app.example.com/x}, user: {id: u1, email: a@example.com}, expect: allow}\n---\nname: own\npolicy: {}\ncases: [{expect: deny}]\n")
	if problems := Check(policiesConfig(t, text)); config.Fatal(problems) {
		t.Errorf("%v", problems)
	}
	for _, wrong := range []string{
		"name: by url\ncases:\n  - {request: {url: https://app.example.com/x}, user: {id: u1, email: a@else.test}, expect: allow}\n",
		"name: elsewhere\ncases:\n  - {request: {url: https://none.example.com/x}, expect: deny}\n",
		"nam: misspelt\n",
	} {
		write(wrong)
		if problems := Check(policiesConfig(t, text)); !config.Fatal(problems) {
			t.Errorf("%q is accepted", wrong)
		}
	}
	if _, problems := config.Load(t.Context(), config.Text("config.yaml", config.YAML, []byte("policy_tests: ["+file+".missing]\n"))); !config.Fatal(problems) {
		t.Error("a missing test file is accepted")
	}
}

func TestCompilePolicies(t *testing.T) {
	p, problems := CompilePolicies(policiesConfig(t, strings.Replace(testedRoute, "%STRANGER%", "deny", 1)))
	if p == nil {
		t.Fatal(problems)
	}
	rp, err := p.Find("https://app.example.com/any/path")
	if err != nil {
		t.Fatal(err)
	}
	a := impact.NewSpace().Access(&rp.Impact, impact.KnownOf(&impact.Person{ID: "u9"}))
	if !a.Always() || len(a.By) != 1 {
		t.Errorf("%s by %v", a, a.By)
	}
	if _, err := p.Find("https://none.example.com"); err == nil {
		t.Error("a route was found where there is none")
	}
}
