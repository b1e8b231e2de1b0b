package pages

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"postern/internal/policy"
)

func TestNegotiate(t *testing.T) {
	for _, c := range []struct {
		accept string
		want   Kind
	}{
		{"", HTML},
		{"*/*", HTML},
		{"image/png", HTML},
		{"image/avif,image/webp,*/*;q=0.8", HTML},
		{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", HTML},
		{"text/html", HTML},
		{"application/json", JSON},
		{"APPLICATION/JSON", JSON},
		{"application/json, text/html", HTML},
		{"application/json, text/html;q=0.9", JSON},
		{"application/json;q=0.5, text/html;q=0.4", JSON},
		{"application/json, text/plain, */*", HTML},
		{"application/json, */*;q=0.1", JSON},
		{"application/json;charset=utf-8", JSON},
		{"application/json;as=Table;v=v1;g=meta.k8s.io,application/json", JSON},
		{"application/*", JSON},
		{"text/*", HTML},
		{"text/plain", PlainText},
		{"text/plain;q=0.1", PlainText},
		{"text/plain, application/json", JSON},
		{"application/grpc-web-text", GRPCWebText},
		{"application/grpc-web+proto", GRPCWeb},
		{"application/grpc+proto", GRPC},
		{"application/grpc", HTML},
		{"text/html;q=0, */*", JSON},
		{"text/html;q=0", HTML},
		{"text/html;q=0.1, */*", JSON},
		{"text/html;q=0.000, application/json;q=0.001", JSON},
		{"application/json ; q=1.000", JSON},
		{"application/json;x=\"a,b;c\\\"\"", JSON},
		{", application/json,,", JSON},
		{"application/json;", JSON},
		// Not RFC 9110: taken as if nothing had been said.
		{"application/json;q=2", HTML},
		{"application/json;q=0.1234", HTML},
		{"application/json;q=1.001", HTML},
		{"application/json;q=-1", HTML},
		{"application/json;q=", HTML},
		{"application/json;q", HTML},
		{"application/json text/html", HTML},
		{"application/json, foo", HTML},
		{"application/json, */html", HTML},
		{"application/json, *;q=0.2", HTML},
		{"application/", HTML},
		{"/json", HTML},
		{";;;", HTML},
		{",,,", HTML},
		{"application/json;x=\"a", HTML},
		{"application/json\x00", HTML},
		{strings.Repeat("application/json,", 65), HTML},
	} {
		if got := Negotiate(c.accept); got != c.want {
			t.Errorf("%q: %d, want %d", c.accept, got, c.want)
		}
	}
}

// FuzzNegotiate holds the negotiation to its rules rather than to a second
// implementation.
func FuzzNegotiate(f *testing.F) {
	for _, s := range []string{"", "*/*", "application/json", "text/html;q=0.5, application/json", "a/b;c=\"d\"", "text/*;q=0", ",,", "image/png, text/plain;q=0.001", "application/grpc+proto"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k := Negotiate(s)
		if int(k) >= len(offers) {
			t.Fatalf("%q: kind %d", s, k)
		}
		low := strings.ToLower(s)
		if k != HTML && !strings.Contains(low, offers[k].typ+"/"+offers[k].sub) && !strings.Contains(low, offers[k].typ+"/*") && !strings.Contains(low, "*/*") {
			t.Fatalf("%q picked %s/%s, which it does not name", s, offers[k].typ, offers[k].sub)
		}
		if k == HTML && PrefersJSON(s) {
			t.Fatalf("%q picks HTML and prefers JSON to it", s)
		}
		if PrefersJSON(s) && !strings.Contains(low, "json") && !strings.Contains(low, "application/*") && !strings.Contains(low, "*/*") {
			t.Fatalf("%q prefers JSON without a word of it", s)
		}
		// The decision between redirect and 401 is made in policy, by the same
		// rules: where a header is well formed the two must agree.
		if _, ok := parseAccept(s); ok && !strings.Contains(s, "\"") && policy.AcceptsHTML(s) != (k == HTML) {
			t.Fatalf("%q: policy says HTML %v, pages picks %d", s, policy.AcceptsHTML(s), k)
		}
		// A wish for HTML above all else is granted wherever it stands, in any
		// header that parses.
		if _, ok := parseAccept(s); ok && !strings.Contains(low, "text/") {
			if got := Negotiate(s + ",text/html"); got != HTML && len(s) < 1000 {
				t.Fatalf("%q with text/html picks %d", s, got)
			}
		}
		if got := Negotiate(" " + s + "\t"); got != k {
			t.Fatalf("%q: white space around it changes %d to %d", s, k, got)
		}
	})
}

