package impact

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// The atoms of a space are bound to each other: a request has one method, an
// address outside 10.0.0.0/8 is not in 10.1.0.0/16. constraint is what can
// happen at all. It only ever rules out what cannot be, so a Never and an
// Always stay true; what it does not know of, it leaves open.
//
// Each kind of value is tried with samples: the values that policies name and
// those just beside them. For addresses and dates these are all cases there
// are; for strings a value that nobody names is left open where a prefix, a
// suffix or a substring is asked for.

// maxSamples bounds how many values of a kind are tried.
const maxSamples = 256

// sample is one value, put into an input. exact: criteria that ask for parts
// of strings are judged by it too.
type sample struct {
	in    policy.Input
	exact bool
}

func (s *Space) constraint() ref {
	if s.unbound {
		return always
	}
	if s.bound == len(s.atoms) {
		return s.possible
	}
	s.bound = len(s.atoms)
	kinds := map[string][]int{}
	for i := range s.atoms {
		a := &s.atoms[i]
		if a.use == nil || a.missing {
			continue
		}
		switch name := a.use.Criterion.Name; name {
		case "http_method", "cors_preflight":
			kinds["method"] = append(kinds["method"], i)
		case "email", "domain":
			kinds["email"] = append(kinds["email"], i)
		case "time_of_day":
			zone := ""
			if z := child(a.use.Value(), "timezone"); z != nil {
				zone = z.Value
			}
			kinds["time_of_day "+zone] = append(kinds["time_of_day "+zone], i)
		case "http_path", "source_ip", "date", "day_of_week", "user", "ssh_username", "mcp_tool":
			kinds[name] = append(kinds[name], i)
		case "claim", "groups":
			kinds[name+"/"+a.use.SubPath] = append(kinds[name+"/"+a.use.SubPath], i)
		}
	}
	possible := always
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		atoms := kinds[name]
		if len(atoms) < 1 {
			continue
		}
		var bound ref
		switch kind, _, _ := strings.Cut(name, " "); {
		case strings.HasPrefix(name, "claim/") || strings.HasPrefix(name, "groups/"):
			bound = s.lists(atoms, strings.HasPrefix(name, "groups/"))
		case kind == "source_ip":
			bound = s.oneOf(atoms, s.addresses(atoms))
		case kind == "date":
			bound = s.oneOf(atoms, s.moments(atoms))
		case kind == "day_of_week":
			bound = s.oneOf(atoms, days())
		case kind == "time_of_day":
			bound = s.oneOf(atoms, s.clocks(atoms))
		default:
			bound = s.d.and(s.oneOf(atoms, s.strings(atoms, kind)), s.parts(atoms))
		}
		possible = s.d.and(possible, bound)
	}
	// Without a session no identity criterion is true; a device that is judged
	// is not missing.
	for i := range s.atoms {
		a := &s.atoms[i]
		if a.use == nil {
			continue
		}
		if session, ok := s.byKey[sessionKey]; ok && (a.use.Criterion.Identity || a.use.Criterion.Name == "record") && !a.missing {
			possible = s.d.and(possible, s.d.or(s.d.not(s.d.atom(i)), s.d.atom(session)))
		}
		if a.missing {
			if wrong, ok := s.byKey[useText(a.use)]; ok {
				possible = s.d.but(possible, s.d.and(s.d.atom(i), s.d.atom(wrong)))
			}
		}
	}
	s.possible = possible
	return possible
}

const sessionKey = "session"

// oneOf says that the atoms are as one of the samples has them.
func (s *Space) oneOf(atoms []int, samples []sample) ref {
	if len(samples) == 0 || len(samples) > maxSamples {
		return always
	}
	slices.Sort(atoms)
	some := never
	for i := range samples {
		in := &samples[i].in
		in.HasSession = true
		this := always
		for j := len(atoms) - 1; j >= 0; j-- {
			u := s.atoms[atoms[j]].use
			x := s.d.atom(atoms[j])
			switch {
			case u.Holds(in):
				if samples[i].exact || whole(u) {
					this = s.d.and(x, this)
				}
			case samples[i].exact || whole(u):
				this = s.d.and(s.d.not(x), this)
			}
		}
		// Without a session all identity criteria are false.
		some = s.d.or(some, this)
	}
	if session, ok := s.byKey[sessionKey]; ok && s.atoms[atoms[0]].use.Criterion.Identity {
		some = s.d.or(some, s.d.not(s.d.atom(session)))
	}
	return some
}

