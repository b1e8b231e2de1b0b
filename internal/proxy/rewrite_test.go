package proxy

import (
	"testing"

	"postern/internal/exchange"
	"postern/internal/route"
)

// fixedView is a View for unit tests.
type fixedView struct {
	exchange.View
	method, scheme, authority, path, query string
	hasQuery                               bool
	header                                 map[string]string
	peer                                   exchange.Peer
}

func (v *fixedView) Method() string            { return v.method }
func (v *fixedView) Scheme() string            { return v.scheme }
func (v *fixedView) Authority() string         { return v.authority }
func (v *fixedView) Path() string              { return v.path }
func (v *fixedView) RawQuery() string          { return v.query }
func (v *fixedView) HasQuery() bool            { return v.hasQuery }
func (v *fixedView) Header(name string) string { return v.header[name] }
func (v *fixedView) Peer() *exchange.Peer      { return &v.peer }

func TestPathRewriting(t *testing.T) {
	for _, c := range []struct {
		name   string
		spec   route.Spec
		keys   RouteConfig
		toPath string
		in     map[string]string // canonical path -> forwarded path?query, "!" refused
	}{
		{"none", route.Spec{}, RouteConfig{}, "", map[string]string{"/a/b": "/a/b", "/%2B": "/%2B"}},
		{"prefix_rewrite on a prefix route", route.Spec{Prefix: "/a"}, RouteConfig{PrefixRewrite: "/b"}, "",
			map[string]string{"/a": "/b", "/a/x": "/b/x", "/ax": "/bx"}},
		{"prefix_rewrite to root is textual", route.Spec{Prefix: "/a/"}, RouteConfig{PrefixRewrite: "/"}, "",
			map[string]string{"/a/": "/", "/a/x": "/x"}},
		{"prefix_rewrite without prefix", route.Spec{}, RouteConfig{PrefixRewrite: "/b/"}, "", map[string]string{"/x": "/b/x", "/": "/b/"}},
		{"prefix_rewrite replaces all of a path", route.Spec{Path: "/a/x"}, RouteConfig{PrefixRewrite: "/b"}, "", map[string]string{"/a/x": "/b"}},
		{"prefix_rewrite replaces all of a regex", route.Spec{Regex: "/a/.*"}, RouteConfig{PrefixRewrite: "/b"}, "", map[string]string{"/a/x/y": "/b"}},
		{"implicit from to, joined textually", route.Spec{}, RouteConfig{}, "/x", map[string]string{"/foo": "/xfoo"}},
		{"implicit from to with slash", route.Spec{}, RouteConfig{}, "/x/", map[string]string{"/foo": "/x/foo", "/": "/x/"}},
		{"implicit root is none", route.Spec{Prefix: "/a"}, RouteConfig{}, "/", map[string]string{"/a/b": "/a/b"}},
		{"explicit beats implicit", route.Spec{Prefix: "/a"}, RouteConfig{PrefixRewrite: "/b"}, "/x", map[string]string{"/a/c": "/b/c"}},
		{"regex suppresses implicit", route.Spec{}, RouteConfig{RegexRewritePattern: "^/a/(.*)$", RegexRewriteSubstitution: `/b/\1`}, "/x",
			map[string]string{"/a/c": "/b/c", "/q": "/q"}},
		{"regex replaces every match", route.Spec{}, RouteConfig{RegexRewritePattern: "o", RegexRewriteSubstitution: `0`}, "",
			map[string]string{"/foo": "/f00"}},
		{"regex groups", route.Spec{}, RouteConfig{RegexRewritePattern: `^/(\w+)/(\w+)$`, RegexRewriteSubstitution: `/\2/\1/\0$1\\`}, "",
			map[string]string{"/a/b": "/b/a//a/b$1\\"}},
		{"regex may write a query", route.Spec{}, RouteConfig{RegexRewritePattern: `^/u/(.*)$`, RegexRewriteSubstitution: `/u?name=\1`}, "",
			map[string]string{"/u/a": "/u?name=a"}},
		{"no way out of the prefix", route.Spec{Prefix: "/a"}, RouteConfig{PrefixRewrite: "/b/"}, "",
			map[string]string{"/a../secret": "!", "/a./x": "!", "/a..;x/y": "!", "/a.../x": "/b/.../x"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.From, c.spec.To = "https://a.test", []string{"http://u"}
			rt, err := route.New(c.spec)
			if err != nil {
				t.Fatal(err)
			}
			r, err := newRewriting(&c.keys, c.toPath)
			if err != nil {
				t.Fatal(err)
			}
			for in, want := range c.in {
				path, query, err := r.upstreamPath(rt, in)
				if query != "" {
					path += "?" + query
				}
				if err != nil {
					path = "!"
				}
				if path != want {
					t.Errorf("%s: got %s, want %s", in, path, want)
				}
			}
		})
	}
}

