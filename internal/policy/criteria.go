package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Criterion is one word of the language. Each has a file of its own.
type Criterion struct {
	Name string
	// Doc says in one or two sentences when it is true; the reference page,
	// the schema and the palette of the console are made of it.
	Doc string
	// Value says what the criterion takes, for the same readers.
	Value string
	// Matcher is the kind of that value.
	Matcher *Matcher
	// Example is a policy test (policy-language.md §14) without its name. It
	// stands on the reference page and is run.
	Example string
	// Identity marks a criterion about the person: without a session it is
	// false with user-unauthenticated.
	Identity bool
	// SubPath tells that a name after the slash means something.
	SubPath bool
	// Compile turns the value into a test, or reports problems to s and
	// gives nil.
	Compile func(s *Scope, value *yaml.Node) test
}

// criteria is the whole language; adding a criterion is a line here and a file.
var criteria = []*Criterion{
	accept,
	authenticatedUser,
	claim,
	clientCertificate,
	corsPreflight,
	date,
	dayOfWeek,
	device,
	domain,
	email,
	groups,
	httpMethod,
	httpPath,
	invalidClientCertificate,
	mcpTool,
	pomeriumRoutes,
	record,
	reject,
	sourceIP,
	sshCA,
	sshPublicKey,
	sshUsername,
	sshUsernameMatchesClaim,
	sshUsernameMatchesEmail,
	timeOfDay,
	user,
}

var criterionByName = func() map[string]*Criterion {
	m := make(map[string]*Criterion, len(criteria))
	for _, c := range criteria {
		m[c.Name] = c
	}
	return m
}()

var criterionNames = slices.Sorted(maps.Keys(criterionByName))

// Criteria lists the language in alphabetical order.
func Criteria() []*Criterion {
	list := make([]*Criterion, len(criterionNames))
	for i, name := range criterionNames {
		list[i] = criterionByName[name]
	}
	return list
}

// Scope is where a criterion stands while it is compiled, and where it
// reports what is wrong with its value.
type Scope struct {
	compiler  *compiler
	Criterion *Criterion
	SubPath   string
	Path      string // allow.and[0].claim/team
	Action    string // allow, deny
	Operator  string // and, or, not, nor
	Key       *yaml.Node
	is        *operand // operand of `is`, noted for the check of `and`
}

// Errorf reports an error at n; sub is added to the path ("in[2]").
func (s *Scope) Errorf(n *yaml.Node, sub, format string, args ...any) {
	s.compiler.errorf(n, joinPath(s.Path, sub), format, args...)
}

// Warnf reports a warning at n.
func (s *Scope) Warnf(n *yaml.Node, sub, format string, args ...any) {
	s.compiler.warnf(n, joinPath(s.Path, sub), format, args...)
}

// object lists the keys of a matcher that must be an object with keys out of
// valid; ok is false if it is not one. Unknown keys are reported and left out.
// kind names such keys in messages: "string operator", "date key".
func (s *Scope) object(n *yaml.Node, sub, kind string, valid []string) (list []entry, ok bool) {
	if n.Kind != yaml.MappingNode {
		s.Errorf(n, sub, "%s wants an object with keys out of: %s; got %s", s.name(sub), strings.Join(valid, ", "), describe(n))
		return nil, false
	}
	all := s.compiler.entries(n, joinPath(s.Path, sub), valid)
	for _, e := range all {
		if !slices.Contains(valid, e.name) {
			s.Errorf(e.key, sub, "unknown %s %s%s Valid for %s: %s", kind, quote(e.name),
				orStop(didYouMean(e.name, valid)), s.name(sub), strings.Join(valid, ", "))
			continue
		}
		list = append(list, e)
	}
	return list, true
}

// name says which criterion, and which of its keys, a message is about.
func (s *Scope) name(sub string) string {
	if sub == "" {
		return s.Criterion.Name
	}
	return s.Criterion.Name + "." + sub
}

// wrongType reports an operand of the wrong type. wanted holds one of the
// words string, list, number, boolean, object.
func (s *Scope) wrongType(n *yaml.Node, sub, key, wanted string) {
	s.Errorf(n, sub, "%s of %s wants a %s, got %s", quote(key), s.Criterion.Name, wanted, describe(n))
}

// plain reads a value of any type, reporting what cannot be compared.
func (s *Scope) plain(n *yaml.Node, sub string) (any, bool) {
	v, err := Plain(n)
	if err != nil {
		s.Errorf(n, sub, "%s; give a string, a number, a boolean, a list or an object", err)
		return nil, false
	}
	return v, true
}

// text reads a value that must be a string.
func (s *Scope) text(n *yaml.Node, sub, key string) (string, bool) {
	t, ok := text(n)
	if !ok {
		s.wrongType(n, sub, key, "string")
	}
	return t, ok
}

// texts reads a string or a list of strings, with the node of each.
func (s *Scope) texts(n *yaml.Node, sub, key string) (list []string, nodes []*yaml.Node, ok bool) {
	if n.Kind != yaml.SequenceNode {
		t, isText := text(n)
		if !isText {
			s.Errorf(n, sub, "%s wants a string or a list of strings, got %s", key, describe(n))
			return nil, nil, false
		}
		return []string{t}, []*yaml.Node{n}, true
	}
	ok = true
	for i, item := range n.Content {
		t, isText := text(item)
		if !isText {
			s.Errorf(item, fmt.Sprintf("%s[%d]", sub, i), "%s wants a string or a list of strings, got %s in the list", key, describe(item))
			ok = false
			continue
		}
		list, nodes = append(list, t), append(nodes, item)
	}
	return list, nodes, ok
}

// pass makes a test of two reasons.
func pass(ok bool, yes, no reasonSet) verdict {
	if ok {
		return verdict{ok: true, why: yes}
	}
	return verdict{why: no}
}