// whole tells that a string criterion compares whole strings only.
func whole(u *policy.Use) bool {
	n := u.Value()
	if n == nil || n.Kind != yaml.MappingNode {
		return true
	}
	for i := 0; i < len(n.Content); i += 2 {
		switch n.Content[i].Value {
		case "contains", "starts_with", "ends_with":
			return false
		}
	}
	return len(n.Content) > 0
}

// unnamed is a value that no policy names.
const unnamed = "\x00nobody names this"

func (s *Space) strings(atoms []int, kind string) []sample {
	var out []sample
	add := func(v string, exact bool) {
		x := sample{exact: exact}
		switch kind {
		case "method":
			x.in.Method = v
			if v == "OPTIONS" {
				x.exact = exact
			}
		case "http_path":
			x.in.Path = v
		case "email":
			x.in.Email = v
		case "user":
			x.in.UserID = v
		case "ssh_username":
			x.in.SSH = &policy.SSHInput{Username: v}
		case "mcp_tool":
			x.in.MCP = &policy.MCPCall{Method: "tools/call", Tool: v}
		}
		out = append(out, x)
		if kind == "method" && v == "OPTIONS" {
			x.in.Header = func(string) string { return "x" }
			out = append(out, x)
		}
	}
	values := map[string]bool{}
	for _, i := range atoms {
		u := s.atoms[i].use
		for _, v := range texts(u.Value()) {
			if u.Criterion.Name == "domain" {
				// Somebody of that domain whose address nobody names.
				if v = unnamed + "@" + v; !values[v] {
					add(v, false)
				}
			} else if !values[v] {
				add(v, true)
			}
			values[v] = true
		}
	}
	if kind == "method" && !values["OPTIONS"] {
		add("OPTIONS", true)
	}
	add(unnamed, false)
	if kind == "email" {
		add(unnamed+"@"+unnamed, false)
	}
	if kind == "mcp_tool" {
		out = append(out, sample{exact: true}) // not a call of a tool
	}
	if kind == "user" || kind == "email" {
		out = append(out, sample{exact: true}) // a session of nobody
	}
	return out
}

// texts are all strings of a value.
func texts(n *yaml.Node) (list []string) {
	if n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.ScalarNode:
		if v, err := policy.Plain(n); err == nil {
			if t, ok := v.(string); ok {
				list = append(list, t)
			}
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			list = append(list, texts(item)...)
		}
	case yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			list = append(list, texts(n.Content[i])...)
		}
	}
	return list
}

// parts binds prefixes to prefixes and suffixes to suffixes: a longer one
// implies the shorter, and two that disagree exclude each other.
func (s *Space) parts(atoms []int) ref {
	type part struct {
		level int
		text  string
	}
	find := func(op string) (list []part) {
		for _, i := range atoms {
			u := s.atoms[i].use
			n := u.Value()
			if v := child(n, op); v != nil && len(n.Content) == 2 && u.Criterion.Name != "mcp_tool" && u.Criterion.Name != "domain" {
				list = append(list, part{i, v.Value})
			}
		}
		return list
	}
	d, all := s.d, always
	bind := func(list []part, within func(long, short string) bool) {
		if len(list) > 64 {
			return
		}
		for _, a := range list {
			for _, b := range list {
				x, y := d.atom(a.level), d.atom(b.level)
				switch {
				case a.level == b.level:
				case within(a.text, b.text):
					all = d.but(all, d.but(x, y))
				case !within(b.text, a.text):
					all = d.but(all, d.and(x, y))
				}
			}
		}
	}
	bind(find("starts_with"), strings.HasPrefix)
	bind(find("ends_with"), strings.HasSuffix)
	return all
}

