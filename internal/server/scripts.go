package server

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"postern/internal/config"
	"postern/internal/policy"
	"postern/internal/policy/rego"
)

// scripts compiles the custom scripts of one configuration, each text once.
type scripts struct {
	rego  *rego.Scripts
	known map[string]script
	// log is where scripts print to once the configuration serves.
	log *atomic.Pointer[slog.Logger]
}

type script struct {
	policy   *policy.Policy
	warnings []policy.Problem
	err      error
}

// script compiles a custom script (policy-language.md §11). Its problems say
// the line in the script; File and Line are those of the route, because a
// text in a document does not keep its place.
func (c *compiled) script(text, path string, r *config.Route) (*policy.Policy, []config.Problem) {
	s := &c.scripts
	if s.rego == nil {
		s.known, s.log = map[string]script{}, new(atomic.Pointer[slog.Logger])
		log := s.log
		s.rego = rego.New(rego.Options{Print: func(name string, line int, text string) {
			if l := log.Load(); l != nil {
				l.Info("policy script prints", "policy", name, "line", line, "text", text)
			}
		}})
	}
	found, ok := s.known[text]
	if !ok {
		found.policy, found.warnings, found.err = s.rego.Compile(path, text)
		s.known[text] = found
	}
	var out []config.Problem
	add := func(p policy.Problem, level config.Level) {
		out = append(out, config.Problem{File: r.File, Line: r.Line, Column: r.Column, Path: path, Level: level,
			Message: fmt.Sprintf("line %d, column %d of the script: %s", p.Line, p.Column, p.Message)})
	}
	var list policy.Problems
	switch {
	case errors.As(found.err, &list):
		for _, p := range list {
			add(p, config.LevelFatal)
		}
	case found.err != nil:
		add(policy.Problem{Line: 1, Column: 1, Message: found.err.Error()}, config.LevelFatal)
	}
	for _, w := range found.warnings {
		add(w, config.LevelWarning)
	}
	return found.policy, out
}

// printTo says where scripts print to from now on.
func (c *compiled) printTo(log *slog.Logger) {
	if c.scripts.log != nil {
		c.scripts.log.Store(log)
	}
}
