package policytest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/policy"
)

func run(t *testing.T, text string, opts Options) (int, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "t.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code := Run([]string{file}, opts, &out)
	return code, out.String()
}

const open = "name: open\npolicy: {allow: {or: [{accept: 1}]}}\n"

func TestExitCodes(t *testing.T) {
	for text, want := range map[string]struct {
		code int
		in   string
	}{
		open + "cases: [{name: a, expect: allow}]":                              {0, "1 passed, 0 failed"},
		open + "cases: [{name: a, expect: deny}]":                               {1, "expected deny"},
		open + "cases: [{name: a, expect: allow, status: 302}]":                 {1, "expected status 302"},
		open + "cases: [{name: a, expect: allow, reasons: [reject]}]":           {1, "expected the reason reject"},
		open + "cases: [{name: a, expect: allow, not_reasons: [accept]}]":       {1, "did not expect the reason accept"},
		open + "cases: [{name: a, expect: allow, device_type: x}]":              {1, "device type"},
		open + "cases: [{name: a, expect: allow, remediation: [x]}]":            {1, "remediation"},
		open + "cases: [{name: a, expect: allow, deviation: D1, note: n}]":      {0, "1 passed"},
		open + "cases: [{name: a, expect: alow}]":                               {2, "expect must be"},
		open + "cases: [{name: a}]":                                             {2, "expect must be"},
		open + "cases: [{name: a, expect: allow, reason: [accept]}]":            {2, `4:`},
		open + "cases: [{name: a, expect: allow, request: {mehtod: GET}}]":      {2, `unknown key "mehtod"`},
		open + "cases: [{name: a, expect: allow, user: {id: u, mail: x}}]":      {2, `unknown key "mail"`},
		open + "cases: [{name: a, expect: allow, zzz: null}]":                   {2, `unknown key "zzz"`},
		open + "defaults: {zzz: 1}\ncases: [{name: a, expect: allow}]":          {2, `unknown key "zzz"`},
		open + "settings: {route: {zzz: 1}}\ncases: [{name: a, expect: allow}]": {2, `unknown key "zzz"`},
		open + "casses: []": {2, `unknown key "casses"`},
		open:                {2, "no cases"},
		open + "policy_text: x\ncases: [{name: a, expect: allow}]":                           {2, "not several"},
		open + "cases: [{name: a, expect: allow, now: soon}]":                                {2, "wants a time"},
		open + "cases: [{name: a, expect: allow, request: {client_certificate: {name: x}}}]": {2, `no "x"`},
		"policy: {}\ncases: [{expect: deny}]":                                                {2, "needs a name"},
		"name: bad\npolicy: {alow: {}}\ncases: [{name: a, expect: deny}]":                    {1, `unknown action "alow"`},
		"name: r\nrego: allow := true\ncases: [{name: a, expect: allow}]":                    {1, "no custom scripts"},
		"name: i\ninvalid_policy: 'alow: {}'\nerror_contains: [alow]\nerror_at: '1:1'":       {0, "1 passed"},
		"name: i\ninvalid_policy: 'alow: {}'\nerror_contains: [xyz]":                         {1, `expected "xyz" in the message`},
		"name: i\ninvalid_policy: 'alow: {}'\nerror_at: '1:2'":                               {1, "expected the error at 1:2, got it at 1:1"},
		"name: i\ninvalid_policy: 'allow: {}'":                                               {1, "but the policy loads"},
		"name: i\ninvalid_policy: 'x'\ncases: [{name: a, expect: deny}]":                     {2, "has no cases"},
		"name: [":    {2, "not YAML"},
		"":           {2, "holds no test"},
		"- a":        {2, "must be an object"},
		"a: 1\na: 2": {2, "given twice"},
		open + "cases: [{name: a, expect: allow}]\n---\n" + open + "cases: [{name: b, expect: deny}]\n---\n": {1, "1 passed, 1 failed"},
	} {
		if code, out := run(t, text, Options{}); code != want.code || !strings.Contains(out, want.in) {
			t.Errorf("%s\nexit %d, want %d with %q:\n%s", text, code, want.code, want.in, out)
		}
	}
	var out bytes.Buffer
	if code := Run([]string{filepath.Join(t.TempDir(), "none.yaml")}, Options{}, &out); code != 2 {
		t.Errorf("an unreadable file: exit %d", code)
	}
	if code := Run(nil, Options{}, &out); code != 2 {
		t.Errorf("no files: exit %d", code)
	}
}

func TestDefaultsAndNull(t *testing.T) {
	text := `
name: defaults
policy: {allow: {and: [{user: u}, {http_method: PUT}, {http_path: /x}]}}
defaults:
  user: {id: u}
  request: {method: PUT, url: "https://a.test/x"}
cases:
  - {name: all, expect: allow}
  - {name: request field by field, request: {method: GET}, expect: deny, reasons: [http-method-unauthorized], not_reasons: [http-path-unauthorized]}
  - {name: null removes, user: null, expect: login}
  - {name: null removes a request field, request: {method: null}, expect: deny, reasons: [http-method-unauthorized]}
  - {name: replaced whole, user: {id: v}, expect: deny}
`
	if code, out := run(t, text, Options{}); code != 0 {
		t.Error(out)
	}
}

func TestReports(t *testing.T) {
	text := open + "cases: [{name: a, expect: allow}, {name: b, expect: deny}]"
	_, out := run(t, text, Options{JSON: true})
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 2 {
		t.Fatalf("got %q", out)
	}
	var o map[string]any
	if err := json.Unmarshal([]byte(lines[1]), &o); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"name": "open: b", "pass": false, "expect": "deny", "outcome": "allow", "status": 200.0, "allow": true, "deny": false} {
		if o[key] != want {
			t.Errorf("%s: %v, want %v", key, o[key], want)
		}
	}
	if _, ok := o["reasons"].([]any); !ok {
		t.Errorf("reasons: %v", o["reasons"])
	}
	if _, out := run(t, text, Options{Verbose: true}); !strings.Contains(out, "open: a: allow (200) with reasons [accept]") {
		t.Errorf("verbose: %s", out)
	}
	if _, out := run(t, text, Options{}); strings.Contains(out, "open: a") {
		t.Errorf("quiet: %s", out)
	}
}

type fixed struct{}

func (fixed) Evaluate(c *Case) (Answer, error) {
	return Answer{Outcome: policy.Error, Status: 500}, nil
}

func TestForeignEvaluatorAndScripts(t *testing.T) {
	if code, out := run(t, open+"cases: [{name: a, expect: error, status: 500}]", Options{Evaluator: fixed{}}); code != 0 {
		t.Error(out)
	}
	rego := func(name, script string) (*policy.Policy, error) {
		return policy.Custom(name, func(_ *policy.Input, res *policy.Result) {
			res.Allow.Value = script == "yes"
			res.Allow.Reasons = res.Allow.Reasons.Add("own-word")
		}), nil
	}
	if code, out := run(t, "name: r\nrego: 'yes'\ncases: [{name: a, expect: allow, reasons: [own-word]}]", Options{Rego: rego}); code != 0 {
		t.Error(out)
	}
}
