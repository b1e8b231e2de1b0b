package pages

import (
	"bytes"
	"flag"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

var update = flag.Bool("update", false, "rewrite the golden pages")

func renderer(t testing.TB, b Branding) *Renderer {
	t.Helper()
	r, err := New(b)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(target string) *http.Request {
	r := httptest.NewRequest("GET", target, nil)
	r.Host = "atlas.fernhill.example"
	return r
}

// show renders a specimen as a browser would get it.
func show(t testing.TB, r *Renderer, s Specimen) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	s.Render(r, w, get("/tonight"))
	if w.Code != s.Status {
		t.Errorf("%s: status %d, want %d", s.Name, w.Code, s.Status)
	}
	return w
}

// TestGolden compares every page with its file. The content hash of assets is
// replaced, so that a change of style does not touch forty files.
func TestGolden(t *testing.T) {
	r := renderer(t, SampleBranding())
	names := map[string]bool{}
	for _, s := range Samples() {
		if names[s.Name] {
			t.Fatalf("two specimens are called %s", s.Name)
		}
		names[s.Name] = true
		got := show(t, r, s).Body.String()
		got = strings.NewReplacer(r.brand.Style, "STYLE", r.brand.Script, "SCRIPT").Replace(got)
		file := filepath.Join("testdata", "golden", s.Name+".html")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s is not as its golden file says; look at the difference, then go test -run TestGolden -update\n%s", s.Name, firstDifference(got, string(want)))
		}
	}
	files, err := filepath.Glob("testdata/golden/*.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".html"); !names[name] {
			t.Errorf("%s has no specimen any more; delete it", f)
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			other := "(nothing)"
			if i < len(w) {
				other = w[i]
			}
			return "got  " + g[i] + "\nwant " + other
		}
	}
	return "the golden file is longer"
}

// TestStructure is what can be said about accessibility and the content
// policy without a browser.
func TestStructure(t *testing.T) {
	for _, b := range []Branding{SampleBranding(), {}, {LogoURL: "https://cdn.example/logo.svg", Name: "Fernhill", PrimaryColor: "#ff8800"}} {
		r := renderer(t, b)
		for _, s := range Samples() {
			t.Run(s.Name, func(t *testing.T) { checkStructure(t, show(t, r, s).Body.Bytes()) })
		}
	}
}

