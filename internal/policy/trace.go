package policy

import (
	"slices"
	"time"

	"go.yaml.in/yaml/v3"
)

// Trace tells how a decision came about: every policy, every rule in order,
// every criterion with what it wanted and what it saw. It is made by a walk of
// its own over the tests that Evaluate uses; the decision itself writes no
// trace and pays nothing for it. Every text in it is bounded.
type Trace struct {
	Outcome Outcome `json:"outcome"`
	// Reasons are those that the outcome rests on, sorted.
	Reasons  []string      `json:"reasons"`
	Allow    bool          `json:"allow"`
	Deny     bool          `json:"deny"`
	Policies []PolicyTrace `json:"policies"`
	// Changes are the smallest sets of changes that would let the request in,
	// as alternatives; empty for an Allow, and where none is small enough to
	// be worth telling.
	Changes [][]Change `json:"changes,omitempty"`
	Error   string     `json:"error,omitempty"`

	// Result is what Evaluate gives for the same input.
	Result Result `json:"-"`
}

// PolicyTrace is one policy of the pool.
type PolicyTrace struct {
	ID        string `json:"id,omitempty"`
	Name      string `json:"name,omitempty"` // file or document
	Namespace string `json:"namespace,omitempty"`
	Enforced  bool   `json:"enforced,omitempty"`
	// Script marks a policy that is not of rules and criteria: it gives
	// answers and no steps.
	Script bool        `json:"script,omitempty"`
	Allow  AnswerTrace `json:"allow"`
	Deny   AnswerTrace `json:"deny"`
	Rules  []RuleTrace `json:"rules,omitempty"`
	Error  string      `json:"error,omitempty"`
}

// AnswerTrace is what one policy says for one action.
type AnswerTrace struct {
	Value   bool     `json:"value"`
	Reasons []string `json:"reasons"`
}

// RuleTrace is one operator of one action.
type RuleTrace struct {
	Action   string `json:"action"`
	Operator string `json:"operator"`
	Value    bool   `json:"value"`
	// Decided: the outcome rests on a criterion of this rule.
	Decided  bool             `json:"decided,omitempty"`
	Criteria []CriterionTrace `json:"criteria"`
	// Omitted counts criteria that are left out of a very long rule.
	Omitted int `json:"omitted,omitempty"`
}

// CriterionTrace is one criterion of a rule.
type CriterionTrace struct {
	// Criterion is the word with its sub-path: "claim/team".
	Criterion string `json:"criterion"`
	Path      string `json:"path"`
	Line      int    `json:"line,omitempty"`
	Column    int    `json:"column,omitempty"`
	// Wanted is the matcher in words. Needs are the plain values among it, any
	// of which would do; empty for matchers that are not of that kind.
	Wanted string   `json:"wanted,omitempty"`
	Needs  []string `json:"needs,omitempty"`
	// Seen is what was looked at; empty: nothing was there.
	Seen    []string `json:"seen"`
	Value   bool     `json:"value"`
	Reasons []string `json:"reasons"`
	// Decided: the outcome rests on this criterion.
	Decided bool `json:"decided,omitempty"`

	// Origin says where Seen is found. Source, ModifiedAt and Age tell it to
	// people; whoever knows the records fills them in.
	Origin     Origin    `json:"-"`
	Source     string    `json:"source,omitempty"`
	ModifiedAt time.Time `json:"modified_at,omitzero"`
	Age        string    `json:"age,omitempty"` // for example "3 days"
}

// Deciding lists the criteria that the outcome rests on, in order.
func (t *Trace) Deciding() (list []*CriterionTrace) {
	t.each(func(_ *RuleTrace, c *CriterionTrace) {
		if c.Decided {
			list = append(list, c)
		}
	})
	return list
}

// Each visits every criterion in order.
func (t *Trace) Each(visit func(*CriterionTrace)) {
	t.each(func(_ *RuleTrace, c *CriterionTrace) { visit(c) })
}

func (t *Trace) each(visit func(*RuleTrace, *CriterionTrace)) {
	for i := range t.Policies {
		for j := range t.Policies[i].Rules {
			r := &t.Policies[i].Rules[j]
			for k := range r.Criteria {
				visit(r, &r.Criteria[k])
			}
		}
	}
}

