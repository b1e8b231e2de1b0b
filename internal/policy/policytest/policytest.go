// Package policytest runs policy test files: rules, requests and the verdicts
// that are expected of them (policy-language.md §14).
//
// A file holds one or more YAML documents; each is one test with its cases.
// Reading is strict: a key that the format does not know is an error, because
// a misspelt expectation would pass unnoticed.
//
// Who answers a case is an Evaluator. The program gives one that goes through
// its whole decision (authz); Local is the same judgement without records, for
// use where nothing is wired.
package policytest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"postern/internal/policy"
)

// Exit codes of Run.
const (
	ExitPassed = 0
	ExitFailed = 1 // a case failed
	ExitUsage  = 2 // a file is unreadable or is not of the format
)

// Evaluator answers a case. An error means that the case could not be put to
// it at all, which fails the case; an evaluation that failed is an Answer with
// outcome policy.Error.
type Evaluator interface {
	Evaluate(c *Case) (Answer, error)
}

// Answer is what became of a case.
type Answer struct {
	Outcome policy.Outcome
	Status  int // HTTP status; 0 on SSH
	// Allow and Deny are the merged values of the two actions, Reasons those
	// of both, sorted.
	Allow, Deny bool
	Reasons     []string
	DeviceType  string
	// Remediation lists the texts of the refusal page, in order.
	Remediation []string
}

// Options changes how Run works.
type Options struct {
	Evaluator Evaluator // nil: Local{}
	// Rego compiles a custom script; nil: scripts are not supported, and cases
	// with one fail.
	Rego func(name, script string) (*policy.Policy, error)
	// JSON prints one object per case in place of text.
	JSON bool
	// Verbose prints passed cases with their reasons too.
	Verbose bool
	// Cover tells what no case reached; Mutate puts the cases to broken
	// variants of the policies, and a survivor is a failure.
	Cover, Mutate bool
}

// Outcome is the report of one case, as --json prints it. A document with
// invalid_policy is one case that expects "invalid".
type Outcome struct {
	File     string   `json:"file"`
	Name     string   `json:"name"` // document and case, joined by ": "
	Pass     bool     `json:"pass"`
	Expect   string   `json:"expect"`
	Outcome  string   `json:"outcome"`
	Status   int      `json:"status"`
	Allow    bool     `json:"allow"`
	Deny     bool     `json:"deny"`
	Reasons  []string `json:"reasons"`
	Problems []string `json:"problems,omitempty"` // why it failed
	// Line and Column say where the case starts; 0 for an invalid text.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
}

// Got is the outcome in words: "deny (403) with reasons [domain-unauthorized]".
func (o *Outcome) Got() string {
	got := o.Outcome
	if o.Status != 0 {
		got = fmt.Sprintf("%s (%d)", got, o.Status)
	}
	return fmt.Sprintf("%s with reasons [%s]", got, strings.Join(o.Reasons, ", "))
}

// Run runs the files and writes the report to w. The result is the exit code.
func Run(files []string, opts Options, w io.Writer) int {
	exit, passed, failed := ExitPassed, 0, 0
	report := func(o Outcome) {
		if o.Pass {
			passed++
		} else {
			failed++
			exit = max(exit, ExitFailed)
		}
		print(w, opts, o)
	}
	unusable := func(err error) {
		exit = ExitUsage
		if opts.JSON {
			line, _ := json.Marshal(map[string]string{"error": err.Error()})
			fmt.Fprintf(w, "%s\n", line)
			return
		}
		fmt.Fprintf(w, "error: %v\n", err)
	}
	var all []*Document
	if len(files) == 0 {
		unusable(fmt.Errorf("no test files given; name at least one"))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			unusable(fmt.Errorf("cannot read the test file: %w", err))
			continue
		}
		docs, err := Load(file, text, opts)
		if err != nil {
			unusable(err)
			continue
		}
		for _, d := range docs {
			for _, o := range d.Run(opts) {
				report(o)
			}
		}
		all = append(all, docs...)
	}
	if !opts.JSON {
		fmt.Fprintf(w, "%d passed, %d failed\n", passed, failed)
	}
	if exit == ExitUsage {
		return exit // numbers of a part would mislead
	}
	if opts.Cover {
		c := Cover(all)
		if opts.JSON {
			printLine(w, map[string]any{"coverage": c})
		} else {
			c.print(w)
		}
	}
	if opts.Mutate {
		m := Mutate(all, opts)
		if opts.JSON {
			printLine(w, map[string]any{"mutation": m})
		} else {
			m.print(w)
		}
		if len(m.Survivors) > 0 {
			exit = max(exit, ExitFailed)
		}
	}
	return exit
}

