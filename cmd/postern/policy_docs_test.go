package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The transcripts of docs/policy-tools.md are what the commands print for the
// files of the page.
func TestPolicyToolsPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/policy-tools.md")
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	for _, m := range regexp.MustCompile("(?ms)^```yaml\n# (?:file: )?([a-z-]+\\.yaml)\n.*?^```").FindAllSubmatch(page, -1) {
		text := strings.TrimSuffix(strings.TrimPrefix(string(m[0]), "```yaml\n"), "```")
		if err := os.WriteFile(filepath.Base(string(m[1])), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ran := 0
	for _, m := range regexp.MustCompile("(?ms)^```console\n\\$ postern (.*?)\n(.*?)^```").FindAllSubmatch(page, -1) {
		ran++
		var out bytes.Buffer
		root := rootCommand()
		root.SetArgs(strings.Fields(string(m[1])))
		root.SetOut(&out)
		root.SetErr(&out)
		_ = root.ExecuteContext(t.Context()) // the exit status is part of other tests
		if got, want := steady(out.String()), steady(string(m[2])); got != want {
			t.Errorf("postern %s prints\n%s\nbut the page says\n%s", m[1], got, want)
		}
	}
	if ran < 5 {
		t.Errorf("only %d transcripts were found", ran)
	}
}

// steady leaves out what differs from run to run, and blanks that nobody
// sees.
func steady(s string) string {
	s = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`).ReplaceAllString(s, "TIME")
	return regexp.MustCompile(`(?m) +$`).ReplaceAllString(s, "")
}
