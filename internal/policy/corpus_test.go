package policy_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/policy/policytest"
)

// TestCorpus runs the case files of testdata, one file per topic.
func TestCorpus(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no case files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			var out bytes.Buffer
			if code := policytest.Run([]string{file}, policytest.Options{}, &out); code != policytest.ExitPassed {
				t.Errorf("exit code %d\n%s", code, out.String())
			}
		})
	}
}
