package session

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
)

var linkNow = time.Unix(1700000000, 0)

func mustURL(t testing.TB, s string) *url.URL {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// security-cases: CVE-2021-29652. Every parameter of a signed link counts.
func TestSignedLinkTamper(t *testing.T) {
	k := testKeys(t)
	u := SignLink(k, mustURL(t, "https://auth.example.com/.pomerium/sign_in?b=2&a=1&a=3&pomerium_redirect_uri=https%3A%2F%2Fapp%2F%3Fx%3Dy"), linkNow)
	if err := VerifyLink(k, u, linkNow); err != nil {
		t.Fatal(err)
	}
	// Order of the query does not matter, values and their order do.
	shuffled := *u
	parts := strings.Split(u.RawQuery, "&")
	shuffled.RawQuery = strings.Join(append(parts[2:], parts[:2]...), "&")
	if err := VerifyLink(k, &shuffled, linkNow); err != nil {
		t.Errorf("shuffled query refused: %v", err)
	}
	for name := range u.Query() {
		for what, change := range map[string]func(url.Values){
			"changed": func(q url.Values) { q[name][0] += "0" },
			"removed": func(q url.Values) { q.Del(name) },
			"doubled": func(q url.Values) { q.Add(name, q.Get(name)) },
			"emptied": func(q url.Values) { q.Set(name, "") },
		} {
			q := u.Query()
			change(q)
			bad := *u
			bad.RawQuery = q.Encode()
			if err := VerifyLink(k, &bad, linkNow); !errors.Is(err, ErrLink) {
				t.Errorf("%s %s: accepted", name, what)
			}
		}
	}
	for what, change := range map[string]func(*url.URL){
		"host":      func(u *url.URL) { u.Host = "other.example.com" },
		"port":      func(u *url.URL) { u.Host += ":443" },
		"path":      func(u *url.URL) { u.Path = "/.pomerium/sign_out" },
		"added":     func(u *url.URL) { u.RawQuery += "&c=1" },
		"semicolon": func(u *url.URL) { u.RawQuery += ";c=1" },
		"malformed": func(u *url.URL) { u.RawQuery += "&%zz" },
		"unsigned":  func(u *url.URL) { u.RawQuery = "a=1" },
		"empty":     func(u *url.URL) { u.RawQuery = "" },
	} {
		bad := *u
		change(&bad)
		if err := VerifyLink(k, &bad, linkNow); !errors.Is(err, ErrLink) {
			t.Errorf("%s: accepted", what)
		}
	}
	if err := VerifyLink(testKeys(t), u, linkNow); err == nil {
		t.Error("another's keys accept it")
	}
}

func TestSignedLinkTimes(t *testing.T) {
	k := testKeys(t)
	u := SignLink(k, mustURL(t, "https://a.example/x"), linkNow)
	for d, want := range map[time.Duration]error{
		-61 * time.Second: ErrLink, -60 * time.Second: nil, 0: nil,
		6 * time.Minute: nil, 6*time.Minute + time.Second: ErrLinkExpired,
	} {
		if err := VerifyLink(k, u, linkNow.Add(d)); !errors.Is(err, want) || (want == nil) != (err == nil) {
			t.Errorf("after %v: %v, want %v", d, err, want)
		}
	}
}

func FuzzSignedLink(f *testing.F) {
	k := testKeys(f)
	f.Add(SignLink(k, mustURL(f, "https://a.example/x?y=z"), linkNow).RawQuery, "/x")
	f.Add("pomerium_signature=&pomerium_issued=0&pomerium_expiry=0", "")
	f.Fuzz(func(t *testing.T, query, path string) {
		u := &url.URL{Scheme: "https", Host: "a.example", Path: path, RawQuery: query}
		if err := VerifyLink(testKeys(t), u, linkNow); err == nil {
			t.Fatal("accepted without a signature")
		}
		if s := SignLink(k, u, linkNow); !strings.Contains(query, ";") {
			if err := VerifyLink(k, s, linkNow); err != nil && len(query) < MaxLinkSize/4 {
				t.Fatalf("own link refused: %v (%q)", err, s)
			}
		}
	})
}

// security-cases: CVE-2021-29651, CVE-2021-21291. Open redirects.
func TestRedirectCorpus(t *testing.T) {
	for _, good := range []string{
		"https://app.example.com", "https://app.example.com/", "https://app.example.com:8443/a/b?c=d&e=%2F#f",
		"http://localhost:1234/cb", "http://127.0.0.1:5000/", "http://[::1]:5000/", "https://xn--bcher-kva.example/",
		"https://a_b.example/x//y", "https://app.example.com/?u=https://other/@x",
	} {
		if _, err := ParseRedirect(good); err != nil {
			t.Errorf("%q refused: %v", good, err)
		}
	}
	for _, bad := range RedirectCorpus {
		if u, err := ParseRedirect(bad); err == nil {
			t.Errorf("%q accepted as host %q", bad, u.Host)
		}
	}
}

// RedirectCorpus are addresses that browsers have read differently from
// servers.
var RedirectCorpus = []string{
	"", "/", "//evil.example", "///evil.example", "////evil.example/", `\\evil.example`, `/\evil.example`, `https:\\evil.example`,
	`https://app.example.com\@evil.example`, `https://app.example.com\.evil.example`, "https:/evil.example", "https:evil.example",
	"https:///evil.example", "https://user@evil.example", "https://app.example.com@evil.example", "https://app.example.com:443@evil.example",
	"https://@evil.example", "https://user:pw@app.example.com/", "javascript:alert(1)", "JAVASCRIPT://app.example.com/%0aalert(1)",
	"data:text/html,x", "ftp://app.example.com", "HTTPS://app.example.com", " https://app.example.com", "https://app.example.com ",
	"\thttps://app.example.com", "ht\ntps://app.example.com", "https://app.example.com\r\nSet-Cookie: a=b", "https://app\x00.example.com",
	"https://app.example.com/\x7f", "https://b\u00fccher.example/", "https://\u0435vil.example/", "https://app.example.com\u3002evil.example",
	"https://app\u2024example.com", "https://app.example.com%2eevil.example", "https://app.example.com%2f@evil.example", "https://%65vil.example",
	"https://app.example.com:", "https://app.example.com:0", "https://app.example.com:00443", "https://app.example.com:99999", "https://app.example.com:44x",
	"https://app.example.com:443:443", "https://[::1", "https://[::1%25eth0]/", "https://[evil.example]/", "https://::1/", "https://.example.com/",
	"https://app..example.com/", "https://app.example.com./", "https://-a.example/", "https://?x", "https://#x", "https://",
	"https://0x7f.1/", "https://2130706433/", "https://0177.0.0.1/", "https://127.1/", "https://app.example.com/\u00a0", "https://app.example.com;evil.example/",
	"https://app.example.com,evil.example/", "https://app.example.com&evil.example/", "https://a*b.example/",
}

func TestProgramRedirect(t *testing.T) {
	list := []string{"localhost", "corp.com"}
	for raw, ok := range map[string]bool{
		"http://localhost:1234/":         true,
		"https://LOCALHOST/x":            true,
		"http://127.0.0.1:9/":            true,
		"http://127.9.9.9:9/":            true,
		"http://[::1]:9/":                true,
		"http://[::ffff:127.0.0.1]:9/":   true,
		"https://corp.com/":              true,
		"https://evilcorp.com/":          false,
		"https://corp.com.evil.example/": false,
		"https://x.corp.com/":            false,
		"https://localhost.evil.com/":    false,
		"https://128.0.0.1/":             false,
		"https://corp.com@evil.com/":     false,
		"//localhost/":                   false,
		"":                               false,
	} {
		if _, err := CheckProgramRedirect(raw, list); (err == nil) != ok {
			t.Errorf("%q: %v, want ok %v", raw, err, ok)
		}
	}
	if _, err := CheckProgramRedirect("http://127.0.0.1/", []string{"corp.com"}); err == nil {
		t.Error("loopback without localhost in the list")
	}
	if _, err := CheckProgramRedirect("http://localhost/", nil); err == nil {
		t.Error("an empty list allows something")
	}
}

func FuzzRedirect(f *testing.F) {
	for _, s := range RedirectCorpus {
		f.Add(s)
	}
	f.Add("https://app.example.com:8443/a?b#c")
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := ParseRedirect(raw)
		if err != nil {
			if !errors.Is(err, ErrRedirect) {
				t.Fatalf("unwrapped error %v", err)
			}
			return
		}
		// What was accepted names its host right after the scheme, and
		// printing and parsing again changes nothing about where it goes.
		rest := raw[strings.Index(raw, "://")+3:]
		if !strings.HasPrefix(strings.ToLower(rest), strings.ToLower(u.Host)) || u.User != nil {
			t.Fatalf("%q goes to %q", raw, u.Host)
		}
		if again, err := ParseRedirect(u.String()); err != nil || again.Host != u.Host {
			t.Fatalf("%q is not stable: %v", raw, err)
		}
	})
}

