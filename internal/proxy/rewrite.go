package proxy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"postern/internal/exchange"
	"postern/internal/route"
)

// rewriting turns the judged path and host into those of the upstream request
// (configuration.md §3.5).
type rewriting struct {
	prefix    string // replaces the matched prefix, textually
	hasPrefix bool
	path      *substitution

	hostLiteral string
	hostHeader  string
	hostPath    *substitution
	preserve    bool
}

// errRewrite refuses a request whose rewritten path would mean another place
// than the judged one: "/a../x" under prefix "/a" rewritten to "/b/".
var errRewrite = errors.New("the rewritten path holds a dot segment")

// newRewriting compiles the rewriting keys. toPath is the path of the route's
// first destination, an implicit prefix_rewrite; "" and "/" mean none.
func newRewriting(c *RouteConfig, toPath string) (rewriting, error) {
	r := rewriting{
		hostLiteral: c.HostRewrite,
		hostHeader:  c.HostRewriteHeader,
		preserve:    c.PreserveHostHeader,
	}
	var err error
	switch {
	case c.RegexRewritePattern != "" && c.PrefixRewrite != "":
		return r, errors.New("prefix_rewrite and regex_rewrite_pattern exclude each other: remove one")
	case c.RegexRewritePattern != "":
		if r.path, err = newSubstitution(c.RegexRewritePattern, c.RegexRewriteSubstitution); err != nil {
			return r, fmt.Errorf("regex_rewrite: %w", err)
		}
	case c.PrefixRewrite != "":
		r.prefix, r.hasPrefix = c.PrefixRewrite, true
	case toPath != "" && toPath != "/":
		r.prefix, r.hasPrefix = toPath, true
	}
	if r.hasPrefix {
		if r.prefix, err = exchange.CanonicalLiteral(r.prefix); err != nil {
			return r, fmt.Errorf("prefix_rewrite %q: %w", c.PrefixRewrite, err)
		}
	}
	if c.HostPathRegexRewritePattern != "" {
		if r.hostPath, err = newSubstitution(c.HostPathRegexRewritePattern, c.HostPathRegexRewriteSubstitution); err != nil {
			return r, fmt.Errorf("host_path_regex_rewrite: %w", err)
		}
	}
	if r.hostLiteral != "" && !validHeaderValue(r.hostLiteral) {
		return r, fmt.Errorf("host_rewrite %q is not a host", r.hostLiteral)
	}
	return r, nil
}

// upstreamPath is the path, and a query that a substitution may have put
// behind it, for a request with the canonical path.
func (r *rewriting) upstreamPath(rt *route.Route, path string) (out, query string, err error) {
	switch {
	case r.path != nil:
		out = r.path.replace(path)
		out, query, _ = strings.Cut(out, "?")
	case r.hasPrefix:
		out = r.prefix + path[len(rt.MatchedPrefix(path)):]
	default:
		return path, "", nil
	}
	if out == "" || out[0] != '/' {
		out = "/" + out
	}
	if hasDotSegment(out) || !validTarget(out) || !validTarget(query) {
		return "", "", errRewrite
	}
	return out, query, nil
}

// hasDotSegment looks for a segment "." or "..", also one that only servers
// which cut path parameters see ("..;x").
func hasDotSegment(path string) bool {
	for seg := range strings.SplitSeq(path, "/") {
		seg, _, _ = strings.Cut(seg, ";")
		if seg == "." || seg == ".." {
			return true
		}
	}
	return false
}

func validTarget(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7F || c == '#' {
			return false
		}
	}
	return true
}

// host is the Host for the upstream request, "" for the chosen endpoint's own,
// and whether the client's Host was replaced. A header that names no host is
// as good as none.
func (r *rewriting) host(v exchange.View) (host string, rewritten bool) {
	switch {
	case r.hostLiteral != "":
		return r.hostLiteral, true
	case r.hostHeader != "":
		if h, _, err := exchange.CanonicalAuthority(v.Header(r.hostHeader)); err == nil {
			return h, true
		}
	case r.hostPath != nil:
		if h, _, err := exchange.CanonicalAuthority(r.hostPath.replace(v.Path())); err == nil {
			return h, true
		}
	case r.preserve:
		return v.Authority(), false
	}
	return "", true
}

// substitution is an RE2 pattern with a replacement in which "\1" names a
// group, "\0" the whole match and "\\" a backslash. Every match is replaced.
type substitution struct {
	re    *regexp.Regexp
	parts []substitutionPart
}

type substitutionPart struct {
	text  string
	group int // -1: text
}

func newSubstitution(pattern, replacement string) (*substitution, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("pattern %q is not an RE2 expression: %w", pattern, err)
	}
	s := &substitution{re: re}
	text := ""
	for i := 0; i < len(replacement); i++ {
		c := replacement[i]
		if c != '\\' {
			text += string(c)
			continue
		}
		if i++; i == len(replacement) {
			return nil, fmt.Errorf("substitution %q ends in a backslash: write \\\\ for one", replacement)
		}
		switch c = replacement[i]; {
		case c == '\\':
			text += `\`
		case '0' <= c && c <= '9':
			g := int(c - '0')
			if g > re.NumSubexp() {
				return nil, fmt.Errorf("substitution %q names group %d, but pattern %q has %d", replacement, g, pattern, re.NumSubexp())
			}
			if text != "" {
				s.parts = append(s.parts, substitutionPart{text, -1})
				text = ""
			}
			s.parts = append(s.parts, substitutionPart{"", g})
		default:
			return nil, fmt.Errorf("substitution %q holds \\%c: only \\0 to \\9 and \\\\ mean something", replacement, c)
		}
	}
	if text != "" {
		s.parts = append(s.parts, substitutionPart{text, -1})
	}
	return s, nil
}

func (s *substitution) replace(in string) string {
	matches := s.re.FindAllStringSubmatchIndex(in, -1)
	if matches == nil {
		return in
	}
	var b strings.Builder
	last := 0
	for _, m := range matches {
		b.WriteString(in[last:m[0]])
		for _, p := range s.parts {
			switch {
			case p.group < 0:
				b.WriteString(p.text)
			case m[2*p.group] >= 0:
				b.WriteString(in[m[2*p.group]:m[2*p.group+1]])
			}
		}
		last = m[1]
	}
	b.WriteString(in[last:])
	return b.String()
}
