package rego

import (
	"net/netip"
	"testing"

	"postern/internal/policy"
)

// The same policy in both languages: a domain and a group, and a deny list.
const typicalPPL = `
allow:
  and:
    - domain: harbor.test
    - groups: {has: grp-eng}
deny:
  or:
    - email: {in: [mallory@harbor.test, trent@harbor.test]}
`

const typicalRego = `
import rego.v1

user := get_databroker_record("type.googleapis.com/user.User", input.session.user_id)
directory := get_databroker_record("pomerium.io/DirectoryUser", input.session.user_id)

email := directory.email if directory.email
else := user.email

default allow := [false, ["user-unauthorized"]]
allow := [true, ["domain-ok", "groups-ok"]] if {
	split(email, "@")[1] == "harbor.test"
	"grp-eng" in directory.group_ids
}
deny := [true, ["email-ok"]] if email in {"mallory@harbor.test", "trent@harbor.test"}
`

func typicalInput() *policy.Input {
	return &policy.Input{
		Method: "GET", Host: "app.harbor.test", RawPath: "/reports/today", Path: "/reports/today", ClientIP: netip.MustParseAddr("192.0.2.10"),
		Header:     func(string) string { return "" },
		HasSession: true, UserID: "u1", Email: "peggy@harbor.test", HasDirectory: true, Groups: []string{"grp-ops", "grp-all", "grp-eng"},
		Claims: map[string][]any{"team": {"core", 7.0}},
		RecordByID: func(typ, _ string) (map[string]any, error) {
			if typ == "pomerium.io/DirectoryUser" {
				return map[string]any{"id": "u1", "group_ids": []any{"grp-ops", "grp-all", "grp-eng"}, "email": "peggy@harbor.test"}, nil
			}
			return map[string]any{"id": "u1", "email": "peggy@harbor.test"}, nil
		},
	}
}

// BenchmarkRatio judges the same request by the same policy in both languages
// and reports how many times longer a script takes.
func BenchmarkRatio(b *testing.B) {
	own, _, err := policy.Parse("policy.yaml", []byte(typicalPPL), policy.Options{})
	if err != nil {
		b.Fatal(err)
	}
	script := compile(b, patient(Options{}), typicalRego)
	in := typicalInput()
	var took [2]float64
	for i, p := range []*policy.Policy{own, script} {
		b.Run([]string{"ppl", "rego"}[i], func(b *testing.B) {
			var res policy.Result
			b.ReportAllocs()
			for b.Loop() {
				p.Evaluate(in, &res)
				if !res.Allowed() {
					b.Fatalf("%+v", res)
				}
			}
			took[i] = float64(b.Elapsed().Nanoseconds()) / float64(b.N)
			if i == 1 && took[0] > 0 {
				b.ReportMetric(took[1]/took[0], "times-ppl")
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	s := New(Options{})
	for b.Loop() {
		compile(b, s, typicalRego)
	}
}
