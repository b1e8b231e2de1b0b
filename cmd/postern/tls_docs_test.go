package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The transcripts of docs/tls.md are what the commands print, keys aside.
func TestTLSPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	key := regexp.MustCompile(`ech=\S+`)
	ran := 0
	for _, m := range regexp.MustCompile("(?ms)^```console\n\\$ postern ech-key (.*?)\n(.*?)^```").FindAllSubmatch(page, -1) {
		ran++
		got, err := echKeyRun(strings.Fields(string(m[1]))...)
		if want := string(m[2]); err != nil || key.ReplaceAllString(got, "KEY") != key.ReplaceAllString(want, "KEY") {
			t.Errorf("ech-key %s prints\n%s\nbut the page says\n%s", m[1], got, want)
		}
	}
	if ran == 0 {
		t.Error("no transcript was found")
	}
}
