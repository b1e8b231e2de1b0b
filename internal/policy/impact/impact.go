// Package impact answers questions about policies without a request: who may
// reach a route, under which conditions, by which rule, and what a change of
// policy changes for whom.
//
// The answer is a three-valued evaluation. What is known of a person (id,
// e-mail, claims, groups) decides identity criteria; what only a request can
// tell (time, address, method, path, device, certificate) stays an atom. The
// whole of policy-language.md §4 and §8 is done over such functions, reasons
// included, since a reason alone can refuse. A Condition is then Always,
// Never, or a disjunction of terms. It is exact in the sense that it gives for
// every concrete request what the evaluator gives; it is Never, or Always,
// also where the atoms are bound to each other in ways that the package knows
// (one method is not two, an address lies in the ranges around it).
package impact

import (
	"strings"

	"postern/internal/policy"
)

// Person is somebody known, or nobody (the zero Person: not signed in).
type Person struct {
	ID, Email, Name string
	Claims          map[string][]any
	Groups          []string // directory group ids
	HasDirectory    bool     // tells no groups from no directory record
	Anonymous       bool     // nobody is signed in; all else is ignored
}

// Route is what decides about one route.
type Route struct {
	Set *policy.Set
	SSH bool
	MCP bool // the route is an MCP server
	// ClientCAs: a client CA is configured, so that a certificate may be
	// missing or invalid.
	ClientCAs bool
}

// Known is what is not left open: a person, and as much of a request as
// somebody wrote down. In holds the values; the flags say which of them are
// known besides who is asking.
type Known struct {
	In                                      *policy.Input
	Method, Path, IP, Now, Headers          bool
	Certificate, Devices, MCP, SSH, Records bool

	// Person: id and e-mail address are known, claims and groups are not.
	Person bool

	open     bool // nothing is known, not even of the person
	anyRoute bool // nor what kind of route it is
}

// Anybody is knowing nothing: who somebody is becomes a part of the condition.
func Anybody() *Known { return &Known{In: &policy.Input{}, open: true} }

// KnownOf gives what is known of a person before any request.
func KnownOf(p *Person) *Known {
	in := &policy.Input{}
	if !p.Anonymous {
		in.HasSession, in.UserID, in.Email = true, p.ID, p.Email
		in.Claims, in.Groups, in.HasDirectory = p.Claims, p.Groups, p.HasDirectory
	}
	return &Known{In: in}
}

// decides tells whether the criterion can be judged by what is known.
func (k *Known) decides(u *policy.Use, r *Route) bool {
	name := u.Criterion.Name
	if k.open {
		switch name {
		case "accept", "reject", "pomerium_routes":
			return true
		case "mcp_tool":
			return !r.MCP
		case "invalid_client_certificate":
			return !r.ClientCAs
		case "http_method", "http_path", "cors_preflight", "client_certificate":
			return r.SSH
		case "ssh_username", "ssh_publickey", "ssh_ca":
			return !r.SSH && !k.anyRoute
		}
		return false
	}
	if k.Person && k.In.HasSession && (name == "claim" || name == "groups") {
		return false
	}
	switch name {
	case "accept", "reject", "authenticated_user", "user", "email", "domain", "claim", "groups":
		return true
	case "pomerium_routes":
		return true // internal paths never come to a policy (§9)
	case "http_method":
		return k.Method || r.SSH
	case "http_path":
		return k.Path || r.SSH
	case "cors_preflight":
		return r.SSH || k.Method && (k.In.Method != "OPTIONS" || k.Headers)
	case "source_ip":
		return k.IP
	case "date", "day_of_week", "time_of_day":
		return k.Now
	case "client_certificate":
		return k.Certificate || r.SSH
	case "invalid_client_certificate":
		return k.Certificate || !r.ClientCAs
	case "mcp_tool":
		return k.MCP || !r.MCP
	case "device":
		return k.Devices || !k.In.HasSession
	case "record":
		return k.Records || !k.In.HasSession
	default:
		if strings.HasPrefix(name, "ssh_") {
			return k.SSH || !r.SSH || u.Criterion.Identity && !k.In.HasSession
		}
	}
	return false
}