// Explain judges in as Evaluate and Choose do and tells every step. It changes
// nothing, and is many times slower than Evaluate.
func (s *Set) Explain(in *Input) Trace {
	t := Trace{Policies: []PolicyTrace{}}
	if s == nil {
		t.conclude(in, nil)
		return t
	}
	w := s.walk(in)
	t.Result = w.result()
	t.conclude(in, w)
	for i, m := range s.members {
		one := w.policies[i]
		p := PolicyTrace{
			Name: m.name, Script: m.custom != nil,
			Allow: AnswerTrace{one.allow.Value, one.allow.Reasons.Names()},
			Deny:  AnswerTrace{one.deny.Value, one.deny.Reasons.Names()},
		}
		if one.err != nil {
			p.Error = one.err.Error()
		}
		if a := s.attachedAs(m); a != nil {
			p.ID, p.Namespace, p.Enforced = a.ID, a.Namespace, a.Enforced
		}
		for j := range one.rules {
			p.Rules = append(p.Rules, one.rules[j].trace(in))
		}
		t.Policies = append(t.Policies, p)
	}
	if t.Outcome != Allow && t.Outcome != Error {
		t.Changes = w.changes(in)
	}
	return t
}

func (s *Set) attachedAs(m *Policy) *Attached {
	for i := range s.attached {
		if s.attached[i].Policy == m {
			return &s.attached[i]
		}
	}
	return nil
}

// conclude chooses the outcome and marks what it rests on.
func (t *Trace) conclude(in *Input, w *walk) {
	choice := chooseFor(in, &t.Result)
	t.Outcome, t.Reasons = choice.Outcome, choice.Reasons.Names()
	t.Allow, t.Deny = t.Result.Allow.Value, t.Result.Deny.Value
	if t.Result.Err != nil {
		t.Error = t.Result.Err.Error()
	}
	if w == nil || t.Outcome == Error {
		return
	}
	action, blocking := t.restsOn(in)
	for i := range w.policies {
		for j := range w.policies[i].rules {
			r := &w.policies[i].rules[j]
			// Where a rule of the action is true, the false ones say nothing.
			if action != "" && r.rule.Action != action || r.verdict.ok != t.value(r.rule.Action) {
				continue
			}
			r.decided = make([]bool, len(r.verdicts))
			for k, v := range r.verdicts {
				r.decided[k] = r.counts[k] && (blocking == 0 || v.why&blocking != 0)
			}
		}
	}
}

func (t *Trace) value(action string) bool {
	if action == "deny" {
		return t.Result.Deny.Value
	}
	return t.Result.Allow.Value
}

// restsOn gives the action whose rules decided ("": either), and the reasons
// that alone did so (0: all).
func (t *Trace) restsOn(in *Input) (action string, blocking reasonSet) {
	either := t.Result.Allow.Reasons.Union(t.Result.Deny.Reasons)
	switch {
	case in.SSH == nil && t.Result.Deny.Reasons.HasAny(certificateReasons):
		return "deny", certificateReasons.fixed
	case in.SSH != nil && either.Has(ReasonSSHPublicKeyUnauthorized):
		return "", ReasonSSHPublicKeyUnauthorized.set()
	case t.Outcome == Login:
		return "", ReasonUserUnauthenticated.set()
	case t.Outcome == Enroll:
		return "", ReasonDeviceUnauthenticated.set()
	case t.Result.Deny.Value:
		return "deny", 0
	}
	return "allow", 0
}

// chooseFor is Choose for the kind of request in is. The outcome does not
// depend on the client; the status does.
func chooseFor(in *Input, res *Result) Choice {
	if in.SSH != nil {
		return ChooseSSH(res, false)
	}
	return Choose(res, Client{})
}

// walk is one evaluation with every step kept.
type walk struct {
	policies []walkedPolicy
}

type walkedPolicy struct {
	allow, deny Answer
	err         error
	custom      bool
	rules       []walkedRule
}

type walkedRule struct {
	rule     *Rule
	verdicts []verdict
	// counts tells which verdicts the rule's own rests on (§4).
	counts  []bool
	verdict verdict
	// decided tells on which of them the outcome rests; nil: none.
	decided []bool
}

