package policy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestExplainIsTheDecision: on random policies and inputs, an explanation
// comes to the outcome of the live evaluation, with the same reasons, which are
// those of the criteria that it says decided.
func TestExplainIsTheDecision(t *testing.T) {
	const policies, inputs = 5000, 20
	outcomes := map[Outcome]int{}
	withChanges := 0
	for seed := range uint64(policies) {
		g := generator{rand.New(rand.NewPCG(seed, 23))}
		var members []Attached
		for range 1 + g.IntN(2) {
			text, err := json.Marshal(g.policy())
			if err != nil {
				t.Fatal(err)
			}
			p, _, err := Parse("p.json", text, Options{})
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, Attached{Policy: p})
		}
		set := NewSet(Pool{Attached: members, CertificateRule: g.IntN(3) == 0})
		for range inputs {
			in := g.input()
			var res Result
			set.Evaluate(in, &res)
			want := Choose(&res, Client{})
			got := set.Explain(in)
			outcomes[got.Outcome]++
			if got.Outcome != want.Outcome || !slices.Equal(got.Reasons, want.Reasons.Names()) ||
				got.Allow != res.Allow.Value || got.Deny != res.Deny.Value ||
				got.Result.DeviceType() != res.DeviceType() ||
				!slices.Equal(got.Result.Allow.Reasons.Names(), res.Allow.Reasons.Names()) ||
				!slices.Equal(got.Result.Deny.Reasons.Names(), res.Deny.Reasons.Names()) {
				t.Fatalf("seed %d: explained %v %v, decided %v %v\n%+v", seed, got.Outcome, got.Reasons, want.Outcome, want.Reasons.Names(), in)
			}
			checkDeciding(t, &got)
			if len(got.Changes) > 0 {
				withChanges++
				if got.Outcome == Allow {
					t.Fatalf("seed %d: an allowed request is told what to change: %+v", seed, got.Changes)
				}
			}
		}
	}
	for _, o := range []Outcome{Allow, Deny, Login, Enroll} {
		if outcomes[o] < 100 {
			t.Errorf("only %d of the cases come to %s: the property says little about it", outcomes[o], o)
		}
	}
	if withChanges < 1000 {
		t.Errorf("only %d explanations name changes", withChanges)
	}
}

// checkDeciding: the reasons of the criteria that decided are the reasons
// that the outcome rests on, as far as that outcome is about them.
func checkDeciding(t *testing.T, trace *Trace) {
	t.Helper()
	deciding := trace.Deciding()
	if len(trace.Reasons) > 0 && len(deciding) == 0 {
		t.Fatalf("outcome %s has the reasons %v, and no criterion decided", trace.Outcome, trace.Reasons)
	}
	seen := map[string]bool{}
	for _, c := range deciding {
		for _, r := range c.Reasons {
			if !slices.Contains(trace.Reasons, r) {
				t.Fatalf("%s decided with %s, which is not among the reasons %v", c.Path, r, trace.Reasons)
			}
			seen[r] = true
		}
	}
	if trace.Outcome == Allow || trace.Outcome == Deny && !trace.Result.Deny.Reasons.HasAny(certificateReasons) {
		for _, r := range trace.Reasons {
			if !seen[r] {
				t.Fatalf("reason %s of outcome %s comes from no criterion that decided", r, trace.Outcome)
			}
		}
	}
}

// TestChangesAreTrue makes the changes that an explanation asks for, and the
// request is let in.
func TestChangesAreTrue(t *testing.T) {
	p, _, err := Parse("p.yaml", []byte(`
- allow:
    and:
      - domain: example.com
      - groups: finance
      - source_ip: 10.0.0.0/8
  deny:
    or:
      - email: {is: gone@example.com}
`), Options{})
	if err != nil {
		t.Fatal(err)
	}
	set := NewSet(Pool{Own: p})
	in := &Input{Now: time.Unix(0, 0), HasSession: true, UserID: "u", Email: "ann@example.com", HasDirectory: true,
		Groups: []string{"sales"}, ClientIP: netip.MustParseAddr("192.0.2.1")}
	trace := set.Explain(in)
	if trace.Outcome != Deny || len(trace.Changes) != 1 || len(trace.Changes[0]) != 2 {
		t.Fatalf("%v %+v", trace.Outcome, trace.Changes)
	}
	if a, b := trace.Changes[0][0].Text, trace.Changes[0][1].Text; a != "needs group finance" || b != "has to come from 10.0.0.0/8" {
		t.Errorf("changes are %q and %q", a, b)
	}
	in.Groups, in.ClientIP = []string{"finance"}, netip.MustParseAddr("10.1.2.3")
	if trace = set.Explain(in); trace.Outcome != Allow || trace.Changes != nil {
		t.Errorf("after the changes: %v %+v", trace.Outcome, trace.Changes)
	}

	// Nobody is signed in: that comes first.
	trace = set.Explain(&Input{ClientIP: netip.MustParseAddr("10.1.2.3")})
	var texts []string
	for _, c := range trace.Changes[0] {
		texts = append(texts, c.Text)
	}
	if got := strings.Join(texts, "; "); trace.Outcome != Login || got != "sign in; needs an e-mail address of example.com; needs group finance" {
		t.Errorf("%v: %s", trace.Outcome, got)
	}
}

