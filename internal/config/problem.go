package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Level says how much a Problem weighs.
type Level uint8

// The levels of problems, from the heaviest.
const (
	// LevelFatal stops the start; on reload the old configuration stays.
	LevelFatal Level = iota
	// LevelWarning does not stop anything, but the operator should act.
	LevelWarning
	// LevelLogged is a note in the log (unknown and old keys).
	LevelLogged
)

// String gives "error", "warning" or "note".
func (l Level) String() string {
	switch l {
	case LevelFatal:
		return "error"
	case LevelWarning:
		return "warning"
	}
	return "note"
}

// Kind sorts problems for callers that treat some of them differently.
type Kind uint8

// The kinds of problems.
const (
	// KindInvalid is a malformed document or a value that fails its check.
	KindInvalid Kind = iota
	// KindUnknownKey is a key that nothing declares.
	KindUnknownKey
	// KindMisspelt is an unknown key that looks like one that narrows access;
	// it fails validate, but not the start.
	KindMisspelt
	// KindRemovedKey is a key that existed once.
	KindRemovedKey
	// KindDeprecated is a key with a better successor.
	KindDeprecated
	// KindAccepted is the one note about keys that are understood but not
	// yet acted upon.
	KindAccepted
	// KindNarrowing is a key that would narrow access and does not act yet.
	KindNarrowing
	// KindUnreadable is a file that a service will miss when it starts.
	KindUnreadable
	// KindIsolated is a mistake that takes one route out of service and leaves
	// the others (config_bad_route: isolate); it fails validate.
	KindIsolated
)

var kindNames = [...]string{
	"invalid", "unknown-key", "misspelt-key", "removed-key", "old-key", "no-effect", "restricts", "unreadable", "isolated",
}

// String gives a stable word for programs, such as unknown-key.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "invalid"
}

// MarshalText makes JSON show the word.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// MarshalText makes JSON show the word.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// Problem is one thing that is wrong with a configuration, where it is, and
// what to do about it.
type Problem struct {
	// File is the document, or "environment".
	File string `json:"file,omitempty"`
	// Line and Column count from 1; 0 where there is no position.
	Line   int `json:"line,omitempty"`
	Column int `json:"column,omitempty"`
	// Path names the setting, such as routes[2].to or the name of an
	// environment variable.
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
	// Hint says what the operator can do; it may be empty.
	Hint  string `json:"hint,omitempty"`
	Level Level  `json:"level"`
	Kind  Kind   `json:"kind"`
}

// String gives file:line:column: level: path: message; hint.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	b.WriteString(p.Level.String())
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; ")
		b.WriteString(p.Hint)
	}
	return b.String()
}

// Error makes a Problem usable as an error.
func (p Problem) Error() string { return p.String() }

// Fatal reports whether any of the problems stops the start.
func Fatal(problems []Problem) bool {
	return slices.ContainsFunc(problems, func(p Problem) bool { return p.Level == LevelFatal })
}

// ForValidate gives the problems as `postern validate` judges them: a
// misspelt key that would narrow access is an error there, and so is a route
// that would be isolated.
func ForValidate(problems []Problem) []Problem {
	out := slices.Clone(problems)
	for i := range out {
		if out[i].Kind == KindMisspelt || out[i].Kind == KindIsolated {
			out[i].Level = LevelFatal
		}
	}
	return out
}

// sortProblems puts problems in the order of the sources and positions in
// them. What has no position comes after what has one.
func sortProblems(problems []Problem, files []string) {
	rank := func(p Problem) int {
		if i := slices.Index(files, p.File); i >= 0 {
			return i
		}
		return len(files)
	}
	line := func(p Problem) int {
		if p.Line == 0 {
			return int(^uint(0) >> 1)
		}
		return p.Line
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(line(a), line(b)),
			cmp.Compare(a.Column, b.Column))
	})
}

// shorten keeps values of the user's readable in messages.
func shorten(s string) string {
	const most = 80
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return fmt.Sprintf("%q", s)
}

// suggest finds the known name nearest to bad by edit distance, if it is near
// enough to be meant: at most a third of its letters.
func suggest(bad string, known []string) string {
	from := []rune(strings.ToLower(strings.TrimSpace(bad)))
	if len(from) > 64 {
		return ""
	}
	limit := max(1, len(from)/3)
	best := ""
	for _, name := range known {
		if d := editDistance(from, []rune(name)); d < limit || d == limit && best == "" {
			best, limit = name, d
		}
	}
	return best
}

// editDistance counts insertions, deletions, replacements and swaps of
// neighbours (optimal string alignment).
func editDistance(a, b []rune) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
