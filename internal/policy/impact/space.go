package impact

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// atom is something that only a request can tell.
type atom struct {
	text    string // "source_ip: 10.0.0.0/8"
	use     *policy.Use
	missing bool // no device of the type is registered
	session bool // somebody is signed in
	script  bool
}

// Space holds the atoms of one or several routes and the functions over them.
// Conditions of one Space can be compared. It is for one goroutine.
type Space struct {
	d        *diagram
	atoms    []atom
	byKey    map[string]int
	accesses map[accessKey]Access
	// possible is what can happen at all, of the first bound atoms.
	possible ref
	bound    int
	// unbound: binding the atoms was too much, so that only their logic counts.
	unbound bool
}

// within computes something that may use constraint. If it becomes too large,
// it is computed without; then fewer conditions are found Never or Always, and
// none wrongly.
//
// ok is false if even that is too large; the space is then as it was before.
func (s *Space) within(compute func() ref) (r ref, ok bool) {
	n := len(s.d.nodes)
	r = compute()
	if s.d.full && !s.unbound {
		s.d.reset(n)
		s.unbound = true
		r = compute()
	}
	if s.d.full {
		s.d.reset(n)
		return never, false
	}
	return r, true
}

// can tells that f is true of some request, or may be.
func (s *Space) can(f func() ref) bool {
	r, ok := s.within(func() ref { return s.d.and(f(), s.constraint()) })
	return !ok || r != never
}

// NewSpace makes an empty space.
func NewSpace() *Space {
	return &Space{d: newDiagram(), byKey: map[string]int{}, accesses: map[accessKey]Access{}, possible: always}
}

func (s *Space) atom(key string, a atom) ref {
	i, ok := s.byKey[key]
	if !ok {
		i = len(s.atoms)
		s.byKey[key] = i
		s.atoms = append(s.atoms, a)
	}
	return s.d.atom(i)
}

func (s *Space) signedIn() ref {
	return s.atom(sessionKey, atom{text: "somebody is signed in", session: true})
}

func (s *Space) criterion(u *policy.Use) ref {
	text := useText(u)
	return s.atom(text, atom{text: text, use: u})
}

func (s *Space) noDevice(u *policy.Use) ref {
	kind := "any"
	if t := child(u.Value(), "type"); t != nil {
		kind = t.Value
	}
	return s.atom("no device: "+useText(u), atom{text: "no registered device of the type " + kind + " that could be judged", use: u, missing: true})
}

func (s *Space) script(p *policy.Policy, does string) ref {
	// Two scripts of one name may differ, so a script is itself only.
	return s.atom(fmt.Sprintf("script %p %s", p, does), atom{text: "the script " + p.Name() + " " + does, script: true})
}

// useText writes a criterion on one line; equal texts are equal criteria.
func useText(u *policy.Use) string {
	name := u.Criterion.Name
	if u.SubPath != "" {
		name += "/" + u.SubPath
	}
	v, err := plain(u.Value())
	if err != nil {
		return fmt.Sprintf("%s (line %d, column %d)", name, u.Line, u.Column)
	}
	switch u.Criterion.Name {
	case "cors_preflight", "invalid_client_certificate", "pomerium_routes", "ssh_username_matches_email", "authenticated_user", "accept", "reject":
		return name // the value is ignored
	}
	if t, ok := v.(string); ok {
		return name + ": " + t
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprintf("%s (line %d, column %d)", name, u.Line, u.Column)
	}
	return name + ": " + strings.TrimSpace(b.String())
}

func plain(n *yaml.Node) (any, error) {
	if n == nil {
		return nil, nil
	}
	return policy.Plain(n)
}

func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// Condition says of which requests something is true.
type Condition struct {
	s     *Space
	f     ref
	large bool // too large to be computed
}

// condition computes a condition; f may use that of others.
func (s *Space) condition(f func() ref) Condition {
	r, ok := s.within(f)
	return Condition{s, r, !ok}
}

// Never tells that no request will do. A condition too large to be computed is
// neither Never nor Always.
func (c Condition) Never() bool {
	return !c.large && !c.s.can(func() ref { return c.f })
}

// Always tells that every request will do.
func (c Condition) Always() bool {
	r, ok := c.s.within(func() ref { return c.s.d.but(c.s.constraint(), c.f) })
	return ok && !c.large && r == never
}

// But is: c, and not other. Both are of one Space.
func (c Condition) But(other Condition) Condition {
	out := c.s.condition(func() ref { return c.s.d.but(c.f, other.f) })
	out.large = out.large || c.large || other.large
	return out
}

// Same tells that two conditions of one Space are true of the same requests.
func (c Condition) Same(other Condition) bool {
	return c.But(other).Never() && other.But(c).Never()
}

// Holds judges the condition by a concrete request. Atoms of scripts cannot be
// judged so and count as false; a condition too large to be computed holds of
// nothing.
func (c Condition) Holds(in *policy.Input) bool {
	return c.s.d.value(c.f, func(level int) bool {
		a := &c.s.atoms[level]
		switch {
		case a.script:
			return false
		case a.session:
			return in.HasSession
		}
		ok, why := a.use.Judge(in)
		if a.missing {
			return why.Has(policy.ReasonDeviceUnauthenticated)
		}
		return ok
	})
}

// maxTerms is how many alternatives a condition is written as at most.
const maxTerms = 16

// Terms writes the condition as alternatives, each a list of what must come
// together, in the words of the policy: "http_method: GET", "not source_ip:
// 10.0.0.0/8". No alternative: Never. An empty one: Always. complete is false
// if there are more.
func (c Condition) Terms() (terms [][]string, complete bool) {
	d := c.s.d
	var list [][]literal
	if c.large {
		return nil, false
	}
	if _, ok := c.s.within(func() ref {
		possible := c.s.constraint()
		list, complete = d.terms(d.and(c.f, possible), d.or(c.f, d.not(possible)), maxTerms)
		return never
	}); !ok {
		return nil, false
	}
	for _, t := range list {
		words := make([]string, len(t))
		for i, l := range t {
			words[i] = shorten(c.s.atoms[l.level].text)
			if l.not {
				words[i] = "not " + words[i]
			}
		}
		terms = append(terms, words)
	}
	return terms, complete
}

// String is "always", "never" or "only if ...".
func (c Condition) String() string {
	switch {
	case c.s == nil || c.Never():
		return "never"
	case c.Always():
		return "always"
	}
	terms, complete := c.Terms()
	list := make([]string, len(terms))
	for i, t := range terms {
		list[i] = strings.Join(t, " and ")
	}
	if !complete {
		list = append(list, "something else, too long to be written here")
	}
	return "only if " + strings.Join(list, ", or ")
}

func shorten(text string) string {
	const most = 100
	r := []rune(text)
	if len(r) <= most {
		return text
	}
	return string(r[:most]) + "..."
}
