package policy

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// The reference evaluator says the language again in the slowest and plainest
// way: trees of maps, sets of strings, no compilation. Random policies and
// inputs must get the same answers from both.

type slowResult struct {
	value   bool
	reasons map[string]bool
	device  *string
}

func slowUnion(list []slowResult, keep func(slowResult) bool) slowResult {
	out := slowResult{reasons: map[string]bool{}}
	for _, r := range list {
		if !keep(r) {
			continue
		}
		maps.Copy(out.reasons, r.reasons)
		if r.device != nil && (out.device == nil || *r.device > *out.device) {
			out.device = r.device
		}
	}
	return out
}

func slowAnd(list []slowResult) slowResult {
	for _, r := range list {
		if !r.value {
			return slowUnion(list, func(r slowResult) bool { return !r.value })
		}
	}
	out := slowUnion(list, func(slowResult) bool { return true })
	out.value = true
	return out
}

func slowOr(list []slowResult) slowResult {
	for _, r := range list {
		if r.value {
			out := slowUnion(list, func(r slowResult) bool { return r.value })
			out.value = true
			return out
		}
	}
	return slowUnion(list, func(slowResult) bool { return true })
}

func slowFlip(list []slowResult) []slowResult {
	out := slices.Clone(list)
	for i := range out {
		out[i].value = !out[i].value
	}
	return out
}

func slowEvaluate(rules []any, action string, in *Input) slowResult {
	var merged []slowResult
	for _, rule := range rules {
		body, _ := rule.(map[string]any)[action].(map[string]any)
		for op, criteria := range body {
			var list []slowResult
			for _, c := range criteria.([]any) {
				for name, value := range c.(map[string]any) {
					list = append(list, slowCriterion(name, value, in))
				}
			}
			if len(list) == 0 {
				continue
			}
			switch op {
			case "and":
				merged = append(merged, slowAnd(list))
			case "or":
				merged = append(merged, slowOr(list))
			case "not":
				merged = append(merged, slowAnd(slowFlip(list)))
			case "nor":
				merged = append(merged, slowOr(slowFlip(list)))
			}
		}
	}
	return slowOr(merged)
}

func slowCriterion(name string, value any, in *Input) slowResult {
	is := func(ok bool, yes, no string) slowResult {
		if ok {
			return slowResult{value: true, reasons: map[string]bool{yes: true}}
		}
		return slowResult{reasons: map[string]bool{no: true}}
	}
	name, sub, _ := strings.Cut(name, "/")
	switch name {
	case "authenticated_user", "user", "email", "domain", "claim", "groups", "device":
		if !in.HasSession {
			return is(false, "", "user-unauthenticated")
		}
	}
	switch name {
	case "accept":
		return is(true, "accept", "")
	case "reject":
		return is(false, "", "reject")
	case "authenticated_user":
		return is(in.UserID != "", "user-ok", "user-unauthorized")
	case "user":
		return is(in.UserID != "" && slowString(value, in.UserID), "user-ok", "user-unauthorized")
	case "email":
		return is(slowString(value, in.Email), "email-ok", "email-unauthorized")
	case "domain":
		parts := strings.Split(in.Email, "@")
		return is(len(parts) > 1 && slowString(value, parts[min(1, len(parts)-1)]), "domain-ok", "domain-unauthorized")
	case "claim":
		return is(slowList(value, in.Claims[sub]), "claim-ok", "claim-unauthorized")
	case "groups":
		var list []any
		for _, g := range in.Groups {
			list = append(list, g)
		}
		return is(in.HasDirectory && slowList(value, list), "groups-ok", "groups-unauthorized")
	case "http_method":
		return is(slowString(value, in.Method), "http-method-ok", "http-method-unauthorized")
	case "http_path":
		return is(slowString(value, in.Path), "http-path-ok", "http-path-unauthorized")
	case "source_ip":
		ok := false
		for _, v := range value.([]any) {
			if p, err := netip.ParsePrefix(v.(string)); err == nil {
				ok = ok || p.Contains(in.ClientIP)
			} else if a, err := netip.ParseAddr(v.(string)); err == nil {
				ok = ok || a == in.ClientIP
			}
		}
		return is(ok, "source-ip-ok", "source-ip-unauthorized")
	case "cors_preflight":
		ok := in.Method == "OPTIONS" && in.Header("Origin") != "" && in.Header("Access-Control-Request-Method") != ""
		return is(ok, "cors-request", "non-cors-request")
	case "invalid_client_certificate":
		switch in.CertificateState {
		case CertificateOK:
			return is(false, "", "valid-client-certificate")
		case CertificateMissing:
			return is(true, "client-certificate-required", "")
		}
		return is(true, "invalid-client-certificate", "")
	case "device":
		typ := value.(map[string]any)["type"].(string)
		r := is(false, "", "device-unauthenticated")
		for _, d := range in.Devices {
			if d.Type == typ {
				if !d.Revoked {
					r = is(true, "device-ok", "")
				}
				break
			}
		}
		r.device = &typ
		return r
	}
	panic("the reference does not know " + name)
}