// answer is a criterion, an operator or an action as functions of atoms: its
// value, and the presence of each reason that matters to the outcome (§8).
type answer struct {
	ok      ref
	reasons [reasonKinds]ref
}

// The reasons that can refuse by being there.
const (
	signIn = iota
	device
	certificate
	key
	reasonKinds
)

// outcomeReasons are the words behind them.
var outcomeReasons = [reasonKinds]policy.Reasons{
	signIn:      policy.ReasonsOf(policy.ReasonUserUnauthenticated),
	device:      policy.ReasonsOf(policy.ReasonDeviceUnauthenticated),
	certificate: policy.ReasonsOf(policy.ReasonClientCertificateRequired, policy.ReasonInvalidClientCertificate),
	key:         policy.ReasonsOf(policy.ReasonSSHPublicKeyUnauthorized),
}

func constant(ok bool) ref {
	if ok {
		return always
	}
	return never
}

// use gives a criterion: judged where that is possible, else an atom.
func (s *Space) use(u *policy.Use, r *Route, k *Known) (a answer) {
	if k.decides(u, r) {
		ok, why := u.Judge(k.In)
		a.ok = constant(ok)
		for i := range a.reasons {
			a.reasons[i] = constant(why.HasAny(outcomeReasons[i]))
		}
		return a
	}
	a.ok = s.criterion(u)
	if k.open && (u.Criterion.Identity || u.Criterion.Name == "record") {
		a.reasons[signIn] = s.d.not(s.signedIn())
	}
	switch u.Criterion.Name {
	case "device":
		// False is either no device or a wrong one; an atom of its own tells.
		a.reasons[device] = s.d.but(s.noDevice(u), a.ok)
		if k.open {
			a.reasons[device] = s.d.and(a.reasons[device], s.signedIn())
		}
	case "invalid_client_certificate":
		a.reasons[certificate] = a.ok
	case "ssh_publickey", "ssh_ca":
		a.reasons[key] = s.d.not(a.ok)
	}
	return a
}

// combine is §4: the value of an operator over answers, and whose reasons stay.
func (s *Space) combine(list []answer, all, flip bool) (out answer) {
	d := s.d
	value := func(a *answer) ref {
		if flip {
			return d.not(a.ok)
		}
		return a.ok
	}
	// From the last to the first, so that each step adds a node at the top.
	out.ok = constant(all)
	for i := len(list) - 1; i >= 0; i-- {
		if v := value(&list[i]); all {
			out.ok = d.and(v, out.ok)
		} else {
			out.ok = d.or(v, out.ok)
		}
	}
	if len(list) == 0 {
		out.ok = never
	}
	for i := len(list) - 1; i >= 0; i-- {
		a := &list[i]
		for r, has := range a.reasons {
			if has == never {
				continue
			}
			// `and` false: only the false ones speak; `or` true: only the true ones.
			speaks := d.or(out.ok, d.not(value(a)))
			if !all {
				speaks = d.or(d.not(out.ok), value(a))
			}
			out.reasons[r] = d.or(d.and(has, speaks), out.reasons[r])
		}
	}
	return out
}

// rule is one rule of a policy with its function.
type rule struct {
	policy *policy.Policy
	*policy.Rule
	answer
}

func (s *Space) rule(ru *policy.Rule, r *Route, k *Known) answer {
	list := make([]answer, len(ru.Criteria))
	for i := range ru.Criteria {
		list[i] = s.use(&ru.Criteria[i], r, k)
	}
	switch ru.Operator {
	case "and":
		return s.combine(list, true, false)
	case "or":
		return s.combine(list, false, false)
	case "not":
		return s.combine(list, true, true)
	}
	return s.combine(list, false, true)
}