func TestGRPCContentType(t *testing.T) {
	for in, want := range map[string][2]bool{
		"application/grpc": {true, false}, "application/grpc+proto": {true, false}, "Application/GRPC; x=y": {true, false},
		"application/grpc-web-text": {true, true}, "application/grpc-web+proto": {true, true}, "application/grpc-web-text+proto": {true, true},
		"application/grpc-web": {}, "application/grpcx": {}, "application/json": {}, "": {}, "text/application/grpc": {},
	} {
		grpc, web := GRPCContentType(in)
		if [2]bool{grpc, web} != want {
			t.Errorf("%q: %v %v", in, grpc, web)
		}
	}
}

// TestErrorBodies is the table of wire-contract.md §1.4.
func TestErrorBodies(t *testing.T) {
	r := renderer(t, Branding{})
	denied := ErrorPage{Kind: Denied, RequestID: "req-1"}
	for _, c := range []struct {
		name        string
		page        ErrorPage
		path        string
		header      map[string]string
		status      int
		contentType string
		body        string // exact, or a prefix ending in "…"
		more        map[string]string
	}{
		{"browser", denied, "/", nil, 403, "text/html; charset=utf-8", "<!doctype html>…", map[string]string{"X-Pomerium-Intercepted-Response": "true"}},
		{"text", denied, "/", map[string]string{"Accept": "text/plain"}, 403, "text/html; charset=utf-8", "<!doctype html>…", map[string]string{"X-Pomerium-Intercepted-Response": "true"}},
		{"json", denied, "/", map[string]string{"Accept": "application/json"}, 403, "application/json", `{"error":"Forbidden","request_id":"req-1"}` + "\n", map[string]string{"X-Pomerium-Intercepted-Response": ""}},
		{"json named", ErrorPage{Kind: Unauthenticated, RequestID: "r", Reason: "Unauthenticated"}, "/", map[string]string{"Accept": "application/json"}, 401, "application/json", `{"error":"Unauthenticated","request_id":"r"}` + "\n", nil},
		{"json after text", denied, "/", map[string]string{"Accept": "text/plain, application/json;q=0.5"}, 403, "application/json", `{"error":"Forbidden","request_id":"req-1"}` + "\n", nil},
		{"robots", denied, "/robots.txt", nil, 200, "text/plain; charset=utf-8", "User-agent: *\nDisallow: /\n", nil},
		{"kubectl", denied, "/api", map[string]string{"User-Agent": "kubectl/v1.30 (linux/amd64) kubernetes/abc", "Accept": "application/json"}, 403, "application/json",
			`{"apiVersion":"v1","kind":"Status","status":"Failure","message":"Forbidden","reason":"Forbidden","code":403}` + "\n", nil},
		{"kubectl 450", ErrorPage{Kind: Denied, Status: 450}, "/", map[string]string{"User-Agent": "kubernetes/1"}, 450, "application/json",
			`{"apiVersion":"v1","kind":"Status","status":"Failure","message":"Device Unauthorized","reason":"Unauthorized","code":450}` + "\n", nil},
		{"kubectl 404", ErrorPage{Kind: NotFound}, "/", map[string]string{"User-Agent": "kubernetes/1"}, 404, "application/json",
			`{"apiVersion":"v1","kind":"Status","status":"Failure","message":"Not Found","reason":"NotFound","code":404}` + "\n", nil},
		{"kubectl 503", ErrorPage{Kind: Unavailable}, "/", map[string]string{"User-Agent": "kubernetes/1"}, 503, "application/json",
			`{"apiVersion":"v1","kind":"Status","status":"Failure","message":"Service Unavailable","reason":"","code":503}` + "\n", nil},
		{"grpc", denied, "/pkg.Svc/M", map[string]string{"Content-Type": "application/grpc+proto"}, 403, "application/grpc+json", "", map[string]string{"Grpc-Status": "7", "Grpc-Message": "Forbidden"}},
		{"grpc 401", ErrorPage{Kind: Unauthenticated, Reason: "no\nway é"}, "/", map[string]string{"Content-Type": "application/grpc"}, 401, "application/grpc+json", "", map[string]string{"Grpc-Status": "16", "Grpc-Message": "no%0Away %C3%A9"}},
		{"grpc-web", ErrorPage{Kind: NotFound}, "/", map[string]string{"Content-Type": "application/grpc-web-text"}, 404, "application/grpc-web+json", "", map[string]string{"Grpc-Status": "12"}},
		{"grpc by accept", ErrorPage{Kind: ClientCertificate}, "/", map[string]string{"Accept": "application/grpc+proto"}, 495, "application/grpc+json", "", map[string]string{"Grpc-Status": "2"}},
		{"proxy json", ErrorPage{Kind: Timeout, Source: FromProxy, RequestID: "r"}, "/", map[string]string{"Accept": "application/json"}, 504, "application/json", `{"requestId":"r","status":504,"statusText":"Gateway Timeout"}` + "\n", nil},
		{"proxy grpc", ErrorPage{Kind: Unreachable, Source: FromProxy}, "/", map[string]string{"Content-Type": "application/grpc"}, 503, "application/grpc+json", "", map[string]string{"Grpc-Status": "14"}},
		{"proxy html", ErrorPage{Kind: Unreachable, Source: FromProxy}, "/robots.txt", map[string]string{"User-Agent": "kubernetes/1"}, 503, "text/html; charset=utf-8", "<!doctype html>…", map[string]string{"X-Pomerium-Intercepted-Response": ""}},
		{"endpoint exact json", ErrorPage{Kind: BadRequest, Source: FromEndpoint, RequestID: "r", AccountURL: "https://a/x"}, "/.pomerium/callback/", map[string]string{"Accept": "application/json"}, 400, "application/json",
			`{"Status":400,"RequestID":"r","DebugURL":"https://a/x","description":"Bad Request"}` + "\n", nil},
		{"endpoint other json", ErrorPage{Kind: BadRequest, Source: FromEndpoint}, "/", map[string]string{"Accept": "application/json, */*"}, 400, "text/html; charset=utf-8", "<!doctype html>…", nil},
		{"retry after", ErrorPage{Kind: TooMany, RetryAfter: 1500 * time.Millisecond}, "/", map[string]string{"Accept": "application/json"}, 429, "application/json", `{"error":"Too Many Requests","request_id":""}` + "\n", map[string]string{"Retry-After": "2"}},
		{"unknown kind", ErrorPage{Kind: 200}, "/", nil, 500, "text/html; charset=utf-8", "<!doctype html>…", nil},
	} {
		req := get(c.path)
		for k, v := range c.header {
			req.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		r.Error(w, req, c.page)
		if w.Code != c.status || w.Header().Get("Content-Type") != c.contentType {
			t.Errorf("%s: %d %s, want %d %s", c.name, w.Code, w.Header().Get("Content-Type"), c.status, c.contentType)
		}
		body := w.Body.String()
		if prefix, cut := strings.CutSuffix(c.body, "…"); cut && !strings.HasPrefix(body, prefix) || !cut && body != c.body {
			t.Errorf("%s: body %q, want %q", c.name, body, c.body)
		}
		for k, v := range c.more {
			if got := w.Header().Get(k); got != v {
				t.Errorf("%s: %s %q, want %q", c.name, k, got, v)
			}
		}
		if w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s may be stored", c.name)
		}
	}
}

