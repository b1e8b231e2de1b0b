package memory

import (
	"testing"

	"postern/internal/record"
	"postern/internal/record/recordtest"
)

func TestContract(t *testing.T) {
	recordtest.Run(t, func(*testing.T) record.Store { return New() })
}
