package proxy

import (
	"crypto/x509"
	"strings"
	"testing"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/session"
)

func TestTemplates(t *testing.T) {
	v := &fixedView{header: map[string]string{"X-Name": "value", `odd "name`: "odd", "X.Dot": "dot"}}
	v.peer.Certificates = []*x509.Certificate{{
		Raw: []byte("leaf"), DNSNames: []string{"a.test", "b,c", "d.test"}, EmailAddresses: []string{"a@test"},
	}}
	v.peer.CertificateState = exchange.CertificateValid
	d := &authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{Session: &session.Session{
		OAuthToken: &session.OAuthToken{AccessToken: "AT"}, IDToken: &session.IDToken{Raw: "IT"},
	}}}
	for in, want := range map[string]string{
		"":                                          "",
		"plain":                                     "plain",
		"$$":                                        "$",
		"a$$b$$$$c":                                 "a$b$$c",
		"${pomerium.access_token}":                  "AT",
		"Bearer $pomerium.access_token":             "Bearer AT",
		"$pomerium.access_token/x":                  "AT/x",
		"$pomerium.access_token.":                   "AT.",
		"${ pomerium.id_token }":                    "IT",
		"${\tpomerium.id_token\t}!":                 "IT!",
		"$pomerium.id_token$pomerium.id_token":      "ITIT",
		`${pomerium.request.headers["X-Name"]}`:     "value",
		`$pomerium.request.headers["X-Name"]`:       "value",
		`${pomerium.request.headers.X-Name}`:        "value",
		`${pomerium.request.headers["X.Dot"]}`:      "dot",
		`${pomerium.request.headers["odd \"name"]}`: "odd",
		`${pomerium.request.headers["None"]}`:       "",
		"${pomerium.client_cert_san_dns}":           "a.test,d.test",
		"${pomerium.client_cert_san_email}":         "a@test",
		"${pomerium.client_cert_fingerprint}":       "9f91161f43433e49a6de6db680d79f60159f2e4ac9172621a12846428158440b",
		"a${pomerium.unknown}b":                     "ab",
		"a$unknown b":                               "a b",
		"cost: $5":                                  "cost: ",
		"$":                                         "$",
		"a$":                                        "a$",
		"${":                                        "${",
		"${}":                                       "${}",
		"${pomerium.jwt":                            "${pomerium.jwt",
		"${pomerium access_token}":                  "${pomerium access_token}",
		"${pomerium.}":                              "${pomerium.}",
		`${pomerium.request.headers[X]}`:            `${pomerium.request.headers[X]}`,
		"$-x":                                       "$-x",
		"$pomerium.access_token-x":                  "",
		"$ pomerium":                                "$ pomerium",
	} {
		got, err := ParseTemplate(in).Expand(v, d)
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
	v.peer.CertificateState = exchange.CertificateInvalid
	if got, _ := ParseTemplate("${pomerium.client_cert_san_dns}").Expand(v, d); got != "" {
		t.Errorf("names of an unverified certificate: %q", got)
	}
	if _, err := ParseTemplate("${pomerium.jwt}").Expand(v, d); err == nil {
		t.Error("an assertion that cannot be signed rendered")
	}
	d.Caller = &session.Caller{ServiceAccount: &session.ServiceAccount{}}
	if got, _ := ParseTemplate("a${pomerium.access_token}${pomerium.id_token}").Expand(v, d); got != "a" {
		t.Errorf("tokens of a service account: %q", got)
	}
	d.Caller = &session.Caller{Session: &session.Session{OAuthToken: &session.OAuthToken{AccessToken: "a\r\nEvil: x"}}}
	if got, _ := ParseTemplate("${pomerium.access_token}").Expand(v, d); got != "" {
		t.Errorf("a token broke out: %q", got)
	}
}

func TestTemplateAllocations(t *testing.T) {
	v := &fixedView{header: map[string]string{"X-Name": "value"}}
	d := &authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{Session: &session.Session{OAuthToken: &session.OAuthToken{AccessToken: "AT"}}}}
	for in, most := range map[string]float64{
		"literal":                          0,
		"${pomerium.access_token}":         0,
		`$pomerium.request.headers.X-Name`: 0,
		"Bearer ${pomerium.access_token}":  2, // growing the one string
	} {
		tmpl := ParseTemplate(in)
		if n := testing.AllocsPerRun(100, func() { tmpl.Expand(v, d) }); n > most {
			t.Errorf("%q: %v allocations, want at most %v", in, n, most)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"$$", "${pomerium.jwt}", `${pomerium.request.headers["X"]}`, "$a.b", "${", "$pomerium.request.headers[\"a\\"} {
		f.Add(s)
	}
	v := &fixedView{header: map[string]string{"X": "header"}}
	d := &authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{}}
	f.Fuzz(func(t *testing.T, s string) {
		tmpl := ParseTemplate(s)
		out, err := tmpl.Expand(v, d)
		if err != nil && !tmpl.Credentials() {
			t.Fatalf("%q: %v", s, err)
		}
		if !strings.Contains(s, "$") && out != s {
			t.Fatalf("%q without a dollar sign became %q", s, out)
		}
		if err == nil && validHeaderValue(s) && !validHeaderValue(out) {
			t.Fatalf("%q rendered the invalid value %q", s, out)
		}
		// Every dollar sign doubled is the text itself.
		if got, _ := ParseTemplate(strings.ReplaceAll(s, "$", "$$")).Expand(v, d); got != s {
			t.Fatalf("escaped %q rendered %q", s, got)
		}
	})
}