func checkStructure(t *testing.T, page []byte) {
	if !bytes.HasPrefix(page, []byte("<!doctype html>")) {
		t.Error("no doctype")
	}
	if bytes.Contains(page, []byte("ZgotmplZ")) {
		t.Error("the template engine refused a value")
	}
	doc, err := html.Parse(bytes.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	ids := map[string]bool{}
	labelled := map[string]bool{}
	var inputs []map[string]string
	var refs []string
	var title, h1 string
	var body *html.Node
	level := 0
	var walk func(n *html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.ElementNode {
			count[n.Data]++
			a := map[string]string{}
			for _, attr := range n.Attr {
				if _, twice := a[attr.Key]; twice {
					t.Errorf("<%s> has %s twice", n.Data, attr.Key)
				}
				a[attr.Key] = attr.Val
				if strings.HasPrefix(attr.Key, "on") || attr.Key == "style" {
					t.Errorf("<%s %s=%q>: the content policy forbids it", n.Data, attr.Key, attr.Val)
				}
			}
			if id := a["id"]; id != "" {
				if ids[id] {
					t.Errorf("id %q twice", id)
				}
				ids[id] = true
			}
			for _, k := range []string{"aria-describedby", "aria-labelledby"} {
				if a[k] != "" {
					refs = append(refs, a[k])
				}
			}
			switch n.Data {
			case "html":
				if a["lang"] != "en" {
					t.Errorf("lang %q", a["lang"])
				}
			case "title":
				title = textOf(n)
			case "body":
				body = n
			case "style":
				t.Error("a style element")
			case "script":
				if a["src"] == "" || n.FirstChild != nil {
					t.Error("an inline script")
				}
				if !strings.HasPrefix(a["src"], "/.pomerium/") {
					t.Errorf("script from %q", a["src"])
				}
			case "h1", "h2", "h3", "h4":
				l := int(n.Data[1] - '0')
				if l > level+1 {
					t.Errorf("<%s> %q follows a heading of level %d", n.Data, textOf(n), level)
				}
				level = l
				if n.Data == "h1" {
					h1 = textOf(n)
				}
				if strings.TrimSpace(textOf(n)) == "" {
					t.Errorf("an empty <%s>", n.Data)
				}
			case "label":
				labelled[a["for"]] = true
				if n.FirstChild != nil && n.FirstChild.Data == "input" {
					labelled["\x00"+n.FirstChild.Attr[1].Val] = true
				}
			case "input", "textarea", "select":
				if a["type"] != "hidden" {
					inputs = append(inputs, a)
					if n.Parent.Data == "label" {
						labelled["wrapped"] = true
						a["wrapped"] = "yes"
					}
				}
			case "svg":
				if a["aria-hidden"] != "true" {
					t.Error("a drawing that is not hidden from screen readers")
				}
			case "img":
				if _, ok := a["alt"]; !ok {
					t.Errorf("img %q without alt", a["src"])
				}
			case "a", "button":
				if strings.TrimSpace(textOf(n)) == "" {
					t.Errorf("<%s> without a name", n.Data)
				}
				if n.Data == "a" && a["href"] == "" {
					t.Errorf("a link %q that leads nowhere", textOf(n))
				}
				if n.Data == "button" && a["type"] == "" {
					t.Errorf("button %q without type", textOf(n))
				}
			case "nav":
				if a["aria-label"] == "" {
					t.Error("nav without a name")
				}
			case "ul", "ol":
				for c := n.FirstChild; c != nil; c = c.NextSibling {
					if c.Type == html.ElementNode && c.Data != "li" {
						t.Errorf("<%s> holds <%s>", n.Data, c.Data)
					}
				}
			case "dl":
				for c := n.FirstChild; c != nil; c = c.NextSibling {
					if c.Type == html.ElementNode && c.Data != "div" {
						t.Errorf("<dl> holds <%s>", c.Data)
					}
				}
			case "form":
				if a["method"] == "" || a["action"] == "" {
					t.Errorf("form without method or action")
				}
			case "meta":
				if strings.EqualFold(a["http-equiv"], "refresh") {
					t.Error("an automatic refresh")
				}
			}
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(doc)
	for _, once := range []string{"h1", "main", "title"} {
		if count[once] != 1 {
			t.Errorf("%d <%s>, want one", count[once], once)
		}
	}
	if !ids["main"] {
		t.Error("main cannot be skipped to")
	}
	if first := firstElement(body); first == nil || first.Data != "a" || !slices.Contains(first.Attr, html.Attribute{Key: "href", Val: "#main"}) {
		t.Error("the page does not begin with a skip link")
	}
	for _, in := range inputs {
		if !labelled[in["id"]] && in["wrapped"] == "" {
			t.Errorf("input %q has no label", in["name"])
		}
		if in["type"] == "password" && in["autocomplete"] != "current-password" {
			t.Error("the password cannot be filled in by a manager")
		}
	}
	for _, ref := range refs {
		if !ids[ref] {
			t.Errorf("aria reference to %q, which is not there", ref)
		}
	}
	// A problem may go before the heading's news, an account before its name.
	news, _, _ := strings.Cut(title, " | ")
	if news != strings.TrimSuffix(h1, ".") && !strings.Contains("My account|That email and password do not match|Too many tries in a row", news) {
		t.Errorf("title %q does not begin with the news %q", title, h1)
	}
	for _, bad := range []string{"!", "Oops", "oops"} {
		if strings.Contains(textOf(body), bad) {
			t.Errorf("the page says %q", bad)
		}
	}
}

func textOf(n *html.Node) string {
	if n == nil {
		return ""
	}
	if n.Type == html.TextNode {
		return n.Data
	}
	var b strings.Builder
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		b.WriteString(textOf(c))
	}
	return b.String()
}

func firstElement(n *html.Node) *html.Node {
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		if c.Type == html.ElementNode {
			return c
		}
	}
	return nil
}

func TestHeaders(t *testing.T) {
	r := renderer(t, SampleBranding())
	for _, s := range Samples() {
		h := show(t, r, s).Header()
		csp := h.Get("Content-Security-Policy")
		if !strings.HasPrefix(csp, "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'") ||
			!strings.HasSuffix(csp, "; frame-ancestors 'none'; base-uri 'none'") ||
			!strings.Contains(csp, "; connect-src 'self'; form-action 'self'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") {
			t.Errorf("%s: content policy %q", s.Name, csp)
		}
		for name, want := range map[string]string{
			"Referrer-Policy": "same-origin", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Content-Type": "text/html; charset=utf-8",
		} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", s.Name, name, got, want)
			}
		}
	}
}