// A visitor who may not know learns no rule, group or remedy.
func TestDenialNeedsShowDetails(t *testing.T) {
	page := ErrorPage{Kind: Denied, Who: "ada@x.example", RequestID: "r", Denial: Denial{
		Conditions: []Condition{{Title: "Secret condition", Rule: "secret-rule", Noun: "group", Needs: []string{"secret-group"}, Saw: []string{}}},
		Policies:   []PolicyWords{{ID: "secret-id", Explanation: "secret words", Remediation: "secret remedy"}},
		Remedy:     "secret remedy"}}
	r := renderer(t, Branding{ErrorParagraph: "secret paragraph"})
	w := httptest.NewRecorder()
	r.Error(w, get("/"), page)
	if strings.Contains(strings.ToLower(w.Body.String()), "secret") {
		t.Error("the visitor's page tells what only the details form may")
	}
	page.ShowDetails = true
	w = httptest.NewRecorder()
	r.Error(w, get("/"), page)
	for _, want := range []string{"Secret condition", "secret-rule", "secret-group", "secret words", "secret remedy", "secret paragraph", "We saw none", "Not met"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the details form lacks %q", want)
		}
	}
}

func TestAssets(t *testing.T) {
	r := renderer(t, Branding{PrimaryColor: "#123456"})
	ask := func(method, path, match string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, path, nil)
		req.Header.Set("If-None-Match", match)
		w := httptest.NewRecorder()
		r.ServeAsset(w, req)
		return w
	}
	for _, path := range []string{"/.pomerium/index.css", "/.pomerium/index.js", "/.pomerium/favicon.ico", "/.pomerium/favicon.svg", "/.pomerium/apple-touch-icon.png"} {
		w := ask("GET", path, "")
		if w.Code != 200 || w.Body.Len() == 0 || w.Header().Get("Content-Type") == "" {
			t.Errorf("%s: %d, %d bytes, %s", path, w.Code, w.Body.Len(), w.Header().Get("Content-Type"))
		}
		if again := ask("GET", path, w.Header().Get("ETag")); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
			t.Errorf("%s asked again: %d", path, again.Code)
		}
		if head := ask("HEAD", path, ""); head.Code != 200 || head.Body.Len() != 0 || head.Header().Get("Content-Length") == "0" {
			t.Errorf("HEAD %s: %d with %d bytes", path, head.Code, head.Body.Len())
		}
		if post := ask("POST", path, ""); post.Code != 405 || post.Header().Get("Allow") == "" {
			t.Errorf("POST %s: %d", path, post.Code)
		}
	}
	for _, path := range []string{r.brand.Style, r.brand.Script, r.brand.BrandStyle} {
		if got := ask("GET", path, "").Header().Get("Cache-Control"); !strings.Contains(got, "immutable") {
			t.Errorf("%s: Cache-Control %q", path, got)
		}
	}
	if w := ask("GET", "/.pomerium/index-0123456789abcdef.css", ""); w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("a hash of another replica: %d, %s", w.Code, w.Header().Get("Cache-Control"))
	}
	for _, path := range []string{"/.pomerium/", "/.pomerium/index-0123.css", "/.pomerium/../index.css", "/.pomerium/index-0123456789abcdeg.css", "/.pomerium/favicon-0123456789abcdef.ico", "/index.css"} {
		if w := ask("GET", path, ""); w.Code != 404 || r.IsAsset(path) {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	for _, path := range r.AssetPaths() {
		if !r.IsAsset(path) {
			t.Errorf("%s is listed and not served", path)
		}
	}
}
