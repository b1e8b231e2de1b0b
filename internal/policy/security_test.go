package policy

import (
	"net/netip"
	"testing"
)

// Tests named after rows of the list of known attacks on proxies of this kind.

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, _, err := Parse("policy.yaml", []byte(text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func outcomeOf(p *Policy, in *Input) Outcome {
	var res Result
	NewSet(Pool{Own: p}).Evaluate(in, &res)
	return Choose(&res, Client{Follows: true}).Outcome
}

// Row "a@evil@corp.com passes domain rule": the last piece is never the domain.
func TestMalformedEmailIsOfNoTrustedDomain(t *testing.T) {
	p := mustParse(t, "allow: {and: [{domain: corp.com}]}")
	for _, email := range []string{
		"a@evil.com@corp.com", "a@evil@corp.com", "a@@corp.com", "@@corp.com", "corp.com", "a@corp.com.", "a@corp.com ",
		"a@ corp.com", "a@CORP.com", "a@corp.com\x00", "a@corp.com\n", "\"a@b\"@corp.com", "a@sub.corp.com", "a@xcorp.com", "", "@",
		"a%40corp.com", "a@corp。com",
	} {
		if got := outcomeOf(p, &Input{HasSession: true, UserID: "u", Email: email}); got != Deny {
			t.Errorf("e-mail %q: %v", email, got)
		}
	}
	if got := outcomeOf(p, &Input{HasSession: true, UserID: "u", Email: "a@corp.com"}); got != Allow {
		t.Errorf("a well formed address: %v", got)
	}
}

// Row "skip rule matched query string": `/x?/public` still needs a sign-in,
// as does every other spelling that holds the public path without being it.
func TestPublicPathInQueryStillNeedsLogin(t *testing.T) {
	p := mustParse(t, `
- allow: {and: [{http_path: {starts_with: /public}}]}
- allow: {and: [{authenticated_user: true}]}`)
	for _, target := range []string{
		"/x?/public", "/x?a=/public", "/x%3F/public", "/x/public", "//public", "/./public", "/x/../public", "/%2e/public",
		"/x?", "?/public", "", "/public%", "/%2570ublic", "/PUBLIC", "/x#/public", "/x;/public",
	} {
		in := &Input{Method: "GET", RawPath: target, Path: DecodePath(target), RawQuery: "/public"}
		if got := outcomeOf(p, in); got != Login {
			t.Errorf("%q: %v", target, got)
		}
	}
	for _, target := range []string{"/public", "/public/x?y", "/%70ublic", "/public%2Fx"} {
		if got := outcomeOf(p, &Input{RawPath: target, Path: DecodePath(target)}); got != Allow {
			t.Errorf("%q: %v", target, got)
		}
	}
}

// Row "rule on data that is not there": whatever a rule asks of absent data,
// negative operators included, it does not let a stranger in.
func TestAbsentDataFailsClosed(t *testing.T) {
	for _, criterion := range []string{
		"{user: {}}", "{user: {not: x}}", "{user: {not_in: []}}", "{user: {starts_with: ''}}", "{user: ''}",
		"{email: {}}", "{email: {not: x}}", "{email: {not_in: [x]}}", "{email: {contains: ''}}", "{email: ''}",
		"{domain: {}}", "{domain: {not: x}}", "{domain: ''}",
		"{claim/a: {}}", "{claim/a: {exclude: x}}", "{claim/a: null}", "{claim: {exclude: x}}",
		"{groups: {}}", "{groups: {exclude: x}}", "{authenticated_user: 1}",
		"{device: {}}", "{device: {approved: false}}", "{device: {type: any}}",
		"{ssh_username_matches_email: 1}", "{ssh_username_matches_claim: a}",
		"{client_certificate: {}}", "{client_certificate: {san_dns: {not_in: [x]}}}", "{client_certificate: {san_email: {not: x}}}",
		"{source_ip: [0.0.0.0/0, '::/0']}",
		"{mcp_tool: {}}", "{mcp_tool: {not: x}}", "{mcp_tool: ''}",
		"{ssh_publickey: []}", "{ssh_ca: []}", "{cors_preflight: 1}", "{pomerium_routes: 1}", "{reject: 1}",
		"{record: {type: t, exists: false}}", "{record: {type: t, field: f, not: x}}", "{record: {type: t, field: f, not_in: []}}",
	} {
		p := mustParse(t, "allow: {and: ["+criterion+"]}")
		for name, in := range map[string]*Input{"nothing": {}, "an address with a zone": {ClientIP: netip.MustParseAddr("fe80::1%x")}} {
			if got := outcomeOf(p, in); got == Allow {
				t.Errorf("%s with %s: allowed", criterion, name)
			}
		}
	}
	// Without a directory record no statement about groups holds, even signed in.
	for _, criterion := range []string{"{groups: {}}", "{groups: {exclude: x}}", "{groups: x}"} {
		p := mustParse(t, "allow: {and: ["+criterion+"]}")
		if got := outcomeOf(p, &Input{HasSession: true, UserID: "u"}); got != Deny {
			t.Errorf("%s without a directory record: %v", criterion, got)
		}
	}
}

// A policy that could not be evaluated never allows, whatever it managed to say.
func TestFailedEvaluationNeverAllows(t *testing.T) {
	broken := Custom("x.rego", func(_ *Input, res *Result) {
		res.Allow.Value = true
		res.Err = errTest
	})
	open := mustParse(t, "allow: {or: [{accept: 1}]}")
	for _, pool := range []Pool{{Own: broken}, {Own: open, Attached: []Attached{{Policy: broken}}}, {Own: broken, Attached: []Attached{{Policy: open}}}} {
		var res Result
		NewSet(pool).Evaluate(&Input{}, &res)
		if c := Choose(&res, Client{}); res.Allowed() || c.Outcome != Error || c.Status != 500 {
			t.Errorf("got %+v", c)
		}
		if c := ChooseSSH(&res, true); c.Outcome != Error {
			t.Errorf("on SSH: %+v", c)
		}
	}
}

type testError string

func (e testError) Error() string { return string(e) }

const errTest = testError("broken script")
