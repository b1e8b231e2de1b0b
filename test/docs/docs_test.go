// Package docs runs the examples of the documentation: what a page shows as a
// configuration must load, what it shows as a policy test must pass, and what
// it links to must exist.
package docs

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/internal/config"
	"postern/internal/policy/policytest"
)

const root = "../.."

func pages(t *testing.T) []string {
	t.Helper()
	out, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	return append(out, filepath.Join(root, "README.md"), filepath.Join(root, "ARCHITECTURE.md"), filepath.Join(root, "CONTRIBUTING.md"))
}

var block = regexp.MustCompile("(?ms)^```yaml\n# ([a-z-]+\\.yaml)\n(.*?)^```")

func TestExamplesRun(t *testing.T) {
	configs, tests := 0, 0
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			switch string(m[1]) {
			case "config.yaml":
				configs++
				// Files that the reader has and we do not are left out.
				body := regexp.MustCompile(`(?m)^(certificates:\n(  .*\n)+|.*_file: .*\n)`).ReplaceAll(m[2], nil)
				if _, problems := config.Load(t.Context(), config.Text(page, config.YAML, body)); config.Fatal(problems) {
					t.Errorf("%s: the configuration does not load: %v\n%s", page, problems, body)
				}
			case "policy-test.yaml":
				tests++
				file := filepath.Join(t.TempDir(), "policy-test.yaml")
				if err := os.WriteFile(file, m[2], 0o600); err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if code := policytest.Run([]string{file}, policytest.Options{}, &out); code != 0 {
					t.Errorf("%s: the policy test fails:\n%s", page, out.String())
				}
			default:
				t.Errorf("%s: an example is called %s, which nobody runs", page, m[1])
			}
		}
	}
	if configs < 2 || tests < 1 {
		t.Errorf("found %d configurations and %d policy tests: the search for examples is broken", configs, tests)
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			to := string(m[1])
			if strings.Contains(to, "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), to)); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, to)
			}
		}
	}
}