// addresses are the first of every range, and the one behind its last: between
// them nothing changes.
func (s *Space) addresses(atoms []int) []sample {
	seen := map[netip.Addr]bool{}
	out := []sample{{exact: true}} // no address at all
	add := func(ip netip.Addr) {
		if ip.IsValid() && !seen[ip] {
			seen[ip] = true
			out = append(out, sample{in: policy.Input{ClientIP: ip}, exact: true})
		}
	}
	for _, i := range atoms {
		for _, t := range texts(s.atoms[i].use.Value()) {
			p, err := netip.ParsePrefix(t)
			if err != nil {
				ip, err := netip.ParseAddr(t)
				if err != nil {
					continue
				}
				p = netip.PrefixFrom(ip, ip.BitLen())
			}
			if p.Addr().Is4In6() && p.Bits() >= 96 {
				p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
			}
			p = p.Masked()
			add(p.Addr())
			add(last(p).Next())
		}
	}
	add(netip.IPv4Unspecified())
	add(netip.IPv6Unspecified())
	return out
}

// last is the highest address of a range.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

// moments are the bounds that dates name and the moments beside them.
func (s *Space) moments(atoms []int) (out []sample) {
	add := func(t time.Time) { out = append(out, sample{in: policy.Input{Now: t}, exact: true}) }
	add(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC))
	for _, i := range atoms {
		for _, text := range texts(s.atoms[i].use.Value()) {
			if t, err := policy.ParseMoment(text); err == nil {
				add(t.Add(-1))
				add(t)
				add(t.Add(1))
			}
		}
	}
	return out
}

func days() (out []sample) {
	for d := range 7 {
		out = append(out, sample{in: policy.Input{Now: time.Date(2026, 3, 1+d, 12, 0, 0, 0, time.UTC)}, exact: true})
	}
	return out
}

// clocks are the bounds that times of day of one zone name and those beside
// them, on a day without a change of the clock.
func (s *Space) clocks(atoms []int) (out []sample) {
	zone := time.UTC
	if z := child(s.atoms[atoms[0]].use.Value(), "timezone"); z != nil {
		named, err := time.LoadLocation(z.Value)
		if err != nil {
			return nil
		}
		zone = named
	}
	add := func(at time.Duration) {
		if at < 0 || at >= 24*time.Hour {
			return
		}
		day := time.Date(2026, 1, 15, 0, 0, 0, 0, zone)
		out = append(out, sample{in: policy.Input{Now: day.Add(at)}, exact: true})
	}
	add(0)
	for _, i := range atoms {
		for _, key := range []string{"after", "before"} {
			if v := child(s.atoms[i].use.Value(), key); v != nil {
				if at, err := policy.ParseTimeOfDay(v.Value); err == nil {
					add(at - 1)
					add(at)
					add(at + 1)
				}
			}
		}
	}
	return out
}

// lists binds has, exclude and is of the same list. Only criteria with one
// operator take part.
func (s *Space) lists(atoms []int, groups bool) ref {
	type item struct {
		level    int
		op, text string
	}
	var list []item
	for _, i := range atoms {
		n := s.atoms[i].use.Value()
		op, v := "has", n
		if n != nil && n.Kind == yaml.MappingNode {
			if len(n.Content) != 2 {
				continue
			}
			op, v = n.Content[0].Value, n.Content[1]
		}
		value, err := plain(v)
		if t, ok := value.(string); err == nil && ok {
			list = append(list, item{i, op, t})
		}
	}
	if len(list) > 64 {
		return always
	}
	d, all := s.d, always
	for _, a := range list {
		for _, b := range list {
			x, y := d.atom(a.level), d.atom(b.level)
			same := a.text == b.text
			switch a.op + " " + b.op {
			case "is is":
				if !same {
					all = d.but(all, d.and(x, y))
				}
			case "is has":
				if same {
					all = d.but(all, d.but(x, y))
				} else {
					all = d.but(all, d.and(x, y))
				}
			case "is exclude":
				if same {
					all = d.but(all, d.and(x, y))
				} else {
					all = d.but(all, d.but(x, y))
				}
			case "has exclude":
				if same {
					all = d.but(all, d.and(x, y))
				}
			}
		}
	}
	return all
}