func TestCookieNames(t *testing.T) {
	if n := NewCookieNames("", ""); n.Session != "__Host-_pomerium" || n.SignIn != "__Host-_pomerium_authenticate" {
		t.Errorf("default names: %+v", n)
	}
	if n := NewCookieNames("sso", ""); n.Session != "sso" || n.SignIn != "sso_authenticate" {
		t.Errorf("own name: %+v", n)
	}
	if n := NewCookieNames("", "example.com"); n.Session != "_pomerium" {
		t.Errorf("with domain: %+v", n)
	}
	n := NewCookieNames("", "")
	if n.Ours("_pomerium") || n.Ours("__host-_pomerium") || !n.Ours("__Host-_pomerium_nonce") {
		t.Error("names are not matched exactly")
	}
	got := CookieValues(`a=1; sess=x;sess = y; xsess=z; sess="q"; sess=x`, "sess", nil)
	if strings.Join(got, "|") != `x|"q"|x` {
		t.Errorf("values %q", got)
	}
	for _, c := range []struct {
		in          []string
		v           string
		present, ok bool
	}{{nil, "", false, false}, {[]string{"a"}, "a", true, true}, {[]string{"a", "a"}, "a", true, true}, {[]string{"a", "b"}, "", true, false}, {[]string{""}, "", true, false}} {
		if v, p, ok := SingleValue(c.in); v != c.v || p != c.present || ok != c.ok {
			t.Errorf("%q: %q %v %v", c.in, v, p, ok)
		}
	}
}

// security-cases: CVE-2026-40574. Malformed addresses are none.
func TestCanonicalEmail(t *testing.T) {
	for in, want := range map[string]string{
		"Ada@Example.com": "ada@example.com", "a.b+c@corp.com": "a.b+c@corp.com", "root@localhost": "root@localhost",
		"a@evil@corp.com": "", `"a@evil"@corp.com`: "", "@corp.com": "", "a@": "", "a": "", "": "", "a@corp..com": "", "a@.corp.com": "",
		"a@corp.com.": "", " a@corp.com": "", "a@corp.com\n": "", "a@corp.com,b@x.com": "", "<a@corp.com>": "", "a@[127.0.0.1]": "",
		"\u00e9@corp.com": "", "a@c\u00f6rp.com": "", "a@corp.com\x00": "", ".a@corp.com": "", "a..b@corp.com": "", "a(x)@corp.com": "",
		strings.Repeat("a", 65) + "@corp.com": "",
	} {
		if got := CanonicalEmail(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
