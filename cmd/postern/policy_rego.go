package main

import (
	"fmt"
	"io"
	"strings"

	"postern/internal/policy"
	"postern/internal/policy/rego"
)

// scriptCompiler compiles the custom scripts of test files; what they print
// goes to w.
func scriptCompiler(w io.Writer) func(name, script string) (*policy.Policy, error) {
	scripts := rego.New(rego.Options{Print: func(script string, line int, text string) {
		fmt.Fprintf(w, "%s:%d: %s\n", script, line, text)
	}})
	return func(name, script string) (*policy.Policy, error) {
		p, _, err := scripts.Compile(name, script)
		return p, err
	}
}

// checkDocument reads a policy file: a script if it is called .rego.
func checkDocument(file string, text []byte) (*policy.Policy, []policy.Problem, error) {
	if strings.HasSuffix(file, ".rego") {
		return rego.New(rego.Options{}).Compile(file, string(text))
	}
	return policy.Parse(file, text, policy.Options{})
}
