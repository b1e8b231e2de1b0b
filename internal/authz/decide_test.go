package authz

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/route"
	"postern/internal/session"
)

const staff = `allow: {and: [{domain: corp.test}]}`

var app = []routeSpec{{from: "https://app.corp.test", policy: staff}}

func TestDecide(t *testing.T) {
	h := newHouse(t, []routeSpec{
		{from: "https://app.corp.test", policy: staff},
		{from: "https://open.corp.test", policy: `allow: {or: [{accept: true}]}`},
		{from: "https://empty.corp.test"},
		{from: "https://eng.corp.test", policy: `allow: {and: [{groups: eng}]}`},
		{from: "https://deny.corp.test", policy: "- allow: {or: [{accept: true}]}\n- deny: {or: [{email: bob@corp.test}]}"},
	})
	alice := h.person("alice", "alice@corp.test", "app.corp.test", "eng")
	bob := h.person("bob", "bob@corp.test", "deny.corp.test")
	out := h.person("eve", "eve@evil.test", "app.corp.test")
	engAlice := h.handle("s-alice", "alice", "eng.corp.test")

	tests := []struct {
		name    string
		view    *view
		outcome Outcome
		status  int
	}{
		{"signed in", request("GET", "https://app.corp.test/", "Cookie", "x=1; "+cookie(alice)), Allow, 200},
		{"wrong domain", request("GET", "https://app.corp.test/", "Cookie", cookie(out)), Deny, 403},
		{"nobody, browser", request("GET", "https://app.corp.test/"), SignIn, 302},
		{"nobody, any accept", request("GET", "https://app.corp.test/", "Accept", "*/*"), SignIn, 302},
		{"nobody, image", request("GET", "https://app.corp.test/", "Accept", "image/png"), SignIn, 302},
		{"nobody, json", request("GET", "https://app.corp.test/", "Accept", "application/json"), SignIn, 401},
		{"nobody, grpc", request("POST", "https://app.corp.test/", "Content-Type", "application/grpc+proto"), SignIn, 401},
		{"nobody, robots", request("GET", "https://app.corp.test/robots.txt"), SignIn, 200},
		{"public", request("GET", "https://open.corp.test/"), Allow, 200},
		{"no rule", request("GET", "https://empty.corp.test/"), Deny, 403},
		{"no route", request("GET", "https://nowhere.test/"), Deny, 404},
		{"group", request("GET", "https://eng.corp.test/", "Cookie", cookie(engAlice)), Allow, 200},
		{"deny rule", request("GET", "https://deny.corp.test/", "Cookie", cookie(bob)), Deny, 403},
		{"deny rule, nobody", request("GET", "https://deny.corp.test/"), SignIn, 302},
		{"header token", request("GET", "https://app.corp.test/", "X-Pomerium-Authorization", string(alice)), Allow, 200},
		{"authorization", request("GET", "https://app.corp.test/", "Authorization", "Pomerium "+string(alice)), Allow, 200},
		{"bearer", request("GET", "https://app.corp.test/", "Authorization", "Bearer Pomerium-"+string(alice)), Allow, 200},
		{"query", request("GET", "https://app.corp.test/?a=1&pomerium_session="+string(alice)), Allow, 200},
		{"bad header token", request("GET", "https://app.corp.test/", "Authorization", "Pomerium nonsense"), SignIn, 401},
		{"bad query token", request("GET", "https://app.corp.test/?pomerium_session=x"), SignIn, 401},
		{"prefix minds the case", request("GET", "https://app.corp.test/", "Authorization", "pomerium "+string(alice)), SignIn, 302},
		{"stale cookie masks a good header", request("GET", "https://app.corp.test/", "Cookie", cookie("stale"), "X-Pomerium-Authorization", string(alice)), SignIn, 401},
		{"internal, open", request("GET", "https://app.corp.test/.pomerium/"), Allow, 200},
		{"internal, key set", request("GET", "https://app.corp.test/.well-known/pomerium/jwks.json"), Allow, 200},
		{"internal, needs session", request("GET", "https://app.corp.test/.pomerium/user"), SignIn, 302},
		{"internal, needs session, api", request("GET", "https://app.corp.test/.pomerium/api/v1/routes", "Accept", "application/json"), SignIn, 401},
		{"internal, signed in", request("GET", "https://app.corp.test/.pomerium/user", "Cookie", cookie(out)), Allow, 200},
		{"ping", request("GET", "https://app.corp.test/ping"), Allow, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := h.decide(tt.view)
			if d.Outcome != tt.outcome || d.Status != tt.status {
				t.Errorf("got %v %d (allow %v deny %v, err %v), want %v %d", d.Outcome, d.Status,
					d.Policy.Allow.Reasons.Names(), d.Policy.Deny.Reasons.Names(), d.Err, tt.outcome, tt.status)
			}
			if d.Redirect != (d.Status == 302) {
				t.Errorf("Redirect is %v with status %d", d.Redirect, d.Status)
			}
			if d.Caller == nil {
				t.Error("no Caller")
			}
		})
	}
}

