package proxy

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"postern/internal/route"
)

// rewriteRule is one route as §3.5 speaks of it.
type rewriteRule struct {
	spec route.Spec
	keys RouteConfig
	to   string // path of the first to
}

// textPath is §3.5 for paths, written as the text has it; "!" is refused.
func (x *rewriteRule) textPath(path string) string {
	out, query := path, ""
	prefix := x.keys.PrefixRewrite
	if prefix == "" && x.to != "/" {
		prefix = x.to // an explicit rewrite cancels it
	}
	switch {
	case x.keys.RegexRewritePattern != "": // suppresses the rewrite by the path of to
		out = textReplace(x.keys.RegexRewritePattern, x.keys.RegexRewriteSubstitution, path)
		out, query, _ = strings.Cut(out, "?")
	case prefix == "":
		return path
	case x.spec.Regex != "" || x.spec.Path != "": // "or the whole path"
		out = prefix
	case x.spec.Prefix != "":
		out = prefix + strings.TrimPrefix(path, x.spec.Prefix)
	default:
		out = prefix + strings.TrimPrefix(path, "/")
	}
	if !strings.HasPrefix(out, "/") {
		out = "/" + out
	}
	// Ours: no rewriting makes another place than the judged one.
	if regexp.MustCompile(`/\.\.?(;[^/]*)?(/|$)`).MatchString(out) {
		return "!"
	}
	if query != "" {
		out += "?" + query
	}
	return out
}

