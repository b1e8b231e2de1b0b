package proxy

import (
	"slices"
	"strings"
	"testing"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/session"
)

func TestCookiesAreStrippedByExactName(t *testing.T) {
	names := session.NewCookieNames("_pomerium", "")
	strip := stripCookies(names)
	for in, want := range map[string]string{
		"a=1":                         "a=1",
		"_pomerium=x":                 "",
		"_pomerium=x; a=1":            "a=1",
		"a=1; _pomerium=x":            "a=1",
		"a=1; _pomerium=x; b=2":       "a=1; b=2",
		"a=1;_pomerium=x;b=2":         "a=1;b=2",
		"_pomerium=x; _pomerium=y":    "",
		"_pomerium_x=1; x_pomerium=2": "_pomerium_x=1; x_pomerium=2",
		"_Pomerium=1":                 "_Pomerium=1",
		" _pomerium =x; a=1":          "a=1",
		"=_pomerium=x; a=1":           "a=1",
		"_pomerium_authenticate=x; a=\"_pomerium=y\"": "a=\"_pomerium=y\"",
		"a=_pomerium=x": "a=_pomerium=x",
		"":              "",
	} {
		if got := strip(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func FuzzStripCookies(f *testing.F) {
	names := session.NewCookieNames("", "")
	strip := stripCookies(names)
	f.Add("a=1; __Host-_pomerium=x; b")
	f.Add("=__Host-_pomerium=;;")
	f.Fuzz(func(t *testing.T, in string) {
		out := strip(in)
		for part := range strings.SplitSeq(out, ";") {
			name, _, _ := strings.Cut(part, "=")
			if names.Ours(strings.TrimSpace(name)) {
				t.Fatalf("%q kept our cookie: %q", in, out)
			}
		}
		if again := strip(out); again != out {
			t.Fatalf("%q: %q, then %q", in, out, again)
		}
	})
}

func TestResponseRules(t *testing.T) {
	names := session.NewCookieNames("_pomerium", "")
	upstreamFields := exchange.Fields([]exchange.Field{
		{Name: "Content-Type", Value: "text/html"},
		{Name: "x-frame-options", Value: "DENY"},
		{Name: "Location", Value: "http://internal:8080/x"},
		{Name: "Set-Cookie", Value: "_pomerium=evil; Path=/"},
		{Name: "set-cookie", Value: "=_pomerium=evil"},
		{Name: "Set-Cookie", Value: "_pomerium_other=fine; Path=/"},
	})
	show := func(fields []exchange.Field) string {
		var lines []string
		for _, f := range fields {
			lines = append(lines, f.Name+": "+f.Value)
		}
		return strings.Join(lines, "\n")
	}
	rules, err := NewResponseRules(map[string]string{"X-Frame-Options": "SAMEORIGIN", "X-New": "$1"},
		[]RewriteResponseHeader{{Header: "location", Prefix: "http://internal:8080/", Value: "https://app.test/"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "Content-Type: text/html\nLocation: https://app.test/x\nSet-Cookie: _pomerium_other=fine; Path=/\nX-Frame-Options: SAMEORIGIN\nX-New: $1"
	if got := show(rules.appendTo(nil, upstreamFields, names)); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	off, err := NewResponseRules(map[string]string{"X-A": "1", "Disable": "any"}, nil)
	if err != nil || len(off.Fields()) != 0 {
		t.Errorf("disable left %v, %v", off.Fields(), err)
	}
	for _, bad := range []map[string]string{{"a b": "x"}, {"A": "x\r\ny"}, {"": "x"}} {
		if _, err := NewResponseRules(bad, nil); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	var none *ResponseRules
	if got := show(none.appendTo(nil, upstreamFields, names)); strings.Contains(got, "evil") {
		t.Errorf("our cookie passed: %s", got)
	}
}

func TestRequestRules(t *testing.T) {
	rules, err := newRequestRules(map[string]string{
		"X-Set": "${pomerium.request.headers.X-In}", "X-Claim": "from the route", "Host": "evil", ":path": "evil",
		"Content-Length": "7", "X-Both": "1", "X-Id": "route", "Authorization": "Bearer ${pomerium.access_token}",
	}, []string{"X-Both", "x-gone", "Odd*"}, []string{"X-Claim"})
	if err != nil {
		t.Fatal(err)
	}
	v := &fixedView{header: map[string]string{"X-In": "in"}}
	d := &authz.Decision{
		Outcome: authz.Allow, Caller: &session.Caller{Session: &session.Session{OAuthToken: &session.OAuthToken{AccessToken: "AT"}}},
		Identity: []exchange.Field{{Name: "x-id", Value: "identity"}},
	}
	var e exchange.HeaderEdits
	if err := rules.edit(&e, v, d); err != nil {
		t.Fatal(err)
	}
	var set []string
	for _, f := range e.Set {
		if !e.FinalRemove.Has(f.Name) {
			set = append(set, f.Name+"="+f.Value)
		}
	}
	if want := []string{"Authorization=Bearer AT", "X-Set=in"}; !slices.Equal(set, want) {
		t.Errorf("set %q, want %q", set, want)
	}
	if len(e.Add) != 1 || e.Add[0].Value != "identity" {
		t.Errorf("identity %v", e.Add)
	}
	for name, gone := range map[string]bool{"X-Both": true, "X_GONE": true, "X-Claim": true, "Oddity": false, "X-Set": false} {
		if e.FinalRemove.Has(name) != gone {
			t.Errorf("FinalRemove.Has(%s) = %v", name, !gone)
		}
	}
	// A preflight carries no credential, neither the caller's nor the route's.
	d.Bare = true
	e = exchange.HeaderEdits{}
	if err := rules.edit(&e, v, d); err != nil {
		t.Fatal(err)
	}
	if len(e.Add) != 0 || holdsName(e.Set, "Authorization") || !e.FinalRemove.Has("Authorization") || !e.FinalRemove.Has("Cookie") {
		t.Errorf("bare preflight: %+v", e)
	}
	for _, bad := range []map[string]string{{"a b": "x"}, {"A": "x\ny"}} {
		if _, err := newRequestRules(bad, nil, nil); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

func TestOurCredential(t *testing.T) {
	for value, ours := range map[string]bool{
		"Pomerium eyJ": true, "pomerium eyJ": true, "POMERIUM  x": true, "Pomerium": true,
		"Bearer Pomerium-eyJ": true, "bearer pomerium-x": true, "Bearer  Pomerium-x": true, " Bearer Pomerium-x": true,
		"Bearer eyJ": false, "Basic Pomerium-x": false, "": false, "Bearer": false, "PomeriumX y": false,
	} {
		if ourCredential(value) != ours {
			t.Errorf("ourCredential(%q) = %v", value, !ours)
		}
	}
}

// FuzzHeaderRules: whatever a client sends, nothing that only we may say and
// nothing that the route removes reaches the upstream from it.
func FuzzHeaderRules(f *testing.F) {
	f.Add("X-Pomerium-Jwt-Assertion", "x", "Authorization", "Pomerium y")
	f.Add("X_Pomerium_Claim_Email", "x", "x-forwarded-host", "evil")
	rules, err := newRequestRules(map[string]string{"X-Set": "$pomerium.request.headers.X"}, []string{"X-Gone"}, nil)
	if err != nil {
		f.Fatal(err)
	}
	strip := exchange.NewNameSet(authz.StripNames(&authz.Config{}, nil)...)
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string) {
		v := &listView{fields: []exchange.Field{{Name: n1, Value: v1}, {Name: n2, Value: v2}}}
		d := &authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{}, Strip: strip}
		up := newUpward(v, d)
		var e exchange.HeaderEdits
		if err := rules.edit(&e, v, d); err != nil {
			t.Fatal(err)
		}
		for name, value := range up.Headers() {
			if e.Strip.Has(name) || e.FinalRemove.Has(name) {
				continue
			}
			folded := exchange.FoldName(name)
			if strings.HasPrefix(folded, "x-pomerium-") || strings.HasPrefix(folded, "x-envoy-") || folded == "x-forwarded-host" ||
				folded == "x-original-url" || folded == "x-http-method-override" || folded == "x-gone" {
				t.Fatalf("%q passed", name)
			}
			if strings.EqualFold(name, "Authorization") && ourCredential(value) {
				t.Fatalf("credential %q passed", value)
			}
		}
	})
}

// listView yields given fields.
type listView struct {
	fixedView
	fields []exchange.Field
}

func (v *listView) Headers() exchange.HeaderSeq { return exchange.Fields(v.fields) }
func (v *listView) Header(name string) string {
	for _, f := range v.fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}
