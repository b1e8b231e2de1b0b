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
	s *Space
	f ref
}

func (s *Space) condition(f ref) Condition { return Condition{s, f} }

// Never tells that no request will do. A condition too large to be computed is
// neither Never nor Always.
func (c Condition) Never() bool {
	possible := c.s.constraint()
	return c.s.d.and(c.f, possible) == never && !c.s.d.full
}

// Always tells that every request will do.
func (c Condition) Always() bool {
	possible := c.s.constraint()
	return c.s.d.but(possible, c.f) == never && !c.s.d.full
}

// But is: c, and not other. Both are of one Space.
func (c Condition) But(other Condition) Condition {
	return c.s.condition(c.s.d.but(c.f, other.f))
}

// Same tells that two conditions of one Space are true of the same requests.
func (c Condition) Same(other Condition) bool {
	return c.But(other).Never() && other.But(c).Never()
}

// Holds judges the condition by a concrete request. Atoms of scripts cannot be
// judged so and count as false.
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
	d, possible := c.s.d, c.s.constraint()
	list, complete := d.terms(d.and(c.f, possible), d.or(c.f, d.not(possible)), maxTerms)
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
		list = append(list, "other combinations, too many to list")
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