func TestZeroDecisionRefuses(t *testing.T) {
	var d Decision
	if d.Outcome != Deny {
		t.Fatal("the zero Decision does not refuse")
	}
	if jwt, err := d.Assertion(); err == nil || jwt != "" {
		t.Fatal("the zero Decision signs")
	}
	e, err := New(Sources{})
	if err == nil || e != nil {
		t.Fatal("an engine without sources was made")
	}
	h := newHouse(t, app)
	for _, req := range []*Request{nil, {}, {View: request("GET", "https://app.corp.test/")}, {Env: h.env}} {
		if d := h.engine.Decide(context.Background(), req); d.Outcome == Allow || d.Status < 500 {
			t.Errorf("incomplete request: %v %d", d.Outcome, d.Status)
		}
	}
}

// A route of another generation has no policy here and must not borrow one.
func TestRouteOfAnotherGenerationIsRefused(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://app.corp.test", policy: `allow: {or: [{accept: true}]}`}})
	old := h.request(request("GET", "https://app.corp.test/"))
	h.swap([]routeSpec{{from: "https://app.corp.test", policy: `allow: {or: [{accept: true}]}`}})
	old.Env = h.env
	if d := h.engine.Decide(context.Background(), old); d.Outcome != Error || d.Status != 500 {
		t.Fatalf("got %v %d", d.Outcome, d.Status)
	}
}

func TestPanicIsAnError(t *testing.T) {
	h := newHouse(t, app)
	h.options.Openers = []CredentialOpener{func(*Request) (Credential, bool) { panic("eyJsecret") }}
	h.swap(app)
	d := h.decide(request("GET", "https://app.corp.test/"))
	if d.Outcome != Error || d.Status != 500 {
		t.Fatalf("got %v %d", d.Outcome, d.Status)
	}
}

func TestRefuseByOpener(t *testing.T) {
	h := newHouse(t, app, func(o *Options) {
		o.Openers = []CredentialOpener{func(req *Request) (Credential, bool) {
			return Credential{Carrier: CarrierIDPBearer, Refuse: 403, Message: "bad token"}, req.View.Header("Authorization") != ""
		}}
	})
	d := h.decide(request("GET", "https://app.corp.test/", "Authorization", "Bearer bad"))
	if d.Outcome != Deny || d.Status != 403 {
		t.Fatalf("a bad identity provider bearer: got %v %d", d.Outcome, d.Status)
	}
}

func TestEndsOfSessions(t *testing.T) {
	h := newHouse(t, app)
	past, soon := time.Now().Add(-time.Second), time.Now().Add(time.Hour)
	h.put(&session.User{ID: "u", Email: "u@corp.test"}, &session.User{ID: "v", Email: "v@evil.test"})
	h.put(
		&session.Session{ID: "over", UserID: "u", ExpiresAt: past},
		&session.Session{ID: "endless", UserID: "u"},
		&session.Session{ID: "good", UserID: "u", ExpiresAt: soon},
		&session.Session{ID: "child", UserID: "u", ExpiresAt: soon, ParentSessionID: "good"},
		&session.Session{ID: "orphan", UserID: "u", ExpiresAt: soon, ParentSessionID: "gone"},
		&session.Session{ID: "stale-child", UserID: "u", ExpiresAt: soon, ParentSessionID: "over"},
		&session.Session{ID: "evil", UserID: "v", ExpiresAt: soon},
		&session.Session{ID: "as-evil", UserID: "u", ExpiresAt: soon, ImpersonateSessionID: "evil"},
		&session.Session{ID: "as-good", UserID: "v", ExpiresAt: soon, ImpersonateSessionID: "good"},
		&session.Session{ID: "as-gone", UserID: "u", ExpiresAt: soon, ImpersonateSessionID: "gone"},
		&session.Session{ID: "as-over", UserID: "u", ExpiresAt: soon, ImpersonateSessionID: "over"},
	)
	for id, want := range map[string]Outcome{
		"over": SignIn, "endless": SignIn, "good": Allow, "never-made": SignIn,
		"child": Allow, "orphan": SignIn, "stale-child": SignIn,
		"as-evil": Deny, "as-good": Allow, "as-gone": SignIn, "as-over": SignIn,
	} {
		d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(h.handle(id, "u", "app.corp.test"))))
		if d.Outcome != want {
			t.Errorf("session %s: got %v, want %v", id, d.Outcome, want)
		}
		if id == "as-good" {
			if d.Caller.ID != "as-good" || d.Caller.ImpersonatedBy == nil || d.Caller.UserID() != "u" {
				t.Errorf("impersonation: caller %v", d.Caller)
			}
			if d.Depends.SessionID != "as-good" || d.Depends.ImpersonatedID != "good" || d.Depends.UserID != "u" {
				t.Errorf("impersonation: depends %+v", d.Depends)
			}
		}
	}
}

