package policytest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const thorough = `name: staff only
policy:
  - allow:
      and:
        - domain: example.com
        - source_ip: 10.0.0.0/8
  - deny:
      or:
        - email: eve@example.com
cases:
  - {name: in, request: {ip: 10.0.0.1}, user: {id: u1, email: ada@example.com}, expect: allow}
  - {name: far, request: {ip: 192.0.2.1}, user: {id: u1, email: ada@example.com}, expect: deny}
  - {name: stranger, request: {ip: 10.0.0.1}, user: {id: u2, email: a@else.test}, expect: deny}
  - {name: near, request: {ip: 10.0.0.1}, user: {id: u2, email: a@xexample.com}, expect: deny}
  - {name: eve, request: {ip: 10.0.0.1}, user: {id: u3, email: eve@example.com}, expect: deny}
  - {name: like eve, request: {ip: 10.0.0.1}, user: {id: u3, email: xeve@example.com}, expect: allow}
  - {name: nobody, request: {ip: 10.0.0.1}, expect: login}
`

func runFile(t *testing.T, text string, opts Options) (string, int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "test.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code := Run([]string{file}, opts, &out)
	return strings.ReplaceAll(out.String(), file, "test.yaml"), code
}

func TestThoroughCasesCatchAll(t *testing.T) {
	out, code := runFile(t, thorough, Options{Cover: true, Mutate: true})
	if code != 0 || !strings.Contains(out, "coverage: 100.0% (8 of 8)") || !strings.Contains(out, "0 survived") || strings.Contains(out, "mutation: 0") {
		t.Errorf("exit %d\n%s", code, out)
	}
	t.Log(out)
}

func TestLazyCasesAreTold(t *testing.T) {
	lazy := thorough[:strings.Index(thorough, "  - {name: far")]
	out, code := runFile(t, lazy, Options{Cover: true, Mutate: true})
	for _, want := range []string{
		"not reached test.yaml:9:11: deny.or: the rule is never true",
		"not reached test.yaml:5:11: policy[0].allow.and[0].domain: never false",
		"not reached test.yaml:9:11: policy[1].deny.or[0].email: never true",
		"survived test.yaml:8:7: policy[1].deny.or: drop the rule",
		"survived test.yaml:6:11: policy[0].allow.and[1]: drop the criterion",
		"survived test.yaml:6:22: policy[0].allow.and[1].source_ip: widen to every address",
		"survived test.yaml:4:7: policy[0].allow.and: and becomes or",
		"survived test.yaml:5:19: policy[0].allow.and[0].domain: is becomes contains",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("not told: %s", want)
		}
	}
	if code != ExitFailed {
		t.Errorf("exit %d", code)
	}
	if t.Failed() {
		t.Log(out)
	}
	if out, code := runFile(t, lazy, Options{Cover: true}); code != 0 {
		t.Errorf("coverage alone fails: %d\n%s", code, out)
	}
	if out, _ := runFile(t, lazy, Options{Mutate: true, JSON: true}); !strings.Contains(out, `"survivors":[{"file":"test.yaml","line":`) {
		t.Error(out)
	}
}

// A variant that no input can tell from the original is no survivor.
func TestEquivalentVariants(t *testing.T) {
	out, code := runFile(t, `name: twice
policy:
  allow:
    or:
      - domain: example.com
      - domain: example.com
cases:
  - {user: {id: u1, email: ada@example.com}, expect: allow}
  - {user: {id: u1, email: ada@xexample.com}, expect: deny}
  - {user: {id: u1, email: ada@else.test}, expect: deny}
  - {expect: login}
`, Options{Mutate: true})
	if code != 0 || !strings.Contains(out, "equivalent, it seems test.yaml:5:9: policy.allow.or[0]: drop the criterion") {
		t.Errorf("exit %d\n%s", code, out)
	}
}

// Every kind of change is made somewhere, and every variant is a policy.
func TestKindsOfVariants(t *testing.T) {
	out, _ := runFile(t, `name: kinds
policy:
  - allow: {and: [{http_method: {in: [GET, HEAD]}}, {http_path: {starts_with: /a, ends_with: b}}, {groups: g}, {"claim/x": {exclude: y}}]}
  - allow: {nor: [{email: {not: a@b.test}}, {device: {approved: true}}]}
  - deny: {not: [{source_ip: [10.0.0.0/8, 192.0.2.1]}, {time_of_day: {timezone: UTC, after: "08:00", before: "17:00"}}, {date: {after: 2026-01-01}}]}
  - deny: {or: [{record: {type: t, field: f, "<": 7, exists: true}}]}
cases: [{expect: login}]
`, Options{Mutate: true})
	for _, change := range []string{
		"drop the rule", "allow becomes deny", "and becomes or", "and becomes nor", "nor becomes not", "not becomes or", "drop the criterion",
		"in becomes not_in", `drop "HEAD" from the list`, "starts_with becomes contains", "drop ends_with", "has becomes exclude", "exclude becomes has",
		"not becomes is", "approved becomes false", "widen to every address", `drop "192.0.2.1" from the list`, "drop after", "after becomes before",
		"< becomes <=", "exists becomes false", "widen to every value",
	} {
		if !strings.Contains(out, ": "+change) {
			t.Errorf("no variant: %s", change)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}
