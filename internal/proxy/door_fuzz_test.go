package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/route"
	"postern/internal/session"
)

// FuzzJudgedIsSent drives head bytes through net/http's parser and the door
// and compares what was judged with what the upstream receives on its wire.
func FuzzJudgedIsSent(f *testing.F) {
	for _, s := range []string{"/", "/a/../b?x=/../y", "/%61dmin", "//a//%2e%2e/b", "/a;b=c/..;/d", "/%2Fx", "http://app.test/a/./b", "/public/x?#", "/\xc3\xa9"} {
		f.Add(s)
	}
	upstreamGot := make(chan string, 8)
	run := testDoor{routes: []testRoute{
		{spec: route.Spec{From: "https://app.test", Prefix: "/public"}, to: "http://fuzz.invalid"},
		{spec: route.Spec{From: "https://app.test", Regex: "/[a-z]+/.*"}, to: "http://fuzz.invalid"},
		{spec: appRoute, to: "http://fuzz.invalid"},
	}}.start(f)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { upstreamGot <- r.RequestURI }))
	f.Cleanup(srv.Close)
	var judged *authz.Request
	run.gen.Authorizer = authorizerFunc(func(r *authz.Request) authz.Decision {
		judged = r
		return authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{}}
	})
	echo := testDoor{routes: []testRoute{{spec: appRoute, to: srv.URL}}}.start(f)
	for _, t := range run.gen.Targets {
		t.Upstream = echo.gen.Targets[0].Upstream
	}
	door := New(func() *Generation { return run.gen })
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n\t\x00") {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: app.test\r\n\r\n")))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1"
		judged = nil
		w := httptest.NewRecorder()
		door.ServeHTTP(w, r)
		if w.Code != 200 {
			select {
			case sent := <-upstreamGot:
				t.Fatalf("%q: answered %d, but the upstream got %q", target, w.Code, sent)
			default:
			}
			return
		}
		if judged == nil {
			return // one of our own
		}
		sent := <-upstreamGot
		path, query, hasQuery := strings.Cut(sent, "?")
		v := judged.View
		if path != v.Path() || hasQuery != v.HasQuery() || (query != v.RawQuery() && !strings.Contains(v.RawQuery(), "%") && !strings.Contains(v.RawQuery(), "pomerium_session")) {
			t.Fatalf("%q: judged %q?%q, sent %q", target, v.Path(), v.RawQuery(), sent)
		}
		if again, _, err := exchange.CanonicalPath(path, exchange.PathOptions{}); err != nil || again != path {
			t.Fatalf("%q: sent %q, which is not canonical", target, path)
		}
		if !judged.Route.MatchesPath(path) {
			t.Fatalf("%q: route %v does not match the path %q it forwards", target, judged.Route.Slot, path)
		}
	})
}

// sink is a ResponseWriter that keeps nothing.
type sink struct {
	h      http.Header
	status int
}

func (w *sink) Header() http.Header         { return w.h }
func (w *sink) Write(p []byte) (int, error) { return len(p), nil }
func (w *sink) WriteHeader(s int)           { w.status = s }

// BenchmarkDoor measures the pipeline up to a decision: view, match,
// decide, redirect; without sockets and upstream.
func BenchmarkDoor(b *testing.B) {
	run := testDoor{routes: one(route.Spec{From: "https://app.test", Redirect: "r"}, RouteConfig{Redirect: &Redirect{HostRedirect: ptr("x.test")}})}.start(b)
	d := authz.Decision{Outcome: authz.Allow, Caller: &session.Caller{}}
	run.gen.Authorizer = authorizerFunc(func(*authz.Request) authz.Decision { return d })
	run.gen.AccessLog = nil
	door := New(func() *Generation { return run.gen })
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader([]byte("GET /some/page.html?x=1 HTTP/1.1\r\nHost: app.test\r\nCookie: a=b\r\nAccept: text/html\r\n\r\n"))))
	if err != nil {
		b.Fatal(err)
	}
	r.RemoteAddr, r.Body = "127.0.0.1:1", io.NopCloser(nil)
	b.ReportAllocs()
	for b.Loop() {
		w := &sink{h: http.Header{}}
		door.ServeHTTP(w, r)
		if w.status != 301 {
			b.Fatal(w.status)
		}
	}
}
