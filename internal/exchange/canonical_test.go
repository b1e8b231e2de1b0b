package exchange

import (
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	strict := PathOptions{}
	keep := PathOptions{EscapedSlashes: KeepEscapedSlashes}
	unescape := PathOptions{EscapedSlashes: ForwardEscapedSlashes}
	for _, c := range []struct {
		raw  string
		o    PathOptions
		want string
		err  error
	}{
		{"", strict, "/", nil},
		{"/", strict, "/", nil},
		{"/plain/path.html;v=1", strict, "/plain/path.html;v=1", nil},
		{"/%61dmin", strict, "/admin", nil},
		{"/%7Euser/%2d%5f", strict, "/~user/-_", nil},
		{"/caf%c3%a9", strict, "/caf%C3%A9", nil},
		{"/caf\xc3\xa9", strict, "/caf%C3%A9", nil},
		{"/a/./b/../c", strict, "/a/c", nil},
		{"/a/%2e%2E/b", strict, "/b", nil},
		{"/.%2e/.%2e/etc", strict, "/etc", nil},
		{"/..", strict, "/", nil},
		{"/a/..", strict, "/", nil},
		{"/a/.", strict, "/a/", nil},
		{"/a/b/..", strict, "/a/", nil},
		{"/...", strict, "/...", nil},
		{"/.hidden/..x", strict, "/.hidden/..x", nil},
		{"/%252e%252e/x", strict, "/%252e%252e/x", nil},
		{"/%252Fx", strict, "/%252Fx", nil},
		{"//a///b", strict, "/a/b", nil},
		{"/a//../b", strict, "/a/b", nil},
		{"/a;x/..;/b", strict, "/a;x/..;/b", nil},
		{"/a%3bb%3Fc%23d", strict, "/a%3Bb%3Fc%23d", nil},
		{"/a%2fb", strict, "", ErrEscapedSlash},
		{"/a%5Cb", strict, "", ErrEscapedSlash},
		{`/a\b`, strict, "", ErrEscapedSlash},
		{"/a%2fb", keep, "/a%2Fb", nil},
		{`/a\..\b`, keep, "/a%5C..%5Cb", nil},
		{"/a%2fb", unescape, "/a/b", nil},
		{"/a%2f%2e%2e%5cb", unescape, "/b", nil},
		{"/%2F%2Fevil", unescape, "/evil", nil},
		{"/a#b", strict, "", ErrPathByte},
		{"/a b", strict, "", ErrPathByte},
		{"/a\x00", strict, "", ErrPathByte},
		{"/a%00b", strict, "", ErrPathByte},
		{"/a\x7f", strict, "", ErrPathByte},
		{"/%", strict, "", ErrPathEscape},
		{"/%4", strict, "", ErrPathEscape},
		{"/%zz", strict, "", ErrPathEscape},
		{"x", strict, "", ErrPathForm},
		{"*", strict, "", ErrPathForm},
		{"/a/../%41//b", PathOptions{KeepDots: true}, "/a/../%41/b", nil},
		{"//a/../b", PathOptions{KeepSlashes: true}, "//b", nil},
	} {
		got, _, err := CanonicalPath(c.raw, c.o)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("CanonicalPath(%q, %+v) = %q, %v; want %q, %v", c.raw, c.o, got, err, c.want, c.err)
		}
	}
	if _, redirect, _ := CanonicalPath("/a%2Fb", PathOptions{EscapedSlashes: RedirectEscapedSlashes}); !redirect {
		t.Error("unescape_and_redirect does not ask for a redirect")
	}
	if _, redirect, _ := CanonicalPath("/a/./b", PathOptions{EscapedSlashes: RedirectEscapedSlashes}); redirect {
		t.Error("a path without escaped slash is redirected")
	}
}

