package exchange

import "testing"

func TestHasDotParameter(t *testing.T) {
	for path, want := range map[string]bool{
		"/a/..;/b": true, "/..;x": true, "/.;/b": true, "/a/..%3B/b": true, "/a/.%3Bx": true,
		"/": false, "/.": false, "/..": false, "/a/...;/b": false, "/a;b/..x;": false, "/a..;/b": false, "/..a;b": false, "/.well-known/x;y": false,
	} {
		if got := HasDotParameter(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}

func TestSameName(t *testing.T) {
	for _, pair := range [][2]string{{"X-Forwarded-For", "x_forwarded_FOR"}, {"a", "A"}, {"", ""}} {
		if !SameName(pair[0], pair[1]) || FoldName(pair[0]) != FoldName(pair[1]) {
			t.Errorf("%q and %q differ", pair[0], pair[1])
		}
	}
	for _, pair := range [][2]string{{"X-A", "X-B"}, {"X-A", "X-AB"}, {"X-A", "XA-"}} {
		if SameName(pair[0], pair[1]) {
			t.Errorf("%q and %q are the same", pair[0], pair[1])
		}
	}
}
