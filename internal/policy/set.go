package policy

import (
	"fmt"
	"maps"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Attached is a policy that applies to a route besides the route's own: given
// to it by name, or inherited because it is enforced in a namespace above (§10).
type Attached struct {
	ID, Namespace string
	// Enforced: it applies to every route of its namespace and those below.
	Enforced bool
	// Explanation and Remediation are Markdown for the refusal page.
	Explanation, Remediation string
	Policy                   *Policy
}

// Pool names everything that decides about one route.
type Pool struct {
	Own      *Policy // the route's own policy; nil: none
	Attached []Attached
	// Shortcuts is the rule of the old route keys (Shortcuts.Policy); nil: none.
	Shortcuts *Policy
	// CertificateRule adds deny: {or: [{invalid_client_certificate: true}]}. It
	// is due where any client CA is configured, globally or on any route, and
	// the enforcement mode is not "policy"; never on SSH routes (D7).
	CertificateRule bool
}

// Set is all policies of a route pooled: one result. It is immutable. The
// zero Set, like an empty pool, allows nobody.
type Set struct {
	members  []*Policy
	attached []Attached
}

// NewSet pools the policies of a route.
func NewSet(p Pool) *Set {
	s := &Set{attached: slices.Clone(p.Attached)}
	add := func(m *Policy) {
		if m != nil {
			s.members = append(s.members, m)
		}
	}
	add(p.Own)
	for _, a := range p.Attached {
		add(a.Policy)
	}
	add(p.Shortcuts)
	if p.CertificateRule {
		add(certificateRule)
	}
	return s
}

// Policies lists the members in the order of their merging. The caller must
// not change the list.
func (s *Set) Policies() []*Policy { return s.members }

// Evaluate judges in by all members and overwrites res: the allow answers are
// merged by `or`, the deny answers too. It does not allocate. The first error
// of a member is the error of all.
func (s *Set) Evaluate(in *Input, res *Result) {
	res.Reset()
	if s == nil {
		return
	}
	for _, m := range s.members {
		if m.custom == nil {
			allow := evaluateAction(m.allow, in).answer()
			deny := evaluateAction(m.deny, in).answer()
			res.Allow.or(&allow)
			res.Deny.or(&deny)
			continue
		}
		var one Result
		m.Evaluate(in, &one)
		if one.Err != nil {
			*res = Result{Err: one.Err}
			return
		}
		res.Allow.or(&one.Allow)
		res.Deny.or(&one.Deny)
	}
}

// Detail is the line of one attached policy on a refusal page.
type Detail struct {
	ID          string
	Denied      bool // a deny rule was true
	Allowed     bool // an allow rule was true and none denied
	Explanation string
	Remediation string // "" if there is none or it allowed
}

// Details lists every attached policy that has an id, each judged alone, for
// the refusal page of a route with show_error_details (§10).
func (s *Set) Details(in *Input) []Detail {
	if s == nil {
		return nil
	}
	var list []Detail
	for _, a := range s.attached {
		if a.ID == "" {
			continue
		}
		var res Result
		a.Policy.Evaluate(in, &res)
		d := Detail{ID: a.ID, Denied: res.Deny.Value, Allowed: res.Allowed(), Explanation: a.Explanation}
		if d.Explanation == "" {
			d.Explanation = "Policy ID " + a.ID
		}
		if !d.Allowed {
			d.Remediation = a.Remediation
		}
		list = append(list, d)
	}
	return list
}

// Shortcuts are the route keys older than the language. They become one more
// allow rule and bypass nothing (§9).
type Shortcuts struct {
	Public        bool // allow_public_unauthenticated_access
	CORSPreflight bool // cors_allow_preflight
	AnyUser       bool // allow_any_authenticated_user
	Domains       []string
	Claims        map[string][]any // allowed_idp_claims; types are kept
	Users         []string         // user ids or e-mail addresses
	// FoldCase finds a claim by its name in lower case where there is none as
	// written, as Options.FoldCase does.
	FoldCase bool
}

// Policy compiles the shortcuts; nil if there is none. The error names a
// claim value that cannot be compared.
func (s Shortcuts) Policy() (*Policy, error) {
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
	add := func(name string, value *yaml.Node) {
		list.Content = append(list.Content, object(name, value))
	}
	if s.Public {
		add("accept", word("true"))
	}
	if s.CORSPreflight {
		add("cors_preflight", word("true"))
	}
	if s.AnyUser {
		add("authenticated_user", word("true"))
	}
	for _, d := range s.Domains {
		add("domain", object("is", word(d)))
	}
	for _, name := range slices.Sorted(maps.Keys(s.Claims)) {
		for _, value := range s.Claims[name] {
			v := new(yaml.Node)
			if err := v.Encode(value); err != nil {
				return nil, fmt.Errorf("allowed_idp_claims: value of %s cannot be compared: %w; use strings, numbers and booleans", quote(name), err)
			}
			add("claim/"+name, object("has", v))
		}
	}
	for _, u := range s.Users {
		add("user", object("is", word(u)))
		add("email", object("is", word(u)))
	}
	if len(list.Content) == 0 {
		return nil, nil
	}
	p, _, err := ParseNode("route shortcuts", object("allow", object("or", list)), Options{FoldCase: s.FoldCase})
	return p, err
}

func word(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
}

func object(key string, value *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{word(key), value}}
}

// certificateRule is the rule of Pool.CertificateRule.
var certificateRule = func() *Policy {
	t := compileInvalidClientCertificate(&Scope{Action: "deny", Operator: "or"}, nil)
	return &Policy{
		name: "downstream_mtls",
		deny: []group{{op: opOr, tests: []test{t}}},
		rules: []Rule{{Action: "deny", Operator: "or", Criteria: []Use{{
			Criterion: invalidClientCertificate, Path: "deny.or[0].invalid_client_certificate", test: t,
		}}}},
	}
}()
