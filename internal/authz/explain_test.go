package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
)

var details = []routeSpec{{from: "https://app.corp.test", policy: "allow: {and: [{domain: corp.test}, {groups: finance}, {claim/team: ledger}]}",
	access: route.Access{ShowErrorDetails: true}}}

// TestExplainNamesSources: every value of a person is told with the record
// that it came from and that record's age.
func TestExplainNamesSources(t *testing.T) {
	h := newHouse(t, details)
	token := h.person("a", "a@corp.test", "app.corp.test", "sales")
	h.engine.now = func() time.Time { return time.Now().Add(50 * time.Minute) }
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
	x, err := h.engine.Explain(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	if x.Outcome != "deny" || x.Status != 403 || x.Who.Email != "a@corp.test" || x.Route == nil || x.Route.From != "https://app.corp.test" {
		t.Fatalf("%+v", x)
	}
	by := map[string]policy.CriterionTrace{}
	x.Trace.Each(func(c *policy.CriterionTrace) { by[c.Criterion] = *c })
	for word, source := range map[string]string{"groups": "directory record", "claim/team": "token of the session"} {
		if c := by[word]; c.Source != source || c.Age == "" || c.ModifiedAt.IsZero() || c.Value || !c.Decided {
			t.Errorf("%s: %+v", word, c)
		}
	}
	if c := by["groups"]; c.Seen[0] != "sales" || c.Age != "50 minutes" && c.Age != "49 minutes" {
		t.Errorf("groups: %+v", c)
	}
	if c := by["domain"]; !c.Value || c.Decided || c.Seen[0] != "corp.test" || !strings.HasSuffix(c.Source, "record") {
		t.Errorf("domain: %+v", c)
	}
	if len(x.Trace.Changes) != 1 || x.Trace.Changes[0][0].Text != "needs group finance" || x.Trace.Changes[0][1].Text != "needs claim team ledger" {
		t.Errorf("changes: %+v", x.Trace.Changes)
	}
}

// TestExplainAs asks for a session, for a user by records, and for somebody
// described; the credential in the request counts for nothing.
func TestExplainAs(t *testing.T) {
	h := newHouse(t, app)
	own := h.person("a", "a@corp.test", "app.corp.test")
	h.person("b", "b@other.test", "app.corp.test")
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(own)))
	for name, c := range map[string]struct {
		subject Subject
		want    string
		email   string
	}{
		"nobody":      {Subject{}, "login", ""},
		"by records":  {Subject{UserID: "user-a"}, "allow", "a@corp.test"},
		"described":   {Subject{Described: &Described{UserID: "x", Email: "x@corp.test", Groups: []string{}}}, "allow", "x@corp.test"},
		"another one": {Subject{Described: &Described{UserID: "x", Email: "x@other.test"}}, "deny", "x@other.test"},
	} {
		if c.subject.UserID != "" {
			c.subject.UserID = h.decide(req.View.(*view)).Caller.UserID()
		}
		x, err := h.engine.ExplainAs(context.Background(), req, c.subject)
		if err != nil || x.Outcome != c.want || x.Who.Email != c.email {
			t.Errorf("%s: %v %s %+v", name, err, x.Outcome, x.Who)
		}
	}
	session := h.decide(req.View.(*view)).Depends.SessionID
	if x, err := h.engine.ExplainAs(context.Background(), req, Subject{SessionID: session}); err != nil || x.Outcome != "allow" || x.Who.SessionID != session {
		t.Errorf("by session: %v %+v", err, x)
	}
	if _, err := h.engine.ExplainAs(context.Background(), req, Subject{SessionID: "gone"}); err == nil {
		t.Error("a session that does not exist was explained")
	}
	if req.as != nil {
		t.Error("a question left its subject in the request")
	}
}

// TestExplainIsDecide: what an explanation says of live requests is what
// Decide does with them, whatever the policy.
func TestExplainIsDecide(t *testing.T) {
	policies := []string{
		"allow: {and: [{domain: corp.test}]}", "allow: {or: [{groups: g1}, {http_method: PUT}]}", "{}",
		"[{allow: {or: [{accept: true}]}}, {deny: {or: [{groups: g1}]}}]", "allow: {and: [{device: {type: any}}]}",
		"allow: {not: [{email: {is: a@corp.test}}]}", "allow: {or: [{accept: true}]}",
	}
	h := newHouse(t, app)
	r := rand.New(rand.NewPCG(1, 1))
	tokens := []session.Token{"", h.person("a", "a@corp.test", "app.corp.test", "g1"), h.person("b", "b@other.test", "app.corp.test")}
	for _, p := range policies {
		h.swap([]routeSpec{{from: "https://app.corp.test", policy: p}})
		for range 30 {
			path := []string{"/x", "/robots.txt", "/.pomerium/jwt", "/healthz"}[r.IntN(4)]
			v := request([]string{"GET", "PUT"}[r.IntN(2)], "https://app.corp.test"+path)
			if i := r.IntN(3); i > 0 {
				v = request(v.method, "https://app.corp.test"+path, "Cookie", cookie(tokens[i]))
			}
			d := h.decide(v)
			x, err := h.engine.Explain(context.Background(), h.request(v))
			if err != nil || x.Outcome != d.Outcome.String() || x.Status != d.Status {
				t.Fatalf("%s %s: explained %s %d (%v), decided %s %d", p, path, x.Outcome, x.Status, err, d.Outcome, d.Status)
			}
			if len(x.Trace.Policies) > 0 && x.Trace.Outcome.String() != x.Outcome {
				t.Fatalf("%s: the trace says %s, the decision %s", p, x.Trace.Outcome, x.Outcome)
			}
		}
	}
}