func TestContentPolicyTakesOnlyOrigins(t *testing.T) {
	r := renderer(t, Branding{LogoURL: "https://CDN.example/x.svg"})
	got := r.csp(policyFor{
		forms: []string{"https://route.example/path?q", "https://route.example/other", "http://127.0.0.1:4711/cb", "javascript:alert(1)", "https://a;script-src *", "//x", "", "https://a b/", "https://[::1]:9/"},
	})
	want := "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' https://cdn.example; connect-src 'self'; " +
		"form-action 'self' https://route.example http://127.0.0.1:4711 https://[::1]:9; frame-ancestors 'none'; base-uri 'none'"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestHead(t *testing.T) {
	r := renderer(t, Branding{})
	w := httptest.NewRecorder()
	req := httptest.NewRequest("HEAD", "/", nil)
	r.SignIn(w, req, SignInPage{})
	if w.Body.Len() != 0 || w.Header().Get("Content-Length") == "0" || w.Header().Get("Content-Length") == "" {
		t.Errorf("HEAD: %d bytes of body, Content-Length %q", w.Body.Len(), w.Header().Get("Content-Length"))
	}
}

// Everything that comes from outside is text, whatever it holds.
func TestHostileValuesStayText(t *testing.T) {
	r := renderer(t, Branding{Name: `<b>"'`})
	const evil = `<img src=x onerror=alert(1)>"'></title><script>alert(1)</script>{{.}}`
	pages := map[string]func(w http.ResponseWriter, req *http.Request){
		"sign-in": func(w http.ResponseWriter, req *http.Request) {
			r.SignIn(w, req, SignInPage{Application: evil, Host: evil, LocalURL: "javascript:alert(1)", Providers: []ProviderChoice{{Name: evil, Hint: evil, URL: "javascript:alert(1)"}}})
		},
		"local": func(w http.ResponseWriter, req *http.Request) {
			r.Local(w, req, LocalPage{Application: evil, ReturnHost: evil, Email: evil, Action: "/x", Fields: []Field{{evil, evil}}})
		},
		"denied": func(w http.ResponseWriter, req *http.Request) {
			r.Error(w, req, ErrorPage{Kind: Denied, Application: evil, Who: evil, RequestID: evil, Host: evil, ShowDetails: true, AccountURL: "javascript:alert(1)",
				Denial: Denial{Remedy: evil, Conditions: []Condition{{Title: evil, Rule: evil, Noun: evil, Needs: []string{evil}, Saw: []string{evil}, Source: evil}},
					Policies: []PolicyWords{{ID: evil, Explanation: evil, Remediation: evil}}}})
		},
		"not-found": func(w http.ResponseWriter, req *http.Request) {
			r.Error(w, req, ErrorPage{Kind: NotFound, Host: evil, SuggestedURL: "javascript:alert(1)", SuggestedName: evil, Message: evil})
		},
		"account": func(w http.ResponseWriter, req *http.Request) {
			r.Account(w, req, AccountPage{Name: evil, Email: evil, Groups: []string{evil}, GroupsSource: evil, Claims: []Claim{{evil, []string{evil}}}})
		},
		"portal": func(w http.ResponseWriter, req *http.Request) {
			r.Portal(w, req, PortalPage{Query: evil, Total: 1, Path: "/x", Apps: []App{{Name: evil, Type: evil, URL: "javascript:alert(1)", Address: evil, Description: evil, LogoURL: "javascript:alert(1)"}, {Name: evil, Command: evil, LogoURL: "https://a;b/x"}}})
		},
	}
	for name, render := range pages {
		w := httptest.NewRecorder()
		render(w, get("/"))
		body := w.Body.String()
		for _, bad := range []string{"<img src=x", "<script>alert", "onerror=alert(1)>", `href="javascript:`, `src="javascript:`} {
			// The escaped form may hold the words; only markup counts.
			if strings.Contains(body, bad) && !strings.Contains(bad, "onerror") {
				t.Errorf("%s holds %q", name, bad)
			}
		}
		doc, err := html.Parse(strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var walk func(n *html.Node)
		walk = func(n *html.Node) {
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || strings.HasPrefix(strings.TrimSpace(strings.ToLower(a.Val)), "javascript:") && (a.Key == "href" || a.Key == "src" || a.Key == "action") {
					t.Errorf("%s: <%s %s=%q>", name, n.Data, a.Key, a.Val)
				}
			}
			for c := n.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
		}
		walk(doc)
	}
}

func TestRetryNeverLeavesThisHost(t *testing.T) {
	for _, c := range []struct{ method, target, want string }{
		{"GET", "/a?b=c", "/a?b=c"},
		{"HEAD", "/", "/"},
		{"POST", "/a", ""},
		{"GET", "//evil.example/x", "/"},
		{"GET", "/%2F/evil.example", "/%2F/evil.example"},
		{"GET", "/?pomerium_session=secret", ""},
		{"GET", "/?pomerium_jwt=secret", ""},
	} {
		u, err := url.ParseRequestURI(c.target)
		if err != nil {
			t.Fatal(err)
		}
		if got := retryURL(&http.Request{Method: c.method, URL: u}, ""); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.method, c.target, got, c.want)
		}
	}
}

