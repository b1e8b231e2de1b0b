package config

import (
	"fmt"
	"slices"
	"strings"
)

// noteKeys adds what is to be said about keys as such: old names, and the one
// note that lists the keys which are understood but do not act yet.
func (d *decoder) noteKeys() {
	waiting := append(d.noteSet(), d.cfg.waiting...)
	if d.isSet("policy") {
		d.problem(LevelLogged, KindDeprecated, "policy", "the key is an old name", "use routes")
	}
	if len(waiting) == 0 {
		return
	}
	waiting = slices.Compact(sorted(waiting))
	d.add(Problem{
		File: firstOrNone(d.cfg.sources), Level: LevelWarning, Kind: KindAccepted,
		Message: "these settings are understood but have no effect yet: " + strings.Join(waiting, ", "),
		Hint:    "nothing needs to be done unless you rely on them",
	})
}

// noteSet notes the old names among what was set, and gives what does not act.
func (d *decoder) noteSet() (waiting []string) {
	for _, s := range d.cfg.set {
		if s.key.deprecated != "" {
			d.problem(LevelLogged, KindDeprecated, s.path, "the key is an old one", "use "+s.key.deprecated)
		}
	}
	for _, s := range outermost(d.cfg.set) {
		if !s.key.narrows {
			waiting = append(waiting, generic(s.path))
		}
	}
	return waiting
}

func firstOrNone(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[0]
}

// outermost are the keys that do not act and were set to something that would,
// without those inside a block that is listed itself.
func outermost(set []setKey) []setKey {
	var out []setKey
	for _, s := range set {
		if s.key.status != "accepted" || s.same {
			continue
		}
		if n := len(out); n > 0 && within(s.path, out[n-1].path) {
			continue
		}
		out = append(out, s)
	}
	return out
}

// within reports whether path lies in block.
func within(path, block string) bool {
	rest, ok := strings.CutPrefix(path, block)
	return ok && rest != "" && (rest[0] == '.' || rest[0] == '[')
}

// generic replaces indexes: routes[3].mcp becomes routes[].mcp.
func generic(path string) string {
	var b strings.Builder
	in := false
	for _, c := range path {
		switch {
		case c == '[':
			in = true
			b.WriteString("[")
		case c == ']':
			in = false
			b.WriteString("]")
		case !in:
			b.WriteRune(c)
		}
	}
	return strings.Replace(b.String(), "policy[].", "routes[].", 1)
}

// Narrowing lists the settings that would narrow access and do not act yet.
// The start stops for each, rather than open what the operator closed.
func Narrowing(c *Config) []Problem {
	var out []Problem
	for _, s := range outermost(c.set) {
		if !s.key.narrows {
			continue
		}
		out = append(out, Problem{
			File: s.at.file, Line: s.at.line, Column: s.at.column, Path: s.path, Kind: KindNarrowing,
			Message: "this setting restricts access and does not act yet",
			Hint:    "starting without it would admit more than you asked for: remove it, and restrict by policy",
		})
	}
	return append(out, c.narrowing...)
}

// StartProblems lists everything that stops a start although the document is
// in order: settings that narrow access and do not act yet, services and
// storage that are not there yet, and files that a service will miss.
func (c *Config) StartProblems() []Problem {
	out := append([]Problem{}, c.start...)
	out = append(out, Narrowing(c)...)
	stop := func(path, message, hint string) {
		p := Problem{Path: path, Message: message, Hint: hint, Kind: KindAccepted}
		for _, s := range c.set {
			if s.path == path {
				p.File, p.Line, p.Column = s.at.file, s.at.line, s.at.column
			}
		}
		out = append(out, p)
	}
	if !c.Services.All() {
		stop("services", fmt.Sprintf("running only %s is not possible yet", strings.Join(c.Services.Services, ", ")), "use services: all")
	}
	if c.Store.Type == "postgres" {
		stop("databroker_storage_type", "postgres is not possible yet", "use file or memory")
	}
	if c.Proxy.Engine == "fast" {
		stop("engine", "the fast engine is not part of this version", "use reference, or auto, which picks it")
	}
	if c.Services.ZeroToken != "" {
		stop("pomerium_zero_token", "there is no managed mode", "remove the token and configure routes here")
	}
	sortProblems(out, c.sources)
	return out
}
