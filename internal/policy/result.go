package policy

// Result is what a policy, or all policies of a route pooled, say about one
// request. The zero Result allows nothing.
type Result struct {
	Allow, Deny Answer
	// Err is set if the policy could not be evaluated (custom scripts only);
	// the outcome is then an error, never an allow.
	Err error
}

// Reset makes r the zero Result, for reuse.
func (r *Result) Reset() { *r = Result{} }

// Allowed tells whether an allow rule is true and no deny rule is.
func (r *Result) Allowed() bool { return r.Err == nil && r.Allow.Value && !r.Deny.Value }

// DeviceType is the type of device to enrol: from the allow data, else from
// the deny data, else "any" (policy-language.md §8).
func (r *Result) DeviceType() string {
	switch {
	case r.Allow.HasDeviceType:
		return r.Allow.DeviceType
	case r.Deny.HasDeviceType:
		return r.Deny.DeviceType
	}
	return "any"
}

// Answer is the merged result of all rules of one action.
type Answer struct {
	Value   bool
	Reasons Reasons
	// DeviceType is the only data a criterion adds; HasDeviceType tells an
	// empty one from none.
	DeviceType    string
	HasDeviceType bool
}

// or merges the answer of a later policy into a, as §4 merges by `or`: the
// true ones hide the false ones, and a later device type replaces an earlier.
// The zero Answer is neutral.
func (a *Answer) or(next *Answer) {
	switch {
	case a.Value && !next.Value:
		return
	case next.Value && !a.Value:
		*a = *next
		return
	}
	a.Reasons = a.Reasons.Union(next.Reasons)
	if next.HasDeviceType {
		a.DeviceType, a.HasDeviceType = next.DeviceType, true
	}
}

// verdict is what one criterion, operator or action gives inside a policy.
type verdict struct {
	ok  bool
	why reasonSet
	// device is the device_type datum; nil: none.
	device *string
}

// or merges v into a as by `or` within one policy, where of several device
// types the alphabetically last stays. The zero verdict is neutral.
func (a *verdict) or(v verdict) {
	switch {
	case a.ok && !v.ok:
	case v.ok && !a.ok:
		*a = v
	default:
		a.why |= v.why
		a.device = lastDevice(a.device, v.device)
	}
}

func lastDevice(a, b *string) *string {
	if a == nil || b != nil && *b > *a {
		return b
	}
	return a
}

func (v verdict) answer() Answer {
	a := Answer{Value: v.ok, Reasons: Reasons{fixed: v.why}}
	if v.device != nil {
		a.DeviceType, a.HasDeviceType = *v.device, true
	}
	return a
}
