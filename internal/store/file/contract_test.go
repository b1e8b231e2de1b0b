package file

import (
	"testing"

	"postern/internal/record"
	"postern/internal/record/recordtest"
)

func TestContract(t *testing.T) {
	recordtest.Run(t, func(t *testing.T) record.Store {
		s, err := Open(t.TempDir(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