func (s *Set) walk(in *Input) *walk {
	w := &walk{policies: make([]walkedPolicy, len(s.members))}
	for i, m := range s.members {
		p := &w.policies[i]
		if m.custom != nil {
			var res Result
			m.Evaluate(in, &res)
			p.custom, p.allow, p.deny, p.err = true, res.Allow, res.Deny, res.Err
			continue
		}
		rules := m.Rules()
		p.rules = make([]walkedRule, len(rules))
		for j := range rules {
			r := walkedRule{rule: &rules[j]}
			r.verdicts = make([]verdict, len(r.rule.Criteria))
			for k := range r.rule.Criteria {
				r.verdicts[k] = r.rule.Criteria[k].test(in)
			}
			p.rules[j] = r
		}
		p.combine()
	}
	return w
}

// combine derives a policy's answers from the verdicts of its criteria.
func (p *walkedPolicy) combine() {
	if p.custom {
		return
	}
	for i := range p.rules {
		p.rules[i].combine()
	}
	p.allow, p.deny = joined(p.rules, "allow").answer(), joined(p.rules, "deny").answer()
}

// combine applies the operator, as the tables of §3 and §4 have it.
func (r *walkedRule) combine() {
	if r.counts == nil {
		r.counts = make([]bool, len(r.verdicts))
	}
	var holds, fails int
	positive := func(v verdict) bool { return v.ok == (r.rule.Operator == "and" || r.rule.Operator == "or") }
	for _, v := range r.verdicts {
		if positive(v) {
			holds++
		} else {
			fails++
		}
	}
	all := r.rule.Operator == "and" || r.rule.Operator == "not"
	ok := holds > 0 && (!all || fails == 0)
	r.verdict = verdict{ok: ok}
	for i, v := range r.verdicts {
		// All that agree with the rule's value count: a failed `and` is told
		// by its failures, a successful `or` by its successes.
		if r.counts[i] = positive(v) == ok; !r.counts[i] {
			continue
		}
		r.verdict.why |= v.why
		r.verdict.device = lastDevice(r.verdict.device, v.device)
	}
}

// joined merges the rules of one action by `or`: the true ones if there are
// any, else all.
func joined(rules []walkedRule, action string) (out verdict) {
	out.ok = slices.ContainsFunc(rules, func(r walkedRule) bool { return r.rule.Action == action && r.verdict.ok })
	for i := range rules {
		if v := rules[i].verdict; rules[i].rule.Action == action && v.ok == out.ok {
			out.why |= v.why
			out.device = lastDevice(out.device, v.device)
		}
	}
	return out
}

// result pools the policies.
func (w *walk) result() (res Result) {
	for i := range w.policies {
		p := &w.policies[i]
		if p.err != nil {
			return Result{Err: p.err}
		}
		res.Allow.or(&p.allow)
		res.Deny.or(&p.deny)
	}
	return res
}

// maxShownCriteria bounds the criteria told of one rule.
const maxShownCriteria = 200

func (r *walkedRule) trace(in *Input) RuleTrace {
	t := RuleTrace{Action: r.rule.Action, Operator: r.rule.Operator, Value: r.verdict.ok,
		Decided: slices.Contains(r.decided, true)}
	// Of a long rule, those that make it what it is go first.
	counting := 0
	for _, counts := range r.counts {
		if counts {
			counting++
		}
	}
	others := max(0, maxShownCriteria-counting)
	for i, v := range r.verdicts {
		room := len(t.Criteria) < maxShownCriteria
		if !r.counts[i] {
			room = others > 0
			others--
		}
		if !room {
			t.Omitted++
			continue
		}
		u := &r.rule.Criteria[i]
		look := u.look(in)
		t.Criteria = append(t.Criteria, CriterionTrace{
			Criterion: u.Word(), Path: u.Path, Line: u.Line, Column: u.Column,
			Wanted: wantedText(u), Needs: neededValues(u),
			Seen: look.values, Origin: look.origin,
			Value: v.ok, Reasons: Reasons{fixed: v.why}.Names(),
			Decided: r.decided != nil && r.decided[i],
		})
	}
	return t
}

// Word is the criterion as written, with its sub-path: "claim/team".
func (u *Use) Word() string {
	if u.Criterion.SubPath && u.SubPath != "" {
		return u.Criterion.Name + "/" + u.SubPath
	}
	return u.Criterion.Name
}

// field gives the value of a key of an object; nil without.
func field(n *yaml.Node, key string) *yaml.Node {
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
