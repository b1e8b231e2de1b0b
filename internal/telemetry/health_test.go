package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	h := NewHealth(CheckProxy, CheckStorage)
	srv := h.Handler()
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, strings.TrimSpace(w.Body.String())
	}
	want := func(step string, startup, ready, healthy int) {
		t.Helper()
		for path, code := range map[string]int{"/startupz": startup, "/readyz": ready, "/healthz": healthy, "/status": 200} {
			if got, body := get(path); got != code {
				t.Errorf("%s: %s answers %d, want %d: %s", step, path, got, code, body)
			}
		}
	}
	want("nothing reported", 503, 503, 503)
	h.Report(CheckProxy, StatusRunning, nil)
	want("one of two", 503, 503, 503)
	h.Report(CheckStorage, StatusRunning, errors.New("disk full"), HealthAttribute{"path", "/data"})
	want("one with an error", 200, 503, 503)
	if _, body := get("/readyz"); body != `{"proxy.service":{"status":"RUNNING"},"storage.backend":{"status":"RUNNING","error":"disk full","attributes":[{"Key":"path","Value":"/data"}]}}` {
		t.Errorf("body %s", body)
	}
	h.Report(CheckStorage, StatusRunning, nil)
	want("all run", 200, 200, 200)
	h.Report("extra", StatusRunning, errors.New("not required"))
	want("an unexpected check", 200, 200, 200)
	if _, body := get("/status"); body != `{"statuses":{"extra":{"status":"RUNNING","error":"not required"},"proxy.service":{"status":"RUNNING"},"storage.backend":{"status":"RUNNING"}},"checks":["proxy.service","storage.backend"]}` {
		t.Errorf("status %s", body)
	}
	h.Terminate()
	want("draining", 200, 503, 200)
	h.Report(CheckProxy, StatusTerminating, errors.New("stuck"))
	want("draining with an error", 200, 503, 503)

	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, httptest.NewRequest(method, "/healthz", nil))
		if w.Code != 405 {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
	w := httptest.NewRecorder()
	srv.ServeHTTP(w, httptest.NewRequest("HEAD", "/status", nil))
	if w.Code != 200 || w.Body.Len() != 0 {
		t.Errorf("HEAD: %d, %d bytes", w.Code, w.Body.Len())
	}
	if code, _ := get("/else"); code != 404 {
		t.Errorf("/else: %d", code)
	}
}

// "Nothing internal listens unasked": a page that points its name at
// 127.0.0.1 reads nothing.
func TestLoopbackHostCheck(t *testing.T) {
	srv := NewInternalServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "in") }), slog.New(slog.DiscardHandler))
	ask := func(local net.Addr, host string) int {
		r := httptest.NewRequest("GET", "/healthz", nil)
		r.Host = host
		if local != nil {
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, local))
		}
		w := httptest.NewRecorder()
		srv.Handler.ServeHTTP(w, r)
		return w.Code
	}
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 28080}
	for host, want := range map[string]int{
		"127.0.0.1:28080": 200, "localhost": 200, "LOCALHOST:1": 200, "localhost.": 200, "[::1]:28080": 200, "[::1]": 200, "10.1.2.3:80": 200,
		"evil.test": 403, "evil.test:28080": 403, "localhost.evil.test": 403, "127.0.0.1.evil.test": 403, "": 403,
	} {
		for _, local := range []net.Addr{loopback, &net.TCPAddr{IP: net.IPv6loopback}, nil} {
			if got := ask(local, host); got != want {
				t.Errorf("Host %q at %v: %d, want %d", host, local, got, want)
			}
		}
	}
	if got := ask(&net.TCPAddr{IP: net.IPv4(10, 0, 0, 1)}, "postern.monitoring.svc:9090"); got != 200 {
		t.Errorf("a listener opened to the network, asked by name: %d", got)
	}
}