// TestStaleNeverAllows: "record type not yet synced, watch cut" of the
// security cases. A deny rule, an exclude and the directory's e-mail all rest
// on the absence of something.
func TestStaleNeverAllows(t *testing.T) {
	specs := []routeSpec{
		{from: "https://deny.corp.test", policy: "- allow: {or: [{authenticated_user: true}]}\n- deny: {or: [{groups: fired}]}"},
		{from: "https://exclude.corp.test", policy: `allow: {and: [{claim/team: {exclude: fired}}]}`},
		{from: "https://mail.corp.test", policy: "- allow: {or: [{authenticated_user: true}]}\n- deny: {or: [{email: fired@corp.test}]}"},
	}
	h := newHouse(t, specs)
	h.person("a", "a@corp.test", "deny.corp.test")
	ctx := context.Background()
	// An engine whose directory copy never synced, over a store that is cut off.
	for _, broken := range []func(*Sources){
		func(s *Sources) { s.DirectoryUsers = lost[session.DirectoryUser]{} },
		func(s *Sources) { s.Users = lost[session.User]{} },
		func(s *Sources) { s.Sessions = lost[session.Session]{} },
	} {
		s := h.sources
		broken(&s)
		e, err := New(s)
		if err != nil {
			t.Fatal(err)
		}
		for _, host := range []string{"deny.corp.test", "exclude.corp.test", "mail.corp.test"} {
			v := request("GET", "https://"+host+"/", "Cookie", cookie(h.handle("s-a", "a", host)))
			if d := e.Decide(ctx, h.request(v)); d.Outcome != Error || d.Status != 503 {
				t.Errorf("%s with unreadable records: got %v %d, want error 503", host, d.Outcome, d.Status)
			}
		}
		// What needs no records is answered all the same.
		if d := e.Decide(ctx, h.request(request("GET", "https://deny.corp.test/ping"))); d.Outcome != Allow {
			t.Errorf("/ping while records are unreadable: %v", d.Outcome)
		}
	}
	// The group's name is part of what upstreams are told.
	s := h.sources
	s.DirectoryGroups = lost[session.DirectoryGroup]{}
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	h.person("b", "b@corp.test", "deny.corp.test", "g1")
	v := request("GET", "https://deny.corp.test/", "Cookie", cookie(h.handle("s-b", "b", "deny.corp.test")))
	if d := e.Decide(ctx, h.request(v)); d.Outcome != Error || d.Status != 503 {
		t.Errorf("unreadable groups: got %v %d", d.Outcome, d.Status)
	}
}

// The same with a real copy whose store goes away and comes back.
func TestStoreCutOff(t *testing.T) {
	h := newHouse(t, []routeSpec{{from: "https://deny.corp.test", policy: "- allow: {or: [{authenticated_user: true}]}\n- deny: {or: [{groups: fired}]}"}})
	token := h.person("a", "a@corp.test", "deny.corp.test", "staff")
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer func() { cancel(); running.Wait() }()
	quick := record.NewReplica(h.store, session.DirectoryUserType, session.DecodeDirectoryUser, record.ReplicaOptions{MaxStale: 20 * time.Millisecond})
	running.Go(func() { _ = quick.Run(ctx) })
	if err := quick.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	s := h.sources
	s.DirectoryUsers = quick
	e, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	ask := func() Decision {
		return e.Decide(ctx, h.request(request("GET", "https://deny.corp.test/", "Cookie", cookie(token))))
	}
	if d := ask(); d.Outcome != Allow {
		t.Fatalf("%v %v", d.Outcome, d.Err)
	}
	h.store.cut(true)
	eventually(t, "the copy is no longer believed", func() bool { return ask().Status == 503 })
	for range 100 {
		if d := ask(); d.Outcome != Error {
			t.Fatalf("while cut off: %v", d.Outcome)
		}
	}
	h.store.cut(false)
	eventually(t, "it is read through again", func() bool { return ask().Outcome == Allow })
}