// textReplace does it with the notation of Go's library.
func textReplace(pattern, substitution, in string) string {
	template := strings.ReplaceAll(substitution, "$", "$$")
	template = regexp.MustCompile(`\\[0-9]`).ReplaceAllStringFunc(template, func(s string) string { return "${" + s[1:] + "}" })
	template = strings.ReplaceAll(template, `\\`, `\`)
	return regexp.MustCompile(pattern).ReplaceAllString(in, template)
}

// textHost is the precedence of §3.5; "" is the Host of the chosen endpoint.
func (x *rewriteRule) textHost(authority, path string, header map[string]string) (host string, original bool) {
	name := func(s string) string {
		if !regexp.MustCompile(`^[a-z0-9.-]+(:[0-9]+)?$`).MatchString(s) {
			return "" // names no host
		}
		return s
	}
	k := &x.keys
	switch {
	case k.HostRewrite != "":
		return k.HostRewrite, true
	case k.HostRewriteHeader != "":
		return name(header[k.HostRewriteHeader]), true
	case k.HostPathRegexRewritePattern != "":
		return name(textReplace(k.HostPathRegexRewritePattern, k.HostPathRegexRewriteSubstitution, path)), true
	case k.PreserveHostHeader:
		return authority, false
	}
	return "", true
}

func TestRewritingIsTheTexts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 5))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	segments := []string{"a", "b", "ab", "a.b", "..a", "x;y", "%2B", "caf%C3%A9", "tenant", ""}
	refused, rewritten := 0, 0
	for range 2000 {
		x := rewriteRule{spec: route.Spec{From: "https://a.test", To: []string{"http://u"}}, to: pick("", "", "/", "/x", "/x/", "/deep/er")}
		switch r.IntN(4) {
		case 0:
			x.spec.Prefix = pick("/a", "/a/", "/", "/ab", "/tenant")
		case 1:
			x.spec.Path = pick("/a", "/a/b", "/")
		case 2:
			x.spec.Regex = pick("/a.*", "/[a-z]+", "/.*")
		}
		switch r.IntN(4) {
		case 0:
			x.keys.PrefixRewrite = pick("/", "/new", "/new/", "/n/e/w")
		case 1:
			x.keys.RegexRewritePattern = pick("^/a(.*)$", "a", "/([^/]*)/([^/]*)", "^/tenant/(a|b)?", "$")
			x.keys.RegexRewriteSubstitution = pick(`/z`, `/z$1\0`, `\0\0`, ``, `/q?from=a`, `/\\/`, `z`)
			if strings.Contains(x.keys.RegexRewritePattern, "(") {
				x.keys.RegexRewriteSubstitution += pick(`\1`, `/\1/y`)
			}
		}
		if r.IntN(4) == 0 {
			x.keys.HostRewrite = "literal.test"
		}
		if r.IntN(3) == 0 {
			x.keys.HostRewriteHeader = pick("X-Host", "X-Bad", "X-None")
		}
		if r.IntN(3) == 0 {
			x.keys.HostPathRegexRewritePattern, x.keys.HostPathRegexRewriteSubstitution = "^/([a-z]+).*$", pick(`\1.internal`, `\1.internal:8443`, `\0`)
		}
		x.keys.PreserveHostHeader = r.IntN(3) == 0
		rt, err := route.New(x.spec)
		if err != nil {
			t.Fatal(err)
		}
		rewriting, err := newRewriting(&x.keys, x.to)
		if err != nil {
			t.Fatalf("%+v: %v", x.keys, err)
		}
		for range 50 {
			path := ""
			for range 1 + r.IntN(4) {
				path += "/" + pick(segments...)
			}
			v := &fixedView{authority: "a.test" + pick("", ":8443"), path: path,
				header: map[string]string{"X-Host": "other.test", "X-Bad": "a b"}}
			say := fmt.Sprintf("prefix=%q path=%q regex=%q to=%q prefix_rewrite=%q regex_rewrite=%q->%q host=%q/%q/%q->%q/%v\n  %s%s", x.spec.Prefix, x.spec.Path, x.spec.Regex, x.to,
				x.keys.PrefixRewrite, x.keys.RegexRewritePattern, x.keys.RegexRewriteSubstitution, x.keys.HostRewrite, x.keys.HostRewriteHeader,
				x.keys.HostPathRegexRewritePattern, x.keys.HostPathRegexRewriteSubstitution, x.keys.PreserveHostHeader, v.authority, path)
			host, original := rewriting.host(v)
			if wantHost, wantOriginal := x.textHost(v.authority, path, v.header); host != wantHost || original != wantOriginal {
				t.Fatalf("%s: host %q, %v, want %q, %v", say, host, original, wantHost, wantOriginal)
			}
			if !rt.MatchesPath(path) {
				continue
			}
			got, query, err := rewriting.upstreamPath(rt, path)
			if query != "" {
				got += "?" + query
			}
			if err != nil {
				got = "!"
				refused++
			} else if got != path {
				rewritten++
			}
			if want := x.textPath(path); got != want {
				t.Fatalf("%s: %s, want %s", say, got, want)
			}
		}
	}
	if refused < 100 || rewritten < 10000 {
		t.Errorf("%d refused, %d rewritten: the cases do not reach far", refused, rewritten)
	}
}

// A request rewritten to another Host says which it was for, whatever the
// client says; where Host is kept, nobody says it (§3.5).
func TestOriginalHostGoesAlong(t *testing.T) {
	sent := []string{"X-Forwarded-Host", "evil.test", "X-Pomerium-Original-Host", "evil.test"}
	for _, c := range []struct {
		name       string
		keys       RouteConfig
		host       string // "": the endpoint's
		fwd, named string
	}{
		{"the endpoint's", RouteConfig{}, "", "app.test", "app.test"},
		{"literal", RouteConfig{HostRewrite: "other.test"}, "other.test", "app.test", "app.test"},
		{"preserved", RouteConfig{PreserveHostHeader: true}, "app.test", "", ""},
		{"removed", RouteConfig{HostRewrite: "other.test", RemoveRequestHeaders: []string{"x-forwarded-host"}}, "other.test", "", "app.test"},
	} {
		run := testDoor{routes: one(appRoute, c.keys)}.start(t)
		if c.host == "" {
			c.host = strings.TrimPrefix(run.echo.URL, "http://")
		}
		run.get("https://app.test/", sent...)
		got := run.echo.last()
		if got == nil {
			t.Fatalf("%s: nothing arrived", c.name)
		}
		if got.Host != c.host || got.Header.Get("X-Forwarded-Host") != c.fwd || got.Header.Get("X-Pomerium-Original-Host") != c.named {
			t.Errorf("%s: %q %q %q", c.name, got.Host, got.Header["X-Forwarded-Host"], got.Header["X-Pomerium-Original-Host"])
		}
	}
}
