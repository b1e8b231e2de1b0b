package authz

import (
	"bytes"
	"testing"

	"postern/internal/policy/policytest"
)

func TestCases(t *testing.T) {
	keys, _ := newKeys(t)
	var out bytes.Buffer
	if code := policytest.Run([]string{"testdata/cases.yaml"}, policytest.Options{Evaluator: Cases{Keys: keys}}, &out); code != 0 {
		t.Errorf("exit %d\n%s", code, out.String())
	}
	if !bytes.Contains(out.Bytes(), []byte("15 passed, 0 failed")) {
		t.Errorf("not every case ran: %s", out.String())
	}
}