// TestExplainChangesNothing: questions write no log line, count nothing, touch
// no session and leave every record as it was.
func TestExplainChangesNothing(t *testing.T) {
	h := newHouse(t, details)
	metrics := telemetry.NewMetrics(telemetry.BuildInfo{})
	h.engine.metrics = metrics
	touched := 0
	h.engine.touched = func(*session.Caller) { touched++ }
	token := h.person("a", "a@corp.test", "app.corp.test", "finance")
	before := recordsOf(t, h)
	logged, changes := h.log.Len(), h.engine.changes.Load()
	for range 50 {
		req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
		if _, err := h.engine.Explain(context.Background(), req); err != nil {
			t.Fatal(err)
		}
		if _, err := h.engine.ExplainAs(context.Background(), req, Subject{Described: &Described{Email: "x@corp.test"}}); err != nil {
			t.Fatal(err)
		}
	}
	if after := recordsOf(t, h); after != before {
		t.Errorf("records changed:\n%s\n%s", before, after)
	}
	if h.log.Len() != logged || touched != 0 || h.engine.changes.Load() != changes || h.engine.Streams() != 0 {
		t.Errorf("a question left a mark: log %d, touched %d", h.log.Len()-logged, touched)
	}
	if n := counter(t, metrics.Registry(), "pomerium_authorize_evaluator_evaluations_total", ""); n != 0 {
		t.Errorf("%v evaluations counted", n)
	}
}