func TestBadRewritingIsRefused(t *testing.T) {
	for _, keys := range []RouteConfig{
		{PrefixRewrite: "/a", RegexRewritePattern: "x"},
		{RegexRewritePattern: "("},
		{RegexRewritePattern: "x", RegexRewriteSubstitution: `\1`},
		{RegexRewritePattern: "x", RegexRewriteSubstitution: `\`},
		{RegexRewritePattern: "x", RegexRewriteSubstitution: `\d`},
		{HostPathRegexRewritePattern: "["},
		{PrefixRewrite: "/%zz"},
		{HostRewrite: "a\r\nb"},
	} {
		if _, err := newRewriting(&keys, ""); err == nil {
			t.Errorf("%+v accepted", keys)
		}
	}
}

func TestHostRewriting(t *testing.T) {
	v := &fixedView{authority: "app.test:8443", path: "/tenant/x", header: map[string]string{"X-Host": "Other.Test", "X-Bad": "a b"}}
	for _, c := range []struct {
		keys      RouteConfig
		host      string
		rewritten bool
	}{
		{RouteConfig{}, "", true},
		{RouteConfig{PreserveHostHeader: true}, "app.test:8443", false},
		{RouteConfig{HostRewrite: "lit.test", HostRewriteHeader: "X-Host", PreserveHostHeader: true}, "lit.test", true},
		{RouteConfig{HostRewriteHeader: "X-Host", PreserveHostHeader: true}, "other.test", true},
		{RouteConfig{HostRewriteHeader: "X-Missing"}, "", true},
		{RouteConfig{HostRewriteHeader: "X-Bad"}, "", true},
		{RouteConfig{HostPathRegexRewritePattern: "^/([^/]+)/.*$", HostPathRegexRewriteSubstitution: `\1.internal`}, "tenant.internal", true},
	} {
		r, err := newRewriting(&c.keys, "")
		if err != nil {
			t.Fatal(err)
		}
		if host, rewritten := r.host(v); host != c.host || rewritten != c.rewritten {
			t.Errorf("%+v: got %q, %v", c.keys, host, rewritten)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestRedirectLocation(t *testing.T) {
	rt, err := route.New(route.Spec{From: "https://a.test", Prefix: "/old", Redirect: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rd     Redirect
		scheme string
		host   string
		want   string
	}{
		{Redirect{}, "https", "a.test", "https://a.test/old/x?q=1"},
		{Redirect{HTTPSRedirect: ptr(true), SchemeRedirect: ptr("ftp")}, "http", "a.test:80", "https://a.test/old/x?q=1"},
		{Redirect{SchemeRedirect: ptr("http")}, "https", "a.test:443", "http://a.test/old/x?q=1"},
		{Redirect{HTTPSRedirect: ptr(true)}, "http", "a.test:8080", "https://a.test:8080/old/x?q=1"},
		{Redirect{HostRedirect: ptr("b.test")}, "https", "a.test:8443", "https://b.test/old/x?q=1"},
		{Redirect{PortRedirect: ptr(uint32(9))}, "https", "a.test:8443", "https://a.test:9/old/x?q=1"},
		{Redirect{PortRedirect: ptr(uint32(9))}, "https", "[::1]", "https://[::1]:9/old/x?q=1"},
		{Redirect{PathRedirect: ptr("/p"), PrefixRewrite: ptr("/n")}, "https", "a.test", "https://a.test/p?q=1"},
		{Redirect{PathRedirect: ptr("/p?own=1")}, "https", "a.test", "https://a.test/p?own=1"},
		{Redirect{PrefixRewrite: ptr("/new")}, "https", "a.test", "https://a.test/new/x?q=1"},
		{Redirect{StripQuery: ptr(true)}, "https", "a.test", "https://a.test/old/x"},
	} {
		v := &fixedView{scheme: c.scheme, authority: c.host, path: "/old/x", query: "q=1", hasQuery: true}
		if got := c.rd.location(rt, v); got != c.want {
			t.Errorf("%+v: got %s, want %s", c.rd, got, c.want)
		}
	}
}
