// Package policy is the policy language: it decides who may reach a route.
//
// Text is parsed and checked once (Parse, ParseNode) into an immutable Policy,
// a handful of closures that look at an Input and nothing else: no clock, no
// I/O, no logger, so that a policy gives the same answer in the proxy, in a
// test file and in an explanation.
//
//	p, warnings, err := policy.Parse("policy.yaml", text, policy.Options{})
//	set := policy.NewSet(policy.Pool{Own: p, Attached: route.Policies})
//	var res policy.Result
//	set.Evaluate(&input, &res)
//	choice := policy.Choose(&res, client)   // allow, login, device, deny, error
//
// A criterion is one file (email.go, source_ip.go, ...) holding a value with
// its name, its documentation and its compile function; criteria.go lists
// them. Everything fails closed: an empty policy, absent data, a malformed
// address allow nobody.
//
// Source: policy-language.md; deviations from the reference are its §13.
package policy

import (
	"slices"

	"go.yaml.in/yaml/v3"
)

// test is a compiled criterion. It must not allocate, panic or keep in.
type test func(in *Input) verdict

// operator says how the criteria of one list are combined (§3).
type operator uint8

const (
	opAnd operator = iota
	opOr
	opNot // none is true
	opNor // at least one is false
)

var operatorNames = []string{"and", "or", "not", "nor"}

func (o operator) String() string { return operatorNames[o] }

// group is one operator with its criteria; it is never empty.
type group struct {
	op    operator
	tests []test
}

// evaluate combines the criteria. None is skipped: reasons of all count (§4).
// `not` and `nor` flip the values, keep the reasons, and then are `and` and `or`.
func (g *group) evaluate(in *Input) verdict {
	flip := g.op >= opNot
	var yes, no verdict // merged over the true ones and the false ones
	var anyYes, anyNo bool
	for _, t := range g.tests {
		v := t(in)
		if v.ok != flip {
			anyYes = true
			yes.why |= v.why
			yes.device = lastDevice(yes.device, v.device)
		} else {
			anyNo = true
			no.why |= v.why
			no.device = lastDevice(no.device, v.device)
		}
	}
	if g.op == opAnd || g.op == opNot {
		if anyNo {
			return no
		}
		yes.ok = anyYes
		return yes
	}
	if anyYes {
		yes.ok = true
		return yes
	}
	return no
}

// Policy is a compiled policy. It is immutable and may be shared by any
// number of routes and goroutines. The zero Policy allows nobody.
type Policy struct {
	name        string
	allow, deny []group
	rules       []Rule // places are relative to place
	place       place
	custom      func(in *Input, res *Result)
	// public says that some allow rule lets in everybody; under it an
	// identity criterion below deny surprises (§8).
	public        bool
	identityDenys []Problem
}

// Rule is one operator of one action as it stands in the text, for tools that
// show, count or explain rules.
type Rule struct {
	Action   string // "allow" or "deny"
	Operator string // "and", "or", "not", "nor"
	Criteria []Use
}

// Use is one criterion as it stands in the text. Path is as in problems, for
// example "allow.and[0].email"; Line and Column count from 1.
type Use struct {
	Criterion    *Criterion
	SubPath      string
	Path         string
	Line, Column int
	test         test
	value        *yaml.Node
}

// Name is the name of the file or document the policy came from.
func (p *Policy) Name() string { return p.name }

// Rules lists the rules in document order, empty operators left out. The
// caller must not change the list.
func (p *Policy) Rules() []Rule { return p.placed() }

// Custom makes a policy of a foreign evaluator, such as a compiled script.
// evaluate is given a zero Result and must set Err if it cannot answer.
func Custom(name string, evaluate func(in *Input, res *Result)) *Policy {
	return &Policy{name: name, custom: evaluate}
}

// Evaluate judges in and overwrites res. It does not allocate.
func (p *Policy) Evaluate(in *Input, res *Result) {
	res.Reset()
	if p == nil {
		return
	}
	if p.custom != nil {
		p.custom(in, res)
		if res.Err != nil {
			*res = Result{Err: res.Err}
		}
		return
	}
	res.Allow = evaluateAction(p.allow, in).answer()
	res.Deny = evaluateAction(p.deny, in).answer()
}

func evaluateAction(groups []group, in *Input) (v verdict) {
	for i := range groups {
		v.or(groups[i].evaluate(in))
	}
	return v
}

// WarningsIfPublic lists the identity criteria under deny. A route that is
// public by other means (a shortcut, another policy) should print them: each
// makes every visitor sign in, because a false deny carries its reasons too.
func (p *Policy) WarningsIfPublic() []Problem {
	if p == nil || p.public {
		return nil // already among the warnings of Parse
	}
	out := slices.Clone(p.identityDenys)
	for i := range out {
		out[i].Path = joinPath(p.place.path, out[i].Path)
		out[i].Line += p.place.lines
	}
	return out
}
