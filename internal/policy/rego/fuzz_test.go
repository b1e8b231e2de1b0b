package rego

import (
	"os"
	"strings"
	"testing"
	"time"

	"postern/internal/policy"
)

// FuzzScript: nothing a script can say panics, hangs or answers both with an
// error and a value.
func FuzzScript(f *testing.F) {
	for _, file := range []string{"outputs", "inputs", "errors"} {
		text, err := os.ReadFile("testdata/" + file + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		for part := range strings.SplitSeq(string(text), "rego: |\n") {
			script, _, _ := strings.Cut(part, "\ncases:")
			f.Add(strings.ReplaceAll(script, "\n  ", "\n"))
		}
	}
	f.Add(typicalRego)
	f.Add("allow := [true, [input]]")
	f.Add("allow { a := [input, input]; b := [a, a]; c := [b, b]; c == [b, b] }")
	f.Add("package pomerium.policy\nimport rego.v1\nallow if { some x in input.http; print(x) }")
	s := New(Options{Timeout: 200 * time.Millisecond, Print: func(string, int, string) {}})
	in := typicalInput()
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		p, _, err := s.Compile("fuzz.rego", text)
		if err != nil {
			list, ok := err.(policy.Problems)
			if !ok || len(list) == 0 {
				t.Fatalf("not a list of problems: %v", err)
			}
			lines := strings.Count(text, "\n") + 1
			for _, x := range list {
				if x.Line < 1 || x.Line > lines+1 || x.Column < 1 {
					t.Fatalf("a problem at %d:%d of %d lines: %s", x.Line, x.Column, lines, x.Message)
				}
			}
			return
		}
		began := time.Now()
		var res policy.Result
		p.Evaluate(in, &res)
		if res.Err != nil && (res.Allow.Value || res.Deny.Value || res.Allowed()) {
			t.Fatalf("an error and an answer: %+v", res)
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Fatalf("took %v", d)
		}
	})
}
