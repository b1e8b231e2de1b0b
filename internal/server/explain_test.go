package server_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/internal/authz"
	"postern/internal/config"
	"postern/internal/server"
	"postern/internal/server/servertest"
)

// financeOnly lets in a group that Ada is not in and Bob is; Ada administers.
const financeOnly = `
log_level: info
admin_policy: {allow: {and: [{email: ada@example.com}]}}
authorize_log_fields: [request-id, route-id, user, trace]
authenticate_service_url: https://auth.localhost
routes:
  - name: Books
    from: https://books.localhost
    to: @APP@
    show_error_details: true
    policy: {allow: {and: [{groups: finance}]}}
  - name: Vault
    from: https://vault.localhost
    to: @APP@
    policy: {allow: {and: [{groups: finance}, {email: {in: [bob@example.org, secret-name@example.org]}}]}}
    shadow_policy: {allow: {or: [{authenticated_user: true}]}}
`

func auditLines(p *servertest.Program) (lines []string) {
	for line := range strings.Lines(p.Log.String()) {
		if strings.Contains(line, `"message":"audit"`) {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestExplainThroughTheControlSocket: the running server explains by the
// newest session, by session id and for somebody described; every question is
// audited, the refused ones too.
func TestExplainThroughTheControlSocket(t *testing.T) {
	p := servertest.Start(t, financeOnly)
	p.Agent().SignIn("https://vault.localhost/", servertest.Bob)
	p.Agent().Visit("https://vault.localhost/", servertest.Ada)
	ctx := context.Background()
	ask := func(q server.ExplainQuery) (x authz.Explanation, err error) {
		q.URL = "https://books.localhost/x?token=hidden"
		err = p.Control.Call(ctx, "POST", "/v1/explain", q, &x)
		return x, err
	}
	x, err := ask(server.ExplainQuery{User: "ada@example.com"})
	if err != nil || x.Outcome != "deny" || x.Who.SessionID == "" || len(x.Trace.Deciding()) != 1 {
		t.Fatalf("%v %+v", err, x)
	}
	c := x.Trace.Deciding()[0]
	if c.Criterion != "groups" || strings.Join(c.Seen, ",") != "staff,astronomy" || c.Source != "directory record" || c.Age == "" || c.Line == 0 {
		t.Errorf("%+v", c)
	}
	if len(x.Trace.Changes) != 1 || x.Trace.Changes[0][0].Text != "needs group finance" {
		t.Errorf("%+v", x.Trace.Changes)
	}
	if by, err := ask(server.ExplainQuery{Session: x.Who.SessionID}); err != nil || by.Who.Email != "ada@example.com" {
		t.Errorf("by session: %v %+v", err, by.Who)
	}
	if bob, err := ask(server.ExplainQuery{User: "bob@example.org"}); err != nil || bob.Outcome != "allow" {
		t.Errorf("bob: %v %s", err, bob.Outcome)
	}
	described := server.ExplainQuery{Described: &server.DescribedUser{Email: "eve@example.com", Groups: []string{"finance"}}}
	if eve, err := ask(described); err != nil || eve.Outcome != "allow" || eve.Trace.Deciding()[0].Source != "description" {
		t.Errorf("described: %v %+v", err, eve)
	}
	if nobody, err := ask(server.ExplainQuery{}); err != nil || nobody.Outcome != "login" {
		t.Errorf("nobody: %v %s", err, nobody.Outcome)
	}
	for _, q := range []server.ExplainQuery{{User: "no@body"}, {Session: "none"}, {IP: "1.2.3"}} {
		if _, err := ask(q); err == nil {
			t.Errorf("%+v was answered", q)
		}
	}
	if err := p.WaitLog(`(?s)(message":"audit".*){8}`); err != nil {
		t.Fatal(err)
	}
	lines := auditLines(p)
	if len(lines) != 8 {
		t.Errorf("%d audit lines", len(lines))
	}
	for _, l := range lines {
		if !strings.Contains(l, `"action":"policy.explain"`) || !strings.Contains(l, fmt.Sprintf("uid:%d", os.Getuid())) ||
			!strings.Contains(l, "https://books.localhost/x") || strings.Contains(l, "hidden") {
			t.Errorf("audit line: %s", l)
		}
	}
}

// TestExplainForAdministrators: who satisfies admin_policy is answered on the
// sign-in host; to everybody else, and elsewhere, there is no such page.
func TestExplainForAdministrators(t *testing.T) {
	p := servertest.Start(t, financeOnly)
	const query = "/.pomerium/admin/explain?user=bob@example.org&url=https://books.localhost/"
	admin, other := p.Agent(), p.Agent()
	other.SignIn("https://books.localhost/", servertest.Bob)
	admin.Visit("https://vault.localhost/", servertest.Ada)

	page := admin.Get("https://auth.localhost" + query)
	var x authz.Explanation
	if err := json.Unmarshal([]byte(page.Body), &x); err != nil || page.StatusCode != 200 || x.Outcome != "allow" || x.Who.Email != "bob@example.org" {
		t.Fatalf("%d %v %s", page.StatusCode, err, page.Body)
	}
	if got := page.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control %q", got)
	}
	for name, page := range map[string]*servertest.Page{
		"somebody else":  other.Get("https://auth.localhost" + query),
		"nobody":         p.Agent().Get("https://auth.localhost" + query),
		"another host":   admin.Get("https://books.localhost" + query),
		"not known path": admin.Get("https://auth.localhost/.pomerium/admin/none"),
	} {
		if page.StatusCode != http.StatusNotFound || strings.Contains(page.Body, "finance") {
			t.Errorf("%s: %d", name, page.StatusCode)
		}
	}
	if err := p.WaitLog(`"message":"audit".*"kind":"user".*"via":"web"`); err != nil {
		t.Error(err)
	}
	if n := len(auditLines(p)); n != 1 {
		t.Errorf("%d audit lines for one question that was answered", n)
	}
}

// TestRefusalsTellTheirTrace: on a route with show_error_details the visitor
// is told which value decided and where it comes from, without other people's
// names; an administrator is told everything everywhere; others nothing. The
// authorize log has the same trace under the request id.
func TestRefusalsTellTheirTrace(t *testing.T) {
	p := servertest.Start(t, financeOnly+`
  - name: Names
    from: https://names.localhost
    to: @APP@
    show_error_details: true
    policy: {allow: {and: [{email: {in: [secret-name@example.org]}}]}}
`)
	ada, bob := p.Agent(), p.Agent()
	for _, host := range []string{"books", "vault"} {
		ada.Visit("https://"+host+".localhost/", servertest.Ada)
	}
	bob.Visit("https://names.localhost/", servertest.Bob)

	page := ada.Get("https://books.localhost/", "Accept: text/html")
	for _, want := range []string{"finance", "staff", "astronomy", "directory record", "What would have to change"} {
		if page.StatusCode != 403 || !strings.Contains(page.Body, want) {
			t.Errorf("the page of a route with details (%d) does not say %q", page.StatusCode, want)
		}
	}
	page = bob.Get("https://names.localhost/", "Accept: text/html")
	if page.StatusCode != 403 || strings.Contains(page.Body, "secret-name") || !strings.Contains(page.Body, "bob@example.org") {
		t.Errorf("%d, and the page names others: %v", page.StatusCode, strings.Contains(page.Body, "secret-name"))
	}
	page = ada.Get("https://vault.localhost/", "Accept: text/html")
	for _, want := range []string{"finance", "secret-name@example.org", "config.yaml:"} {
		if page.StatusCode != 403 || !strings.Contains(page.Body, want) {
			t.Errorf("an administrator is not told %q (%d)", want, page.StatusCode)
		}
	}
	eve := p.Agent()
	eve.Visit("https://vault.localhost/", servertest.Bob)
	if err := p.WaitLog(`"trace":\{"outcome":"deny","status":403,"reasons":\["groups-unauthorized"\],"decided":\[\{"criterion":"groups"`); err != nil {
		t.Error(err)
	}
}

// TestShadowPolicyOfAConfiguration: the key acts. It changes no answer; what
// it would have changed is counted, and counting the log again gives the same.
func TestShadowPolicyOfAConfiguration(t *testing.T) {
	metrics := freeAddress(t)
	p := servertest.Start(t, financeOnly+"\nmetrics_address: "+metrics+"\n")
	ada, bob := p.Agent(), p.Agent()
	ada.Visit("https://vault.localhost/", servertest.Ada)
	bob.SignIn("https://vault.localhost/", servertest.Bob)
	for range 3 {
		if page := ada.Get("https://vault.localhost/"); page.StatusCode != 403 {
			t.Fatalf("the shadow let somebody in: %d", page.StatusCode)
		}
		if page := bob.Get("https://vault.localhost/"); page.StatusCode != 200 {
			t.Fatalf("the shadow kept somebody out: %d", page.StatusCode)
		}
	}
	if err := p.WaitLog(`"shadow-allow":true,"shadow-deny":false`); err != nil {
		t.Fatal(err)
	}
	res, err := http.Get("http://" + metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	live := map[string]string{}
	for _, m := range regexp.MustCompile(`postern_policy_shadow_(\w+)_total\{route="(\w+)"\} (\d+)`).FindAllStringSubmatch(string(body), -1) {
		live[m[2]+" "+m[1]] = m[3]
	}
	err = servertest.Eventually(func() error {
		counts, err := authz.ReplayShadow(strings.NewReader(p.Log.String()))
		if err != nil || len(counts) != 1 {
			return fmt.Errorf("%v, counts of %d routes", err, len(counts))
		}
		for id, c := range counts {
			want := map[string]uint64{"evaluations": c.Evaluations, "would_allow": c.WouldAllow}
			if c.WouldAllow < 3 || c.WouldDeny != 0 {
				return fmt.Errorf("replayed %+v", c)
			}
			for name, n := range want {
				if live[id+" "+name] != fmt.Sprint(n) {
					return fmt.Errorf("%s: %s live, %d replayed", name, live[id+" "+name], n)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("%v (%v)", err, live)
	}
}

// TestExplainOffline answers by a configuration and a data file alone.
func TestExplainOffline(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := `
shared_secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
routes:
  - from: https://app.localhost
    to: http://127.0.0.1:1
    policy: {allow: {and: [{domain: example.com}, {groups: finance}]}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, problems := config.LoadFile(file, nil)
	if cfg == nil {
		t.Fatal(problems)
	}
	data, err := server.ReadExport([]byte(`
users:
  - {id: u1, email: ada@example.com, claims: {team: stars}, modified_at: 2026-03-01T00:00:00Z}
  - {email: bob@example.com, groups: [finance]}
sessions:
  - {id: s1, userId: u1, issuedAt: 2026-03-02T06:00:00Z, expiresAt: 2099-01-01T00:00:00Z}
`))
	if err != nil {
		t.Fatal(err)
	}
	for user, want := range map[string]string{"ADA@example.com": "deny", "u1": "deny", "bob@example.com": "allow", "": "login"} {
		x, err := server.Explain(context.Background(), cfg, data, &server.ExplainQuery{User: user, URL: "https://app.localhost/"})
		if err != nil || x.Outcome != want {
			t.Errorf("%q: %v %s", user, err, x.Outcome)
		}
		if user == "u1" {
			if c := x.Trace.Policies[0].Rules[0].Criteria[0]; x.Who.SessionID != "s1" || c.Source != "user record" || c.ModifiedAt.Year() != 2026 {
				t.Errorf("%+v %+v", x.Who, c)
			}
		}
	}
	for _, bad := range []string{"people: []", "users: [{name: x}]", "users: x", "sessions: [{id: s, expiresAt: soon}]", "users: [{id: a, modified_at: soon}]", "records: [{id: x}]"} {
		if _, err := server.ReadExport([]byte(bad)); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}