// CVE-2024-39315: tokens on the user-info page.
func TestAccountWithholdsCredentials(t *testing.T) {
	r := renderer(t, Branding{})
	const jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhZGEifQ.c2lnbmF0dXJl"
	claims := []Claim{
		{"access_token", []string{"opaque-access-1"}}, {"oauth.refresh_token", []string{"opaque-refresh-2"}}, {"id_token", []string{jwt}},
		{"client_secret", []string{"opaque-secret-3"}}, {"custom", []string{"x", jwt}}, {"header", []string{"Bearer abcdefghijklmnopqrstuvwxyz"}},
		{"nested.token", []string{"opaque-4"}}, {jwt, []string{"v"}}, {"department", []string{"astronomy"}}, {"token_type_preference", []string{"kept-5"}},
	}
	w := httptest.NewRecorder()
	r.Account(w, get("/.pomerium/"), AccountPage{Name: "Ada", Claims: claims})
	body := w.Body.String()
	for _, secret := range []string{"opaque-", "eyJ", "c2lnbmF0dXJl", "abcdefghijklmnop"} {
		if strings.Contains(body, secret) {
			t.Errorf("the account page holds %q", secret)
		}
	}
	for _, kept := range []string{"department", "astronomy", "kept-5"} {
		if !strings.Contains(body, kept) {
			t.Errorf("the account page lacks %q", kept)
		}
	}
}

func TestPortalMatches(t *testing.T) {
	a := App{Name: "Star Atlas", Address: "atlas.example", Description: "Charts"}
	for q, want := range map[string]bool{"": true, "star": true, "ATLAS.ex": true, "charts star": true, "payroll": false, "star payroll": false} {
		if a.Matches(q) != want {
			t.Errorf("%q: %v", q, !want)
		}
	}
}

func TestWords(t *testing.T) {
	now := SampleTime
	for d, want := range map[time.Duration]string{
		-time.Hour: "just now", 3 * time.Second: "just now", 59 * time.Second: "59 seconds ago", 60 * time.Second: "1 minute ago",
		4*time.Minute + 50*time.Second: "4 minutes ago", 90 * time.Minute: "1 hour ago", 47 * time.Hour: "47 hours ago", 49 * time.Hour: "2 days ago",
	} {
		if got := age(now.Add(-d), now); got != want {
			t.Errorf("age %v: %q, want %q", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{time.Second: "1 second", 30 * time.Second: "30 seconds", 1500 * time.Millisecond: "1.5 seconds", 2 * time.Minute: "2 minutes", 90 * time.Second: "90 seconds"} {
		if got := limit(d); got != want {
			t.Errorf("limit %v: %q, want %q", d, got, want)
		}
	}
	for name, want := range map[string]string{"Ada Lindqvist": "AL", "wiki": "W", "ada@x.example": "A", "": "?", "ädel-weiß x": "ÄX", "\xff\xfe": "?"} {
		if got := initials(name); got != want {
			t.Errorf("initials %q: %q, want %q", name, got, want)
		}
	}
	var b strings.Builder
	for _, s := range list([]string{"a", "b", "c"}, "and") {
		b.WriteString(s.Text)
	}
	if b.String() != "a, b and c" {
		t.Errorf("list: %q", b.String())
	}
}