// Access is what a person may do on a route.
type Access struct {
	Condition
	// By are the allow rules that can admit; Against the deny rules that can
	// refuse what those admit.
	By, Against []RuleRef
	// SignIn: never, but somebody who signs in may be let in.
	SignIn bool
}

// RuleRef names a rule by its place.
type RuleRef struct {
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Path   string `json:"path"`
}

func (r *rule) ref() RuleRef {
	out := RuleRef{File: r.policy.Name(), Path: r.Action + "." + r.Operator}
	if len(r.Criteria) > 0 {
		u := r.Criteria[0]
		out.Line, out.Column = u.Line, u.Column
		// The path of the first criterion without its place in the list.
		name := u.Criterion.Name
		if i := strings.LastIndex(u.Path, "["); i > 0 && strings.Contains(u.Path[i:], "]."+name) {
			out.Path = u.Path[:i]
		}
	}
	return out
}

// Access gives under which conditions the outcome is allow (§8).
func (s *Space) Access(r *Route, k *Known) Access {
	memoKey := s.key(r, k)
	if a, ok := s.accesses[memoKey]; ok {
		return a
	}
	d := s.d
	var rules []rule
	var yes, no answer
	login := never
	a := Access{Condition: s.condition(func() ref {
		var allow, deny []answer
		stop := never // some script refuses by an error or a reason
		rules = rules[:0]
		for _, p := range r.Set.Policies() {
			if p.Scripted() {
				allow = append(allow, answer{ok: s.script(p, "allows")})
				deny = append(deny, answer{ok: s.script(p, "denies")})
				stop = d.or(stop, s.script(p, "fails, or asks for a sign-in, a device or a certificate"))
				continue
			}
			list := p.Rules()
			for i := range list {
				x := s.rule(&list[i], r, k)
				rules = append(rules, rule{p, &list[i], x})
				if list[i].Action == "allow" {
					allow = append(allow, x)
				} else {
					deny = append(deny, x)
				}
			}
		}
		yes, no = s.combine(allow, false, false), s.combine(deny, false, false)
		login = d.or(yes.reasons[signIn], no.reasons[signIn])
		f := d.but(d.but(yes.ok, no.ok), d.or(stop, login))
		if r.SSH {
			return d.but(f, d.or(yes.reasons[key], no.reasons[key]))
		}
		return d.but(f, d.or(no.reasons[certificate], d.or(yes.reasons[device], no.reasons[device])))
	})}
	if a.large {
		return a // the rules cannot be told either
	}
	a.SignIn = a.Never() && s.can(func() ref { return login })
	for i := range rules {
		ru := &rules[i]
		switch {
		case ru.Action == "allow" && s.can(func() ref { return d.and(ru.ok, a.f) }):
			a.By = append(a.By, ru.ref())
		case ru.Action == "deny" && s.can(func() ref { return d.and(ru.ok, yes.ok) }):
			a.Against = append(a.Against, ru.ref())
		}
	}
	s.accesses[memoKey] = a
	return a
}

// key is all that Access depends on: the set, and what the known says to each
// criterion. People who look the same to a policy share one answer.
func (s *Space) key(r *Route, k *Known) accessKey {
	var b strings.Builder
	for _, p := range r.Set.Policies() {
		list := p.Rules()
		for i := range list {
			for j := range list[i].Criteria {
				u := &list[i].Criteria[j]
				c := byte(1)
				if k.decides(u, r) {
					ok, why := u.Judge(k.In)
					c = 2
					if ok {
						c |= 4
					}
					for n := range outcomeReasons {
						if why.HasAny(outcomeReasons[n]) {
							c |= 8 << n
						}
					}
				}
				b.WriteByte(c)
			}
		}
	}
	return accessKey{r.Set, r.SSH, r.MCP, r.ClientCAs, b.String()}
}

type accessKey struct {
	set          *policy.Set
	ssh, mcp, ca bool
	answers      string
}
