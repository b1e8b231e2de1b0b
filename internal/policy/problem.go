package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Problem is one error or warning with its place in the user's text (§12).
type Problem struct {
	File         string
	Line, Column int    // from 1
	Path         string // for example allow.and[0].email; "" is the whole policy
	Message      string
}

// Error gives FILE:LINE:COLUMN: PATH: MESSAGE.
func (p Problem) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
	if p.Path != "" {
		b.WriteString(p.Path)
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems is everything wrong with a policy, in the order of the text.
// Parse returns its errors as one value of this type.
type Problems []Problem

// Error gives one problem per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// quote shows a name or value of the user's in double quotes, shortened so
// that a message stays readable whatever the text holds.
func quote(s string) string {
	const most = 120
	if len(s) > most {
		cut := most
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "..."
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == utf8.RuneError || r == 0x7f }) {
		return fmt.Sprintf("%q", s)
	}
	return `"` + s + `"`
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quote(n)
	}
	return strings.Join(quoted, ", ")
}

// didYouMean gives `, did you mean "x"?`, or nothing (§12).
func didYouMean(bad string, valid []string) string {
	if s := suggest(bad, valid); s != "" {
		return `, did you mean "` + s + `"?`
	}
	return ""
}

// suggest finds the valid name nearest to bad by edit distance, if it is near
// enough to be meant: at most max(1, length/3). Ties go to the alphabet.
func suggest(bad string, valid []string) string {
	limit := max(1, utf8.RuneCountInString(bad)/3)
	from := []rune(strings.ToLower(strings.TrimSpace(bad)))
	if len(from) > 64 {
		return "" // longer than any name by more than the limit
	}
	best := ""
	for _, name := range slices.Sorted(slices.Values(valid)) {
		if d := editDistance(from, []rune(strings.ToLower(name))); d <= limit {
			if best == "" || d < limit {
				best = name
			}
			limit = min(limit, d)
		}
	}
	return best
}

// editDistance counts insertions, deletions, replacements and swaps of
// neighbours (optimal string alignment).
func editDistance(a, b []rune) int {
	before := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	row := make([]int, len(b)+1)
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
