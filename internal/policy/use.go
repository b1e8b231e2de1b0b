package policy

import "go.yaml.in/yaml/v3"

// Holds reports whether the criterion alone is true of in, whatever operator
// and action it stands under. It is for hints, such as the routes portal's;
// only Evaluate decides.
func (u *Use) Holds(in *Input) bool {
	return u.test != nil && u.test(in).ok
}

// Judge gives the value of the criterion alone and its reasons, for tools that
// ask what a policy would do. Only Evaluate decides.
func (u *Use) Judge(in *Input) (ok bool, why Reasons) {
	if u.test == nil {
		return false, Reasons{}
	}
	v := u.test(in)
	return v.ok, Reasons{fixed: v.why}
}

// Value is the value of the criterion as written, with aliases resolved; nil
// for a rule that no text holds. The caller must not change it.
func (u *Use) Value() *yaml.Node { return u.value }

// Scripted tells that a foreign evaluator answers for the policy, so that it
// has no rules to look at.
func (p *Policy) Scripted() bool { return p != nil && p.custom != nil }
