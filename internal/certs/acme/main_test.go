package acme_test

import (
	"flag"
	"os"
	"testing"
)

// The tests wait for servers most of the time, so more run at once than there
// are cores.
func TestMain(m *testing.M) {
	flag.Parse()
	_ = flag.Set("test.parallel", "8")
	os.Exit(m.Run())
}