// TestExplainShowsValues: what was wanted and seen stands beside each
// criterion, with the one that decided marked.
func TestExplainShowsValues(t *testing.T) {
	p, _, err := Parse("app.yaml", []byte("allow:\n  and:\n    - email: {ends_with: '@example.com'}\n    - claim/role: admin\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	trace := NewSet(Pool{Own: p}).Explain(&Input{HasSession: true, Email: "ann@example.com", Claims: map[string][]any{"role": {"user", true}}})
	got := trace.Policies[0].Rules[0].Criteria
	first, second := got[0], got[1]
	if !first.Value || first.Decided || first.Wanted != "ends_with @example.com" || first.Seen[0] != "ann@example.com" || first.Line != 3 || first.Path != "allow.and[0].email" {
		t.Errorf("%+v", first)
	}
	if second.Value || !second.Decided || second.Criterion != "claim/role" || strings.Join(second.Seen, ",") != "user,true" ||
		strings.Join(second.Needs, ",") != "admin" || second.Origin != (Origin{FromClaim, "role"}) || second.Reasons[0] != "claim-unauthorized" {
		t.Errorf("%+v", second)
	}
}

// TestExplainKeepsSecretsAndBounds: a trace shows no credential, and no value
// makes it long or writes outside its line.
func TestExplainKeepsSecretsAndBounds(t *testing.T) {
	p, _, err := Parse("p.yaml", []byte("allow:\n  or:\n    - claim/access_token: x\n    - claim/raw: x\n    - claim/long: x\n    - groups: g\n    - email: {in: ["+strings.Repeat("a@example.com, ", 5000)+"]}\n"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	token := "eyJhbGciOiJub25lIn0" + "." + "eyJzdWIiOiJ4In0" + "." + "sig"
	in := &Input{HasSession: true, HasDirectory: true, Email: "a\n\x1b[31m\u202eb@c", Claims: map[string][]any{
		"access_token": {"opaque-value"}, "raw": {token, []any{token}}, "long": {strings.Repeat("x", 1<<20)},
	}}
	for range 10000 {
		in.Groups = append(in.Groups, "group")
	}
	trace := NewSet(Pool{Own: p}).Explain(in)
	text, err := json.Marshal(trace)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 8000 {
		t.Errorf("the trace has %d bytes", len(text))
	}
	for _, secret := range []string{"opaque-value", token, `\u001b`, "\u202e"} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the trace shows %q", secret)
		}
	}
}

func TestEveryCriterionShowsWhatItSaw(t *testing.T) {
	for _, c := range Criteria() {
		if looks[c.Name] == nil {
			t.Errorf("%s has no entry in looks: an explanation could not say what it saw", c.Name)
		}
	}
}

// TestExplainOfScripts: a policy without rules still tells what it answered.
func TestExplainOfScripts(t *testing.T) {
	script := Custom("x.rego", func(in *Input, res *Result) {
		res.Allow.Value = in.Method == "GET"
		res.Allow.Reasons = res.Allow.Reasons.Add("because")
	})
	set := NewSet(Pool{Attached: []Attached{{ID: "s", Policy: script}}})
	trace := set.Explain(&Input{Method: "GET"})
	if trace.Outcome != Allow || !trace.Policies[0].Script || trace.Policies[0].ID != "s" || trace.Policies[0].Allow.Reasons[0] != "because" {
		t.Errorf("%+v", trace)
	}
}

// TestExplainOfGiantPolicies: the shortcuts of ten thousand people are told in
// bounded space, with the criterion that decided among them.
func TestExplainOfGiantPolicies(t *testing.T) {
	var s Shortcuts
	for i := range 10000 {
		s.Users = append(s.Users, fmt.Sprintf("u%d@example.com", i))
	}
	p, err := s.Policy()
	if err != nil {
		t.Fatal(err)
	}
	set := NewSet(Pool{Shortcuts: p})
	in := &Input{HasSession: true, UserID: "u", Email: "u9000@example.com"}
	trace := set.Explain(in)
	if d := trace.Deciding(); trace.Outcome != Allow || len(d) != 1 || d[0].Needs[0] != "u9000@example.com" {
		t.Fatalf("%v, decided by %+v", trace.Outcome, d)
	}
	in.Email = "eve@example.com"
	trace = set.Explain(in)
	rule := trace.Policies[0].Rules[0]
	if len(rule.Criteria) != maxShownCriteria || rule.Omitted != 20000-maxShownCriteria || len(trace.Changes) == 0 {
		t.Errorf("%d criteria, %d omitted, changes %v", len(rule.Criteria), rule.Omitted, trace.Changes)
	}
}

func BenchmarkExplain(b *testing.B) {
	p, _, err := Parse("p.yaml", []byte("allow:\n  and:\n    - domain: example.com\n    - groups: finance\n  deny:\n"), Options{})
	if err != nil {
		p, _, err = Parse("p.yaml", []byte("- allow:\n    and:\n      - domain: example.com\n      - groups: finance\n- deny:\n    or:\n      - email: {in: [x@example.com, y@example.com]}\n"), Options{})
	}
	if err != nil {
		b.Fatal(err)
	}
	set := NewSet(Pool{Own: p})
	in := &Input{HasSession: true, HasDirectory: true, Email: "a@example.com", Groups: []string{"sales"}}
	b.ReportAllocs()
	for b.Loop() {
		set.Explain(in)
	}
}
