package route

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"postern/internal/exchange"
)

type matchKind uint8

const (
	matchPrefix matchKind = iota
	matchExact
	matchRegex
)

// pathMatcher is the one path condition of a route (configuration.md §3.3).
type pathMatcher struct {
	kind matchKind
	text string // prefix or path, in the spelling of canonical paths
	re   *regexp.Regexp
}

func newPathMatcher(prefix, path, regex string) (m pathMatcher, err error) {
	switch {
	case regex != "":
		// The whole path has to match; anchors of the operator's are harmless.
		m.kind = matchRegex
		if m.re, err = regexp.Compile(`\A(?:` + regex + `)\z`); err != nil {
			return m, fmt.Errorf("regex %q is not an RE2 expression: %w", regex, err)
		}
		if _, err = regexp.Compile(regex); err != nil { // such as "a)(b"
			return m, fmt.Errorf("regex %q is not an RE2 expression: %w", regex, err)
		}
	case path != "":
		m.kind = matchExact
		m.text, err = exchange.CanonicalLiteral(path)
	case prefix != "":
		m.text, err = exchange.CanonicalLiteral(prefix)
	default:
		m.text = "/"
	}
	if err != nil {
		return m, fmt.Errorf("path matcher %q: %w", prefix+path, err)
	}
	return m, nil
}

func (m *pathMatcher) match(path string) bool {
	switch m.kind {
	case matchExact:
		return path == m.text
	case matchRegex:
		return m.re.MatchString(path)
	}
	return strings.HasPrefix(path, m.text)
}

// pathTable finds the first of an ordered list of routes that accepts a path.
type pathTable struct {
	routes []*Route // in order of their slots
	index  *pathIndex
}

// indexFrom is the number of routes from which an index beats walking the list.
const indexFrom = 12

// pathIndex holds the smallest position of each exact path and each prefix;
// regular expressions are walked, but only those in front of the best so far.
type pathIndex struct {
	exact    map[string]int
	prefixes map[string]int
	lengths  []int // distinct prefix lengths
	regexes  []int
}

func (t *pathTable) add(r *Route) { t.routes = append(t.routes, r) }

// seal builds the index once all routes are in.
func (t *pathTable) seal() {
	if len(t.routes) < indexFrom {
		return
	}
	x := &pathIndex{exact: map[string]int{}, prefixes: map[string]int{}}
	put := func(m map[string]int, key string, i int) {
		if _, ok := m[key]; !ok {
			m[key] = i
		}
	}
	for i, r := range t.routes {
		switch p := &r.paths; p.kind {
		case matchExact:
			put(x.exact, p.text, i)
		case matchRegex:
			x.regexes = append(x.regexes, i)
		default:
			put(x.prefixes, p.text, i)
			if !slices.Contains(x.lengths, len(p.text)) {
				x.lengths = append(x.lengths, len(p.text))
			}
		}
	}
	slices.Sort(x.lengths)
	t.index = x
}

// find returns the first route that accepts path, or nil.
func (t *pathTable) find(path string) *Route {
	if t.index == nil {
		for _, r := range t.routes {
			if r.paths.match(path) {
				return r
			}
		}
		return nil
	}
	x, best := t.index, len(t.routes)
	if i, ok := x.exact[path]; ok {
		best = i
	}
	for _, n := range x.lengths {
		if n > len(path) {
			break
		}
		if i, ok := x.prefixes[path[:n]]; ok && i < best {
			best = i
		}
	}
	for _, i := range x.regexes {
		if i > best {
			break
		}
		if t.routes[i].paths.re.MatchString(path) {
			best = i
			break
		}
	}
	if best == len(t.routes) {
		return nil
	}
	return t.routes[best]
}