func recordsOf(t *testing.T, h *house) string {
	t.Helper()
	var out bytes.Buffer
	for _, typ := range []string{session.SessionType, session.UserType, session.DirectoryUserType} {
		page, err := h.store.List(context.Background(), typ, record.Query{})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.NewEncoder(&out).Encode(page.Records); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

// counter reads a metric of a registry.
func counter(t *testing.T, reg *prometheus.Registry, name, routeID string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if routeID == "" || l.GetName() == "route" && l.GetValue() == routeID {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// shadowed gives a house whose route has a shadow policy.
func shadowed(t *testing.T, real, shadow *policy.Policy, fields []string) (*house, *telemetry.Metrics) {
	h := newHouse(t, app)
	rt, err := route.New(route.Spec{From: "https://app.corp.test", To: []string{"http://127.0.0.1:1"},
		Policies: []route.Attached{{Policy: real}}, Access: route.Access{Shadow: []route.Attached{{Policy: shadow}}}})
	if err != nil {
		t.Fatal(err)
	}
	if h.table, err = route.NewTable([]*route.Route{rt}, route.Options{}); err != nil {
		t.Fatal(err)
	}
	h.options.Routes = h.table.Routes()
	h.options.Log = telemetry.NewAuthorizeLog(telemetry.NewSink(h.log, 0), slog.LevelInfo, fields)
	if h.env, err = NewEnv(h.options); err != nil {
		t.Fatal(err)
	}
	m := telemetry.NewMetrics(telemetry.BuildInfo{})
	h.engine.metrics = m
	return h, m
}

// TestShadowChangesNothingAndIsCounted: decisions with a shadow policy are
// those without, differences are in the log and the metrics, and counting the
// log again gives the metrics.
func TestShadowChangesNothingAndIsCounted(t *testing.T) {
	real := "allow: {and: [{domain: corp.test}]}"
	shadows := map[string]*policy.Policy{
		"wider":    ppl(t, "allow: {or: [{accept: true}]}"),
		"narrower": ppl(t, "allow: {and: [{domain: corp.test}, {groups: finance}]}"),
		"sign-in":  ppl(t, "[{allow: {or: [{accept: true}]}}, {deny: {or: [{email: x@y}]}}]"),
		"panics":   policy.Custom("x", func(*policy.Input, *policy.Result) { panic("no") }),
		"fails":    policy.Custom("x", func(_ *policy.Input, res *policy.Result) { res.Err = errNoEnv }),
	}
	for name, shadow := range shadows {
		t.Run(name, func(t *testing.T) {
			h, m := shadowed(t, ppl(t, real), shadow, nil)
			plain := newHouse(t, []routeSpec{{from: "https://app.corp.test", policy: real}})
			people := func(h *house) []string {
				return []string{"", cookie(h.person("a", "a@corp.test", "app.corp.test", "finance")), cookie(h.person("b", "b@corp.test", "app.corp.test")), cookie(h.person("c", "c@other.test", "app.corp.test", "finance"))}
			}
			mine, theirs := people(h), people(plain)
			for i := range 40 {
				d := h.decide(request("GET", "https://app.corp.test/x", "Cookie", mine[i%4]))
				want := plain.decide(request("GET", "https://app.corp.test/x", "Cookie", theirs[i%4]))
				if d.Outcome != want.Outcome || d.Status != want.Status || len(d.Identity) != len(want.Identity) || !d.Shadow.Evaluated || want.Shadow.Evaluated {
					t.Fatalf("the shadow changed the decision: %v %v", d.Outcome, want.Outcome)
				}
			}
			id := h.table.Routes()[0].ID
			counts, err := ReplayShadow(strings.NewReader("not a line\n" + h.log.String()))
			if err != nil {
				t.Fatal(err)
			}
			c := counts[id]
			for metric, got := range map[string]uint64{"evaluations": c.Evaluations, "would_allow": c.WouldAllow, "would_deny": c.WouldDeny} {
				if live := counter(t, m.Registry(), "postern_policy_shadow_"+metric+"_total", id); live != float64(got) {
					t.Errorf("%s: %v counted live, %d from the log", metric, live, got)
				}
			}
			want := map[string]ShadowCounts{
				"wider": {40, 20, 0}, "narrower": {40, 0, 10}, "sign-in": {40, 10, 0}, "panics": {40, 0, 20}, "fails": {40, 0, 20},
			}[name]
			if c != want {
				t.Errorf("counted %+v, want %+v", c, want)
			}
			if strings.Contains(plain.log.String(), "shadow-") {
				t.Error("a route without shadow_policy has shadow fields in its log")
			}
		})
	}
}

// TestTraceInTheLog: the field is written only where it is configured, and
// only for visitors who are told details, or at debug.
func TestTraceInTheLog(t *testing.T) {
	h := newHouse(t, details)
	cookieOf := cookie(h.person("a", "a@corp.test", "app.corp.test", "sales"))
	lineWith := func(fields []string, level slog.Level) string {
		h.log.Reset()
		h.env.log = telemetry.NewAuthorizeLog(telemetry.NewSink(h.log, 0), level, fields)
		h.decide(request("GET", "https://app.corp.test/x", "Cookie", cookieOf))
		return h.log.String()
	}
	if got := lineWith(nil, slog.LevelDebug); strings.Contains(got, `"trace"`) {
		t.Errorf("by default: %s", got)
	}
	var l struct {
		ID    string `json:"request-id"`
		Trace struct {
			Outcome string
			Decided []policy.CriterionTrace
			Changes [][]policy.Change
		}
	}
	got := lineWith([]string{"request-id", "trace"}, slog.LevelInfo)
	if err := json.Unmarshal([]byte(got), &l); err != nil || l.ID == "" || l.Trace.Outcome != "deny" || len(l.Trace.Decided) != 2 || len(l.Trace.Changes) != 1 {
		t.Fatalf("%v %s", err, got)
	}
	h.swap([]routeSpec{{from: "https://app.corp.test", policy: "allow: {and: [{domain: corp.test}]}"}})
	if got = lineWith([]string{"trace"}, slog.LevelInfo); strings.Contains(got, `"trace"`) {
		t.Errorf("an allowed request at info: %s", got)
	}
	if got = lineWith([]string{"trace"}, slog.LevelDebug); !strings.Contains(got, `"trace":{"outcome":"allow"`) {
		t.Errorf("an allowed request at debug: %s", got)
	}
}

func TestQuestionIsCanonical(t *testing.T) {
	v, err := (&Question{URL: "https://APP.corp.test/a/../b//c?q=1#f"}).View()
	if err != nil || v.Authority() != "app.corp.test" || v.Path() != "/b/c" || v.RawQuery() != "q=1" || v.Method() != "GET" {
		t.Errorf("%v %+v", err, v)
	}
	for _, bad := range []string{"", "ftp://x/", "https://", "https://a b/", "https://x/%2f"} {
		if v, err := (&Question{URL: bad}).View(); err == nil {
			t.Errorf("%q is taken as %s%s", bad, v.Authority(), v.Path())
		}
	}
}

func BenchmarkEngineExplain(b *testing.B) {
	h := newHouse(b, details)
	token := h.person("a", "a@corp.test", "app.corp.test", "sales")
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.engine.Explain(b.Context(), req); err != nil {
			b.Fatal(err)
		}
	}
}
