package system

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// The gRPC health check is our own codec: here it asks the server that
// everybody uses, google.golang.org/grpc, about a service and about the whole.
func TestHealthOfRealGRPC(t *testing.T) {
	cmd := exec.Command(filepath.Join(top, ".bin", "grpchealth"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: make deps builds it", err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	lines.Scan()
	addr := lines.Text()
	set := func(line string) {
		t.Helper()
		io.WriteString(in, line+"\n")
		if !lines.Scan() || lines.Text() != line {
			t.Fatalf("the server did not take %q: %q", line, lines.Text())
		}
	}
	route := func(name, check string) string {
		return fmt.Sprintf(`
  - from: https://%s.localhost
    to: h2c://%s
    allow_public_unauthenticated_access: true
    health_checks:
      - {timeout: 5s, interval: 0.05s, no_traffic_interval: 0.05s, healthy_threshold: 1, unhealthy_threshold: 1, grpc_health_check: %s}`, name, addr, check)
	}
	p := servertest.Start(t, "routes:"+route("whole", "{}")+route("app", "{service_name: app}")+route("unknown", "{service_name: nobody}")+"\n")
	is := func(want map[string]string) {
		t.Helper()
		err := servertest.Eventually(func() error {
			got := map[string]string{}
			for _, u := range p.Status().Upstreams {
				got[strings.TrimSuffix(strings.TrimPrefix(u.From, "https://"), ".localhost")] = u.Reason
			}
			for name, reason := range want {
				if !strings.Contains(got[name], reason) || (reason == "") != (got[name] == "") {
					return fmt.Errorf("%s: %q, want %q", name, got[name], reason)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	is(map[string]string{"whole": "", "app": "service is unknown", "unknown": "service is unknown"})
	set("app SERVING")
	is(map[string]string{"whole": "", "app": ""})
	set("app NOT_SERVING")
	is(map[string]string{"app": "NOT_SERVING"})
	set("- NOT_SERVING")
	set("app SERVING")
	is(map[string]string{"whole": "NOT_SERVING", "app": ""})
	set("- UNKNOWN")
	is(map[string]string{"whole": "UNKNOWN"})
}