func printLine(w io.Writer, v any) {
	line, _ := json.Marshal(v)
	fmt.Fprintf(w, "%s\n", line)
}

func print(w io.Writer, opts Options, o Outcome) {
	if opts.JSON {
		line, _ := json.Marshal(o)
		fmt.Fprintf(w, "%s\n", line)
		return
	}
	switch {
	case !o.Pass:
		fmt.Fprintf(w, "FAIL %s: %s\n", o.File, o.Name)
		for _, p := range o.Problems {
			fmt.Fprintf(w, "     %s\n", strings.ReplaceAll(p, "\n", "\n     "))
		}
		fmt.Fprintf(w, "     got %s\n", o.Got())
	case opts.Verbose:
		fmt.Fprintf(w, "ok   %s: %s: %s\n", o.File, o.Name, o.Got())
	}
}

// Run puts the cases of a document to the evaluator.
func (d *Document) Run(opts Options) []Outcome {
	if d.Invalid != nil {
		return []Outcome{d.runInvalid()}
	}
	evaluator := opts.Evaluator
	if evaluator == nil {
		evaluator = Local{}
	}
	list := make([]Outcome, 0, len(d.Cases))
	for _, c := range d.Cases {
		o := Outcome{File: d.File, Name: d.Name + ": " + c.Name, Expect: c.Expect.Outcome.String(), Outcome: "error", Reasons: []string{},
			Line: c.Line, Column: c.Column}
		answer, err := Answer{Outcome: policy.Error}, d.LoadError
		if err == nil {
			answer, err = evaluator.Evaluate(c)
		}
		if err != nil {
			o.Problems = []string{err.Error()}
		} else {
			o.Outcome, o.Status, o.Allow, o.Deny = answer.Outcome.String(), answer.Status, answer.Allow, answer.Deny
			o.Reasons = append(o.Reasons, answer.Reasons...)
			o.Problems = c.Expect.check(answer)
		}
		o.Pass = len(o.Problems) == 0
		list = append(list, o)
	}
	return list
}

// Expect is what a case wants; zero fields besides Outcome ask for nothing.
type Expect struct {
	Outcome        policy.Outcome
	Status         int
	Reasons        []string
	NotReasons     []string
	DeviceType     *string
	Remediation    []string
	hasRemediation bool
}

func (e *Expect) check(a Answer) (problems []string) {
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if a.Outcome != e.Outcome {
		wrong("expected %s", e.Outcome)
	}
	if e.Status != 0 && a.Status != e.Status {
		wrong("expected status %d", e.Status)
	}
	for _, r := range e.Reasons {
		if !slices.Contains(a.Reasons, r) {
			wrong("expected the reason %s", r)
		}
	}
	for _, r := range e.NotReasons {
		if slices.Contains(a.Reasons, r) {
			wrong("did not expect the reason %s", r)
		}
	}
	if e.DeviceType != nil && a.DeviceType != *e.DeviceType {
		wrong("expected the device type %q, got %q", *e.DeviceType, a.DeviceType)
	}
	if e.hasRemediation && !slices.Equal(a.Remediation, e.Remediation) {
		wrong("expected the remediation %q, got %q", e.Remediation, a.Remediation)
	}
	return problems
}

// Invalid is a text that must not load.
type Invalid struct {
	err      error // what reading it gave
	contains []string
	at       string
}

func (d *Document) runInvalid() Outcome {
	o := Outcome{File: d.File, Name: d.Name, Expect: "invalid", Outcome: "invalid", Reasons: []string{}}
	inv := d.Invalid
	if inv.err == nil {
		o.Outcome = "valid"
		o.Problems = []string{"expected an error, but the policy loads"}
		return o
	}
	message := inv.err.Error()
	for _, part := range inv.contains {
		if !strings.Contains(message, part) {
			o.Problems = append(o.Problems, fmt.Sprintf("expected %q in the message", part))
		}
	}
	if inv.at != "" {
		at := "nowhere"
		if problems, ok := inv.err.(policy.Problems); ok {
			for _, p := range problems {
				if at = fmt.Sprintf("%d:%d", p.Line, p.Column); at == inv.at {
					break
				}
			}
		}
		if at != inv.at {
			o.Problems = append(o.Problems, fmt.Sprintf("expected the error at %s, got it at %s", inv.at, at))
		}
	}
	if len(o.Problems) > 0 {
		o.Problems = append(o.Problems, "the message was: "+message)
	}
	o.Pass = len(o.Problems) == 0
	return o
}