func slowString(m any, v string) bool {
	ops, ok := m.(map[string]any)
	if !ok {
		return slowEqual(m, v)
	}
	for op, want := range ops {
		in := false
		if list, isList := want.([]any); isList {
			for _, item := range list {
				in = in || slowEqual(item, v)
			}
		}
		text, _ := want.(string)
		holds := map[string]bool{
			"is": slowEqual(want, v), "not": !slowEqual(want, v), "in": in, "not_in": !in,
			"contains": strings.Contains(v, text), "starts_with": strings.HasPrefix(v, text), "ends_with": strings.HasSuffix(v, text),
		}[op]
		if !holds {
			return false
		}
	}
	return true
}

func slowList(m any, list []any) bool {
	ops, ok := m.(map[string]any)
	if !ok {
		ops = map[string]any{"has": m}
	}
	for op, want := range ops {
		has := false
		for _, item := range list {
			has = has || slowEqual(want, item)
		}
		if !(map[string]bool{"has": has, "exclude": !has, "is": has && len(list) == 1}[op]) {
			return false
		}
	}
	return true
}

// slowEqual compares by the JSON text of values, where 7 and 7.0 are one.
func slowEqual(a, b any) bool {
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return string(x) == string(y)
}

// generator makes random policies and inputs out of few words, so that they
// meet often.
type generator struct{ *rand.Rand }

func pick[T any](g generator, list ...T) T { return list[g.IntN(len(list))] }

func (g generator) policy() []any {
	rules := []any{}
	for range g.IntN(4) {
		rule := map[string]any{}
		for _, action := range []string{"allow", "deny"} {
			if g.IntN(3) == 0 {
				continue
			}
			body := map[string]any{}
			for _, op := range operatorNames {
				if g.IntN(3) == 0 {
					list := []any{}
					for range g.IntN(4) {
						list = append(list, g.criterion())
					}
					body[op] = list
				}
			}
			rule[action] = body
		}
		rules = append(rules, rule)
	}
	return rules
}

var words = []string{"", "a", "b", "ab", "a@x", "b@x@y", "GET", "OPTIONS", "/a", "/a/b", "x"}

func (g generator) criterion() map[string]any {
	name := pick(g, "accept", "reject", "authenticated_user", "user", "email", "domain", "claim/k", "claim/l", "groups",
		"http_method", "http_path", "source_ip", "cors_preflight", "invalid_client_certificate", "device")
	var value any
	switch name {
	case "user", "email", "domain", "http_method", "http_path":
		value = g.stringMatcher()
	case "claim/k", "claim/l", "groups":
		value = g.value()
		if g.IntN(2) == 0 {
			ops := map[string]any{}
			for range 1 + g.IntN(2) {
				ops[pick(g, listOperators...)] = g.value()
			}
			value = ops
		}
	case "source_ip":
		list := []any{}
		for range g.IntN(3) {
			list = append(list, pick(g, "10.0.0.1", "10.0.0.0/8", "2001:db8::/32", "::1"))
		}
		value = list
	case "device":
		value = map[string]any{"type": pick(g, "any", "key", "alpha")}
	default:
		value = pick[any](g, true, false, nil, "x")
	}
	return map[string]any{name: value}
}

func (g generator) value() any {
	return pick[any](g, "a", "b", "ab", 7.0, 7.5, true, false, nil, []any{"a"}, "7")
}

func (g generator) stringMatcher() any {
	if g.IntN(3) == 0 {
		return pick[any](g, "a", "a@x", "x", "GET", "/a", 7.0, []any{"a"})
	}
	ops := map[string]any{}
	for range g.IntN(3) {
		op := pick(g, stringOperators...)
		switch op {
		case "in", "not_in":
			list := []any{}
			for range g.IntN(4) {
				list = append(list, pick[any](g, "a", "x", "a@x", "GET", "/a", 1.0))
			}
			ops[op] = list
		default:
			ops[op] = pick(g, words...)
		}
	}
	return ops
}

