//go:build extended

package acme

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestGoogleCloudStorage(t *testing.T) {
	bin, err := filepath.Abs("../../../.bin/gcs")
	if err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin, ".")
	build.Dir = "../../../test/tools/gcs"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the server cannot be built: %v\n%s", err, out)
	}
	cmd := exec.Command(bin)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	addr, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimSpace(addr))
	u, err := parseStorage("gs://certificates/some/place")
	if err != nil {
		t.Fatal(err)
	}
	o, err := newGCS(u)
	if err != nil {
		t.Fatal(err)
	}
	s := newObjectStorage(o, u.prefix, quietLog)
	testStorage(t, s)
	testExpiry(t, s, newObjectStorage(o, u.prefix, quietLog))
}