func TestBasicAuth(t *testing.T) {
	for _, bad := range []string{"!!", "dXNlcg=="} { // not base64; "user" without a colon
		if _, err := ParseBasicAuth(bad); err == nil || !strings.HasPrefix(err.Error(), "metrics_basic_auth ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	a, err := ParseBasicAuth("dXNlcjpwYTpzcw==") // user:pa:ss
	if err != nil {
		t.Fatal(err)
	}
	m := NewMetrics(BuildInfo{Version: "1"})
	ask := func(a BasicAuth, user, pass string) int {
		r := httptest.NewRequest("GET", "/metrics", nil)
		if user != "" {
			r.SetBasicAuth(user, pass)
		}
		w := httptest.NewRecorder()
		m.Handler(a).ServeHTTP(w, r)
		return w.Code
	}
	for _, tt := range []struct {
		user, pass string
		want       int
	}{{"", "", 401}, {"user", "pa:ss", 200}, {"user", "pa", 401}, {"other", "pa:ss", 401}} {
		if got := ask(a, tt.user, tt.pass); got != tt.want {
			t.Errorf("%s:%s: %d, want %d", tt.user, tt.pass, got, tt.want)
		}
	}
	if got := ask(BasicAuth{}, "", ""); got != 200 {
		t.Errorf("without a password set: %d", got)
	}
}

func TestMetrics(t *testing.T) {
	m := NewMetrics(BuildInfo{Version: "1.2.3", Revision: "abc"})
	m.ConfigLoaded(true, time.Unix(1700000000, 0), "config", 42, 3)
	m.ConfigLoaded(false, time.Now(), "", 0, 0)
	m.ObserveHTTP(&HTTPRequest{Host: "app.test", Method: "GET", Status: 200, Duration: 20 * time.Millisecond, OutBytes: 10,
		Cluster: "route-1", UpstreamStatus: 204, UpstreamDuration: time.Millisecond})
	m.ObserveHTTP(&HTTPRequest{Host: "app.test", Method: "BREW", Status: 403, InBytes: -1})
	m.ObserveDecision(VerdictAllow, time.Microsecond)
	m.ObserveDecision(VerdictDeny, time.Microsecond)
	m.ObserveDecision(VerdictError, time.Microsecond)
	m.Connections(2)
	m.Connections(-1)
	var none *Metrics
	none.ObserveHTTP(&HTTPRequest{})
	none.ObserveDecision(VerdictAllow, 0)
	none.ConfigLoaded(true, at, "", 0, 0)
	none.Connections(1)

	w := httptest.NewRecorder()
	m.Handler(BasicAuth{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics/envoy", nil))
	body := w.Body.String()
	for _, want := range []string{
		`pomerium_build_info{envoy_version="",goversion=`, `version="1.2.3"} 1`,
		`pomerium_config_last_reload_success{service="pomerium"} 0`,
		`pomerium_config_last_reload_success_timestamp{service="pomerium"} 1.7e+09`,
		`pomerium_config_checksum_decimal{config="config",service="pomerium"} 42`,
		`pomerium_policy_count_total{service="pomerium"} 3`,
		`pomerium_http_server_requests_total{host="app.test",http_method="GET",http_status="200",service="pomerium-proxy"} 1`,
		`pomerium_http_server_requests_total{host="app.test",http_method="OTHER",http_status="403",service="pomerium-proxy"} 1`,
		`pomerium_http_server_request_duration_ms_sum{host="app.test",http_method="GET",http_status="200",service="pomerium-proxy"} 20`,
		`envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="ingress",service="pomerium-proxy"} 2`,
		`envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="ingress",envoy_response_code_class="4",service="pomerium-proxy"} 1`,
		`envoy_http_downstream_cx_active{envoy_http_conn_manager_prefix="ingress",service="pomerium-proxy"} 1`,
		`envoy_cluster_upstream_rq_xx{envoy_cluster_name="route-1",envoy_response_code_class="2",service="pomerium-proxy"} 1`,
		`envoy_cluster_ext_authz_error{envoy_cluster_name="pomerium-ingress",service="pomerium-proxy"} 1`,
		`pomerium_authorize_evaluator_evaluations{service="pomerium"} 3`,
		`pomerium_authorize_evaluator_evaluations_total{service="pomerium"} 3`,
		`pomerium_authorize_evaluator_allowals_total{service="pomerium"} 1`,
		`pomerium_authorize_evaluator_denials_total{service="pomerium"} 1`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s", want)
		}
	}
}

// A client cannot make metrics without end ("stranger's floods" of the
// security cases).
func TestMetricSeriesAreBounded(t *testing.T) {
	m := NewMetrics(BuildInfo{})
	for i := range maxSeries + 500 {
		m.ObserveHTTP(&HTTPRequest{Host: fmt.Sprint("h", i), Method: "GET", Status: 200})
	}
	if n := len(m.series); n > maxSeries+64 {
		t.Errorf("%d series", n)
	}
}

func TestChecksumFitsAFloat(t *testing.T) {
	sum := Checksum([]byte("doc"))
	if uint64(float64(sum)) != sum || sum == Checksum([]byte("doc2")) {
		t.Error("the checksum is not shown exactly")
	}
}

func BenchmarkObserve(b *testing.B) {
	m := NewMetrics(BuildInfo{})
	r := &HTTPRequest{Host: "app.test", Method: "GET", Status: 200, Duration: time.Millisecond, Cluster: "c", UpstreamStatus: 200}
	b.ReportAllocs()
	for range b.N {
		m.ObserveHTTP(r)
	}
}

func TestInternalServerHasBounds(t *testing.T) {
	s := NewInternalServer(http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	if s.ReadHeaderTimeout == 0 || s.ReadTimeout == 0 || s.WriteTimeout == 0 || s.IdleTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Error("an internal listener waits forever")
	}
}
