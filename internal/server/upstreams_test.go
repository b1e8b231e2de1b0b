package server_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// A host that is out of use shows in status, metrics and log, with the reason;
// the route's other host serves, and with the last one gone the client is told
// 503.
func TestUnhealthyHostShows(t *testing.T) {
	other := servertest.NewApp(t, "other")
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	p := servertest.Start(t, `
metrics_address: 127.0.0.1:`+port+`
routes:
  - from: https://app.localhost
    name: app
    to: [@APP@, @OTHER@]
    allow_public_unauthenticated_access: true
    healthy_panic_threshold: 0
    health_checks:
      - {timeout: 5s, interval: 0.05s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: /healthz}}
`, servertest.Options{Vars: map[string]string{"OTHER": other.URL}})
	agent := p.Agent()
	metrics := func() string {
		resp, err := http.Get("http://127.0.0.1:" + port + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	shows := func(healthy, out int) {
		t.Helper()
		if err := servertest.Eventually(func() error {
			agent.Request("GET", "https://app.localhost/") // without traffic checks are rare
			s, m := p.Status(), metrics()
			if s.UpstreamsOut != out || len(s.Upstreams) != out {
				return fmt.Errorf("%d out of use: %+v", s.UpstreamsOut, s.Upstreams)
			}
			for name, n := range map[string]int{"healthy": healthy, "total": 2} {
				if !strings.Contains(m, fmt.Sprintf(`envoy_cluster_membership_%s{envoy_cluster_name="app`, name)) {
					return fmt.Errorf("there is no metric of %s hosts", name)
				}
				for line := range strings.Lines(m) {
					if strings.HasPrefix(line, "envoy_cluster_membership_"+name+"{") && strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]) != fmt.Sprint(n) {
						return fmt.Errorf("%s, want %d", line, n)
					}
				}
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	shows(2, 0)
	other.Close()
	shows(1, 1)
	u := p.Status().Upstreams[0]
	if u.From != "https://app.localhost" || u.State != "unhealthy" || !strings.Contains(u.Reason, "refused") || u.Since.IsZero() || "http://"+u.Address != other.URL || !strings.HasPrefix(u.Route, "app-") {
		t.Errorf("%+v", u)
	}
	for range 10 {
		if page, err := agent.Request("GET", "https://app.localhost/"); err != nil || page.StatusCode != 200 {
			t.Errorf("%v %v", page, err)
		}
	}
	p.App.Close()
	shows(0, 2)
	if page, err := agent.Request("GET", "https://app.localhost/"); err != nil || page.StatusCode != 503 {
		t.Errorf("%v %v", page, err)
	}
	if !strings.Contains(p.Log.String(), "upstream host is unhealthy") {
		t.Error("the log does not tell")
	}
	var raw map[string]any
	if err := p.Control.Call(context.Background(), "GET", "/v1/status", nil, &raw); err != nil || raw["upstreams_out"] != float64(2) {
		t.Error(err, raw["upstreams_out"])
	}
}

// TestNothingIsCheckedAfterTheEnd: a program that has stopped asks its
// upstreams nothing more, also where its process goes on.
func TestNothingIsCheckedAfterTheEnd(t *testing.T) {
	var checks atomic.Int64
	app := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { checks.Add(1) }))
	defer app.Close()
	p := servertest.Start(t, `routes:
  - from: https://app.localhost
    to: @CHECKED@
    allow_public_unauthenticated_access: true
    health_checks:
      - {timeout: 5s, interval: 0.005s, no_traffic_interval: 0.005s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: /healthz}}
`, servertest.Options{Vars: map[string]string{"CHECKED": app.URL}})
	noErr(t, servertest.Eventually(func() error {
		if checks.Load() < 3 {
			return fmt.Errorf("the upstream is not checked")
		}
		return nil
	}))
	noErr(t, p.Stop())
	n := checks.Load()
	for range 20 { // each of which a check would fit into many times
		time.Sleep(10 * time.Millisecond)
		if got := checks.Load(); got > n+1 { // one may have been on its way
			t.Fatalf("%d checks after the end", got-n)
		}
	}
}