func (g generator) input() *Input {
	in := &Input{Method: pick(g, "GET", "OPTIONS", "PUT"), Path: pick(g, "/a", "/a/b", ""), CertificateState: CertificateState(g.IntN(3))}
	in.ClientIP = pick(g, netip.Addr{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1"))
	origin := pick(g, "", "o")
	in.Header = func(string) string { return origin }
	in.HasSession = g.IntN(3) > 0
	if !in.HasSession {
		return in
	}
	in.UserID, in.Email = pick(g, "", "a", "b"), pick(g, words...)
	in.Claims = map[string][]any{}
	for _, name := range []string{"k", "l"} {
		if g.IntN(2) == 0 {
			list := []any{}
			for range g.IntN(3) {
				list = append(list, g.value())
			}
			in.Claims[name] = list
		}
	}
	in.HasDirectory = g.IntN(2) == 0
	if in.HasDirectory {
		for range g.IntN(3) {
			in.Groups = append(in.Groups, pick(g, "a", "b", "ab", "7"))
		}
	}
	for range g.IntN(3) {
		in.Devices = append(in.Devices, Device{ID: "d", Type: pick(g, "any", "key"), Enrolled: g.IntN(2) == 0, Revoked: g.IntN(4) == 0})
	}
	return in
}

func checkAnswer(t *testing.T, what string, got Answer, want slowResult) {
	t.Helper()
	names := slices.Sorted(maps.Keys(want.reasons))
	if got.Value != want.value || !slices.Equal(got.Reasons.Names(), names) {
		t.Fatalf("%s: got %v %v, the reference says %v %v", what, got.Value, got.Reasons.Names(), want.value, names)
	}
	if got.HasDeviceType != (want.device != nil) || want.device != nil && got.DeviceType != *want.device {
		t.Fatalf("%s: device type %q (%v), the reference says %v", what, got.DeviceType, got.HasDeviceType, want.device)
	}
}

func TestAgainstReference(t *testing.T) {
	for seed := range uint64(3000) {
		g := generator{rand.New(rand.NewPCG(seed, 7))}
		rules := g.policy()
		text, err := json.Marshal(rules)
		if err != nil {
			t.Fatal(err)
		}
		// The same text is JSON and YAML, and must be one policy.
		name := pick(g, "p.json", "p.yaml")
		p, _, err := Parse(name, text, Options{})
		if err != nil {
			t.Fatalf("seed %d: %v\n%s", seed, err, text)
		}
		for range 10 {
			in := g.input()
			var res Result
			p.Evaluate(in, &res)
			what := fmt.Sprintf("seed %d\n%s\n%+v\n", seed, text, in)
			checkAnswer(t, what+"allow", res.Allow, slowEvaluate(rules, "allow", in))
			checkAnswer(t, what+"deny", res.Deny, slowEvaluate(rules, "deny", in))
			var pooled Result
			NewSet(Pool{Own: p}).Evaluate(in, &pooled)
			checkAnswer(t, what+"pooled", pooled.Allow, slowEvaluate(rules, "allow", in))
		}
	}
}

// TestPoolAgainstReference: splitting a policy into several attached ones
// changes nothing but which device type stays.
func TestPoolAgainstReference(t *testing.T) {
	for seed := range uint64(1000) {
		g := generator{rand.New(rand.NewPCG(seed, 11))}
		rules := g.policy()
		var attached []Attached
		for _, rule := range rules {
			text, _ := json.Marshal(rule)
			p, _, err := Parse("p.json", text, Options{})
			if err != nil {
				t.Fatal(err)
			}
			attached = append(attached, Attached{Policy: p})
		}
		set := NewSet(Pool{Attached: attached})
		for range 5 {
			in := g.input()
			var res Result
			set.Evaluate(in, &res)
			for action, got := range map[string]Answer{"allow": res.Allow, "deny": res.Deny} {
				want := slowEvaluate(rules, action, in)
				if !slices.Equal(got.Reasons.Names(), slices.Sorted(maps.Keys(want.reasons))) || got.Value != want.value {
					t.Fatalf("seed %d %s: got %v %v, want %v %v", seed, action, got.Value, got.Reasons.Names(), want.value, want.reasons)
				}
			}
		}
	}
}

// TestEmptyAllowsNobody: no input at all makes a policy without criteria allow.
func TestEmptyAllowsNobody(t *testing.T) {
	var policies []*Policy
	for _, text := range []string{"{}", "[]", "[{}]", "allow: {}", "allow: {and: [], or: [], not: [], nor: []}\ndeny: {not: []}", "deny: {or: [{reject: 1}]}"} {
		p, _, err := Parse("p.yaml", []byte(text), Options{})
		if err != nil {
			t.Fatal(err)
		}
		policies = append(policies, p)
	}
	policies = append(policies, nil, &Policy{})
	g := generator{rand.New(rand.NewPCG(1, 2))}
	for range 2000 {
		in := g.input()
		for i, p := range policies {
			for _, set := range []*Set{NewSet(Pool{Own: p}), NewSet(Pool{}), nil, {}} {
				var res Result
				set.Evaluate(in, &res)
				c := Choose(&res, Client{Follows: true})
				if res.Allowed() || c.Outcome != Deny || c.Status != 403 {
					t.Fatalf("policy %d allows or redirects: %+v", i, c)
				}
			}
		}
	}
}