func TestCanonicalPathOfPlainPathsAllocatesNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() { CanonicalPath("/a/plain/path.html", PathOptions{}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { CanonicalAuthority("app.example.com:8443") }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzCanonicalPath proves that the canonical path is a fixed point, that it
// means the same file as the raw path to a client, and that nothing in it can
// be read in two ways.
func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/a/../b", "/%2e%2e/%61", "//x", "/%2fa\\b", "/%252e", "/a;b=c/..;/d", "/\xc3\xa9", "/.%2E//./..%2f"} {
		for o := range byte(16) {
			f.Add(s, o)
		}
	}
	f.Fuzz(func(t *testing.T, raw string, bits byte) {
		o := PathOptions{KeepDots: bits&1 != 0, KeepSlashes: bits&2 != 0, EscapedSlashes: EscapedSlashes(bits >> 2 & 3)}
		p, _, err := CanonicalPath(raw, o)
		if err != nil {
			if p != "" {
				t.Fatalf("error and path %q", p)
			}
			return
		}
		again, redirect, err := CanonicalPath(p, o)
		if err != nil || again != p || redirect {
			t.Fatalf("CanonicalPath(%q) = %q, whose canonical path is %q (%v)", raw, p, again, err)
		}
		if p == "" || p[0] != '/' || strings.ContainsAny(p, "#\\? \x00\r\n") {
			t.Fatalf("CanonicalPath(%q) = %q", raw, p)
		}
		decoded, err := url.PathUnescape(p)
		if err != nil {
			t.Fatalf("canonical path %q cannot be decoded: %v", p, err)
		}
		if !o.KeepDots {
			for seg := range strings.SplitSeq(p, "/") {
				if seg == "." || seg == ".." {
					t.Fatalf("CanonicalPath(%q) = %q keeps a dot segment", raw, p)
				}
			}
			if o.EscapedSlashes != KeepEscapedSlashes && strings.Contains(decoded+"/", "/../") {
				t.Fatalf("CanonicalPath(%q) = %q decodes to a dot segment", raw, p)
			}
		}
		if !o.KeepSlashes && strings.Contains(p, "//") {
			t.Fatalf("CanonicalPath(%q) = %q keeps doubled slashes", raw, p)
		}
		if o.EscapedSlashes != KeepEscapedSlashes && HasEscapedSlash(p) {
			t.Fatalf("CanonicalPath(%q) = %q keeps an escaped slash", raw, p)
		}
	})
}

func TestCanonicalAuthority(t *testing.T) {
	for _, c := range []struct{ raw, want, host string }{
		{"app.test", "app.test", "app.test"},
		{"APP.Test:8443", "app.test:8443", "app.test"},
		{"app.test.", "app.test", "app.test"},
		{"app.test.:443", "app.test:443", "app.test"},
		{"app.test:", "app.test", "app.test"},
		{"bücher.test", "xn--bcher-kva.test", "xn--bcher-kva.test"},
		{"ａpp。test", "app.test", "app.test"},
		{"[::1]", "[::1]", "::1"},
		{"[0:0:0:0:0:0:0:1]:443", "[::1]:443", "::1"},
		{"[2001:DB8::A]", "[2001:db8::a]", "2001:db8::a"},
		{"127.0.0.1:80", "127.0.0.1:80", "127.0.0.1"},
		{"under_score.test", "under_score.test", "under_score.test"},
	} {
		got, host, err := CanonicalAuthority(c.raw)
		if err != nil || got != c.want || host != c.host {
			t.Errorf("CanonicalAuthority(%q) = %q, %q, %v", c.raw, got, host, err)
		}
	}
	for _, raw := range []string{
		"", ".", "..", "a..b", ".a", "user@app.test", "user:pw@app.test", "a b", "a/b", "a\\b", "a%2eb", "a,b",
		"app.test:0", "app.test:65536", "app.test:080", "app.test:+80", "app.test:8a", "app.test:80:80", "::1", "[::1", "[::1]x",
		"[fe80::1%25eth0]", "[127.0.0.1]", "a\x00b", "a\nb", strings.Repeat("a", 254), "app.test#", "app.test?x",
	} {
		if got, _, err := CanonicalAuthority(raw); err == nil {
			t.Errorf("CanonicalAuthority(%q) = %q", raw, got)
		}
	}
}

func FuzzCanonicalAuthority(f *testing.F) {
	for _, s := range []string{"a.test:443", "[::1]:8", "BÜCHER.test.", "u@h", "xn--"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		a, host, err := CanonicalAuthority(raw)
		if err != nil {
			return
		}
		again, host2, err := CanonicalAuthority(a)
		if err != nil || again != a || host2 != host {
			t.Fatalf("CanonicalAuthority(%q) = %q, whose canonical form is %q (%v)", raw, a, again, err)
		}
		if strings.ToLower(a) != a || strings.ContainsAny(a, "@/\\?# \r\n%") {
			t.Fatalf("CanonicalAuthority(%q) = %q", raw, a)
		}
	})
}