// lost is a copy that never synced over a store that does not answer.
type lost[T any] struct{}

func (lost[T]) Lookup(context.Context, string, uint64) (*record.Entry[T], error) {
	return nil, record.ErrUnavailable
}
func (lost[T]) OnChange(func(record.Change[T])) (cancel func()) { return func() {} }
func (lost[T]) Ready() error                                    { return record.ErrUnavailable }

func TestClientCertificates(t *testing.T) {
	h := newHouse(t, app, func(o *Options) { o.CertificateRule = true })
	alice := h.person("alice", "alice@corp.test", "app.corp.test")
	for state, want := range map[exchange.CertificateState]int{
		exchange.CertificateNotAsked: 200,
		exchange.CertificateValid:    200,
		exchange.CertificateMissing:  495,
		exchange.CertificateInvalid:  495,
		9:                            495,
	} {
		v := request("GET", "https://app.corp.test/", "Cookie", cookie(alice))
		v.peer.CertificateState = state
		if d := h.decide(v); d.Status != want {
			t.Errorf("state %d: got %d, want %d", state, d.Status, want)
		}
		// 495 comes before any sign-in (trap 9), and internal pages need none.
		v = request("GET", "https://app.corp.test/")
		v.peer.CertificateState = state
		if d := h.decide(v); want == 495 && d.Status != 495 {
			t.Errorf("state %d, nobody: got %d", state, d.Status)
		}
		v = request("GET", "https://app.corp.test/.pomerium/")
		v.peer.CertificateState = state
		if d := h.decide(v); d.Status != 200 {
			t.Errorf("state %d, own page: got %d", state, d.Status)
		}
	}
}

func TestErrorDetails(t *testing.T) {
	table := func() *route.Table {
		rt, err := route.New(route.Spec{From: "https://app.corp.test", To: []string{"http://a"},
			Access: route.Access{ShowErrorDetails: true},
			Policies: []route.Attached{
				{Policy: ppl(t, staff)},
				{ID: "p1", Explanation: "Engineers only.", Remediation: "Ask for eng.", Policy: ppl(t, `allow: {and: [{groups: eng}]}`)},
			}})
		if err != nil {
			t.Fatal(err)
		}
		tb, err := route.NewTable([]*route.Route{rt}, route.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return tb
	}()
	h := newHouse(t, app)
	h.table = table
	h.options.Routes = table.Routes()
	env, err := NewEnv(h.options)
	if err != nil {
		t.Fatal(err)
	}
	h.env = env
	eve := h.person("eve", "eve@evil.test", "app.corp.test")
	d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(eve)))
	if d.Outcome != Deny || len(d.Details) != 1 || d.Details[0].Remediation != "Ask for eng." {
		t.Fatalf("got %v %+v", d.Outcome, d.Details)
	}
	if !d.Why.Has(policy.ReasonDomainUnauthorized) || !d.Why.Has(policy.ReasonGroupsUnauthorized) {
		t.Errorf("reasons %v", d.Why.Names())
	}
}

func TestAuthorizeLog(t *testing.T) {
	h := newHouse(t, app)
	token := h.person("u1", "a@corp.test", "app.corp.test")
	h.log.Reset()
	h.decide(request("GET", "https://app.corp.test/x?secret=1", "Cookie", cookie(token)))
	line := h.log.String()
	for _, want := range []string{
		`"service":"authorize"`, `"message":"authorize check"`, `"request-id":"req-1"`, `"method":"GET"`, `"path":"/x"`,
		`"host":"app.corp.test"`, `"ip":"192.0.2.7"`, `"session-id":"s-u1"`, `"user":"u1","email":"a@corp.test"`,
		`"route-id":"` + h.table.Routes()[0].ID + `"`,
		`"allow":true,"allow-why-true":["domain-ok"],"deny":false,"deny-why-false":[]`,
	} {
		if !strings.Contains(line, want) {
			t.Errorf("the line lacks %s:\n%s", want, line)
		}
	}
	for _, never := range []string{string(token), "secret", "impersonate", "service-account-id", "query"} {
		if strings.Contains(line, never) {
			t.Errorf("the line holds %q:\n%s", never, line)
		}
	}
	h.log.Reset()
	h.decide(request("GET", "https://app.corp.test/"))
	if line := h.log.String(); !strings.Contains(line, `"user":"","email":""`) || strings.Contains(line, "session-id") ||
		!strings.Contains(line, `"allow":false,"allow-why-false":["user-unauthenticated"]`) {
		t.Errorf("anonymous line: %s", line)
	}
}
