package policy

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzParse: no text makes the parser or the evaluator panic, hang or grow
// beyond its bounds, and an error always says where.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "\n---\n") {
			if _, policy, ok := strings.Cut(doc, "\npolicy:"); ok {
				policy, _, _ = strings.Cut(policy, "\ncases:")
				f.Add([]byte(strings.TrimSpace(policy)), false)
			}
		}
	}
	for _, seed := range []string{
		typicalPolicy, everything, "allow: &a {and: [*a]}", "allow: {<<: [&x {or: []}, *x], and: [{claim/a: {has: [[{}]]}}]}",
		"a: &a [x,x]\nb: &b [*a,*a]\nallow: {and: [{user: *b}]}", "? [a]\n: b", "!!int x: !!binary '%'", strings.Repeat("[", 200),
	} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Add([]byte(`{"allow": {"or": [{"user": "\ud83d\ude00"}, {"claim/n": 1e2}]}}`), true)
	inputs := []*Input{{}, typicalInput()}
	f.Fuzz(func(t *testing.T, text []byte, json bool) {
		name := "policy.yaml"
		if json {
			name = "policy.json"
		}
		for _, fold := range []bool{false, true} {
			p, _, err := Parse(name, text, Options{FoldCase: fold})
			if (p == nil) == (err == nil) {
				t.Fatalf("policy %v and error %v", p, err)
			}
			var problems Problems
			if err != nil && (!errors.As(err, &problems) || len(problems) == 0) {
				t.Fatalf("error without a place: %v", err)
			}
			for _, problem := range problems {
				if problem.Line < 1 || problem.Column < 1 || problem.Message == "" {
					t.Fatalf("problem without a place: %+v", problem)
				}
			}
			var res Result
			for _, in := range inputs {
				p.Evaluate(in, &res)
				Choose(&res, Client{})
			}
			if len(p.rulesOrNone()) == 0 && res.Allowed() {
				t.Fatal("a policy without rules allows")
			}
		}
	})
}

func (p *Policy) rulesOrNone() []Rule {
	if p == nil {
		return nil
	}
	return p.rules
}
