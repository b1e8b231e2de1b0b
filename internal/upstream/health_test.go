package upstream

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func ptr[T any](v T) *T { return &v }

// aCheck is a check by HTTP with what is required; change alters it.
func aCheck(change func(*HealthCheck)) HealthCheck {
	h := HealthCheck{
		Timeout: ptr(time.Second), Interval: ptr(10 * time.Second),
		HealthyThreshold: ptr(uint32(2)), UnhealthyThreshold: ptr(uint32(3)),
		HTTPHealthCheck: &HTTPHealthCheck{Path: "/healthz"},
	}
	if change != nil {
		change(&h)
	}
	return h
}

// script is a prober that answers by a list, whose last verdict stays.
type script struct {
	mu       sync.Mutex
	verdicts []verdict
	at       []time.Duration // of each probe, since began
	began    time.Time
	takes    time.Duration
	closed   int
}

func (s *script) probe(ctx context.Context) verdict {
	s.mu.Lock()
	s.at = append(s.at, time.Since(s.began))
	v, takes := s.verdicts[0], s.takes
	if len(s.verdicts) > 1 {
		s.verdicts = s.verdicts[1:]
	}
	s.mu.Unlock()
	if takes > 0 {
		select {
		case <-time.After(takes):
		case <-ctx.Done():
			return verdict{reason: ctx.Err().Error()}
		}
	}
	return v
}

func (s *script) close() { s.mu.Lock(); s.closed++; s.mu.Unlock() }

// counts tells how often it was asked, and closed.
func (s *script) counts() (probes, closed int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.at), s.closed
}

func (s *script) set(v verdict) { s.mu.Lock(); s.verdicts = []verdict{v}; s.mu.Unlock() }

func (s *script) times() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, d := range s.at {
		out = append(out, fmt.Sprint(d.Seconds()))
	}
	return strings.Join(out, " ")
}

var (
	good = verdict{ok: true}
	bads = verdict{reason: "tried"}
	once = verdict{reason: "teapot", atOnce: true}
)

// scripted makes checks whose verdicts are a script's.
func scripted(t *testing.T, s *script, log *slog.Logger, list ...HealthCheck) (*healthChecks, *Target) {
	t.Helper()
	target := &Target{checked: true}
	made, err := newHealthChecks(target, list, log)
	if err != nil {
		t.Fatal(err)
	}
	m := made.(*healthChecks)
	s.began = time.Now()
	m.probers = func(*healthCheck, *host) prober { return s }
	return m, target
}

func aHost(addr string) *host {
	return &host{endpoint: &endpoint{name: "http://" + addr, scheme: "http", network: "tcp"}, addr: addr}
}

func TestHealthStateAddsUpVerdicts(t *testing.T) {
	for _, tc := range []struct{ verdicts, states string }{
		{"g", "+"},               // the first success counts at once
		{"bbg", "--+"},           // also behind failures
		{"gbbb", "+++-"},         // three failures in a row
		{"gbbgbbb", "++++++-"},   // a success between begins anew
		{"gbbbgg", "+++--+"},     // two successes bring it back
		{"gbbbgbgg", "+++----+"}, // in a row
		{"go", "+-"},             // an unexpected status needs no threshold
		{"gbog", "++--"},         // and then the healthy threshold holds
		{"bob" + "g" + "bbb", "---" + "+++" + "-"}, // a new host is unhealthy whatever fails
	} {
		var s healthState
		got := ""
		for _, v := range tc.verdicts {
			was := s.healthy
			changed := s.take(map[rune]verdict{'g': good, 'b': bads, 'o': once}[v], 2, 3)
			if changed != (was != s.healthy) {
				t.Errorf("%s: says changed=%v from %v to %v", tc.verdicts, changed, was, s.healthy)
			}
			got += map[bool]string{true: "+", false: "-"}[s.healthy]
		}
		if got != tc.states {
			t.Errorf("%s: %s, want %s", tc.verdicts, got, tc.states)
		}
	}
}

// Each interval holds in its state, and the others do not.
func TestHealthIntervals(t *testing.T) {
	seconds := func(n int) *time.Duration { return ptr(time.Duration(n) * time.Second) }
	all := func(h *HealthCheck) {
		h.NoTrafficInterval, h.NoTrafficHealthyInterval = seconds(100), seconds(200)
		h.UnhealthyInterval, h.UnhealthyEdgeInterval, h.HealthyEdgeInterval = seconds(5), seconds(2), seconds(3)
	}
	unhealthyThenBack := []verdict{good, good, once, bads, good, good, good}
	for _, tc := range []struct {
		name    string
		change  func(*HealthCheck)
		traffic bool
		answers []verdict
		want    string
	}{
		{"all with traffic", all, true, unhealthyThenBack, "0 3 13 15 20 25 28"},
		{"unhealthy_interval alone", func(h *HealthCheck) { h.UnhealthyInterval = seconds(5) }, true, unhealthyThenBack, "0 10 20 25 30 35 45"},
		{"unhealthy_edge_interval alone", func(h *HealthCheck) { h.UnhealthyEdgeInterval = seconds(2) }, true, unhealthyThenBack, "0 10 20 22 32 42 52"},
		{"healthy_edge_interval alone", func(h *HealthCheck) { h.HealthyEdgeInterval = seconds(3) }, true, unhealthyThenBack, "0 3 13 23 33 43 46"},
		{"interval alone", nil, true, unhealthyThenBack, "0 10 20 30 40 50 60"},
		{"no traffic, healthy", all, false, []verdict{good}, "0 200 400"},
		{"no traffic, unhealthy", all, false, []verdict{bads}, "0 100 200"},
		{"no_traffic_interval alone", func(h *HealthCheck) { h.NoTrafficInterval = seconds(100) }, false, []verdict{good}, "0 100 200"},
		{"without any, no traffic is a minute", nil, false, []verdict{good}, "0 60 120"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &script{verdicts: tc.answers}
				m, _ := scripted(t, s, nil, aCheck(tc.change))
				m.traffic.Store(tc.traffic)
				m.hostsChanged([]*host{aHost("192.0.2.1:80")})
				for strings.Count(s.times(), " ") < strings.Count(tc.want, " ") {
					time.Sleep(time.Second)
				}
				m.close()
				if got := s.times(); got != tc.want {
					t.Errorf("checked at %s, want %s", got, tc.want)
				}
				synctest.Wait()
				if _, n := s.counts(); n != 1 {
					t.Errorf("the prober was closed %d times", n)
				}
			})
		})
	}
}

// The first request ends the long wait of a target without traffic.
func TestFirstRequestHurriesChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{verdicts: []verdict{bads}}
		m, _ := scripted(t, s, nil, aCheck(nil))
		h := aHost("192.0.2.1:80")
		m.hostsChanged([]*host{h})
		time.Sleep(4 * time.Second)
		m.observe(h, outcome{status: 200})
		time.Sleep(17 * time.Second)
		m.close()
		if got := s.times(); got != "0 10 20" {
			t.Errorf("checked at %s", got)
		}
		// Long after an interval would have ended: at once.
		s = &script{verdicts: []verdict{good}}
		m, _ = scripted(t, s, nil, aCheck(nil))
		m.hostsChanged([]*host{h})
		time.Sleep(30 * time.Second)
		m.observe(h, outcome{status: 200})
		time.Sleep(time.Second)
		m.close()
		if got := s.times(); got != "0 30" {
			t.Errorf("checked at %s", got)
		}
	})
}

// initial_jitter, interval_jitter and interval_jitter_percent each delay by a
// random time up to what they say.
func TestHealthJitter(t *testing.T) {
	for _, tc := range []struct {
		name     string
		change   func(*HealthCheck)
		which    int           // of the gaps
		from, to time.Duration // what the gap is at least, and below
	}{
		{"none", nil, 0, 0, 1},
		{"none", nil, 1, 10 * time.Second, 10*time.Second + 1},
		{"initial_jitter", func(h *HealthCheck) { h.InitialJitter = ptr(4 * time.Second) }, 0, 0, 4 * time.Second},
		{"interval_jitter", func(h *HealthCheck) { h.IntervalJitter = ptr(4 * time.Second) }, 1, 10 * time.Second, 14 * time.Second},
		{"interval_jitter_percent", func(h *HealthCheck) { h.IntervalJitterPercent = 20 }, 1, 10 * time.Second, 12 * time.Second},
	} {
		seen, spread := map[time.Duration]bool{}, tc.to-tc.from > 1
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				s := &script{verdicts: []verdict{good}}
				m, _ := scripted(t, s, nil, aCheck(tc.change))
				m.traffic.Store(true)
				m.hostsChanged([]*host{aHost("192.0.2.1:80")})
				time.Sleep(time.Minute)
				m.close()
				synctest.Wait()
				gap := s.at[0]
				if tc.which == 1 {
					gap = s.at[1] - s.at[0]
				}
				if gap < tc.from || gap >= tc.to {
					t.Errorf("%s: waited %v, want from %v to %v", tc.name, gap, tc.from, tc.to)
				}
				seen[gap] = true
			})
		}
		if spread != (len(seen) > 10) {
			t.Errorf("%s: %d different waits in 20", tc.name, len(seen))
		}
	}
}

func TestCheckTimesOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &strings.Builder{}
		s := &script{verdicts: []verdict{good}, takes: time.Hour}
		m, _ := scripted(t, s, slog.New(slog.NewTextHandler(log, nil)), aCheck(func(h *HealthCheck) { h.Timeout = ptr(3 * time.Second) }))
		m.traffic.Store(true)
		h := aHost("192.0.2.1:80")
		m.hostsChanged([]*host{h})
		time.Sleep(20 * time.Second)
		if got := s.times(); got != "0 13" {
			t.Errorf("checked at %s", got)
		}
		if reason, _ := m.trouble(h); reason != "HTTP check: no answer within 3s" {
			t.Error(reason)
		}
		m.close() // while a check hangs, or not
		synctest.Wait()
		if _, n := s.counts(); n != 1 {
			t.Errorf("closed %d times", n)
		}
		if !strings.Contains(log.String(), "no answer within 3s") {
			t.Error(log.String())
		}
	})
}

// A host is healthy while all of its checks say so; the balancer is told once
// per change; hosts that are gone are not checked on.
func TestHostsAndSeveralChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := &script{verdicts: []verdict{good}, began: time.Now()}, &script{verdicts: []verdict{bads}, began: time.Now()}
		m, target := scripted(t, one, nil, aCheck(nil), aCheck(nil))
		m.traffic.Store(true)
		m.probers = func(c *healthCheck, _ *host) prober {
			if c == m.checks[0] {
				return one
			}
			return two
		}
		h, gone := aHost("192.0.2.1:80"), aHost("192.0.2.2:80")
		m.hostsChanged([]*host{h, gone})
		if !h.unhealthy.Load() {
			t.Error("a new host is healthy before any check")
		}
		time.Sleep(time.Second)
		if !h.unhealthy.Load() || target.version.Load() != 0 {
			t.Error("healthy although one check fails, or a change was told")
		}
		two.set(good)
		time.Sleep(10 * time.Second)
		if h.unhealthy.Load() || target.version.Load() != 2 {
			t.Errorf("unhealthy %v, %d changes", h.unhealthy.Load(), target.version.Load())
		}
		one.set(once)
		time.Sleep(10 * time.Second)
		if !h.unhealthy.Load() || target.version.Load() != 4 {
			t.Errorf("unhealthy %v, %d changes", h.unhealthy.Load(), target.version.Load())
		}
		before, _ := one.counts()
		m.hostsChanged([]*host{h})
		time.Sleep(10 * time.Second)
		n, closed := one.counts()
		if got := n - before; got != 1 {
			t.Errorf("%d checks in one interval of one host", got)
		}
		if _, other := two.counts(); closed != 1 || other != 1 {
			t.Errorf("closed %d and %d probers of the host that is gone", closed, other)
		}
		m.close()
		m.hostsChanged([]*host{gone})
		time.Sleep(time.Hour)
		_, closed = one.counts()
		if _, other := two.counts(); closed != 2 || other != 2 {
			t.Errorf("closed %d and %d probers", closed, other)
		}
	})
}

// What is logged: changes always, single checks where asked for
// (always_log_health_check_failures, always_log_health_check_success).
func TestHealthLog(t *testing.T) {
	answers := []verdict{bads, bads, good, good, bads, bads, bads, bads}
	for _, tc := range []struct {
		change func(*HealthCheck)
		want   string
	}{
		{nil, "WARN upstream host is unhealthy from the start;INFO upstream host is healthy;WARN upstream host is unhealthy;"},
		{func(h *HealthCheck) { h.AlwaysLogHealthCheckFailures = true },
			"WARN upstream host is unhealthy from the start;WARN upstream health check failed;INFO upstream host is healthy;WARN upstream health check failed;WARN upstream health check failed;WARN upstream host is unhealthy;WARN upstream health check failed;"},
		{func(h *HealthCheck) { h.AlwaysLogHealthCheckSuccess = true },
			"WARN upstream host is unhealthy from the start;INFO upstream host is healthy;INFO upstream health check passed;WARN upstream host is unhealthy;"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var b bytes.Buffer
			log := slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.LevelKey || a.Key == slog.MessageKey {
					return a
				}
				return slog.Attr{}
			}}))
			m, _ := scripted(t, &script{verdicts: answers}, log, aCheck(tc.change))
			m.traffic.Store(true)
			m.hostsChanged([]*host{aHost("192.0.2.1:80")})
			time.Sleep(75 * time.Second)
			m.close()
			got := strings.NewReplacer("level=", "", `msg="`, "", "\"\n", ";").Replace(b.String())
			if got != tc.want {
				t.Errorf("logged %s\nwant   %s", got, tc.want)
			}
		})
	}
}

// What is wrong with a check is named by its key.
func TestHealthCheckSettings(t *testing.T) {
	tcp := func(h *HealthCheck) { h.HTTPHealthCheck, h.TCPHealthCheck = nil, &TCPHealthCheck{} }
	header := func(name, value, action string) any {
		return map[string]any{"header": map[string]any{"key": name, "value": value}, "append_action": action}
	}
	for _, tc := range []struct {
		change func(*HealthCheck)
		want   string // "" is good
	}{
		{nil, ""},
		{tcp, ""},
		{func(h *HealthCheck) { h.HTTPHealthCheck, h.GRPCHealthCheck = nil, &GRPCHealthCheck{} }, ""},
		{func(h *HealthCheck) { h.Timeout = nil }, "health_checks[0]: timeout is missing"},
		{func(h *HealthCheck) { h.Interval = nil }, "health_checks[0]: interval is missing"},
		{func(h *HealthCheck) { h.HealthyThreshold = nil }, "health_checks[0]: healthy_threshold is missing"},
		{func(h *HealthCheck) { h.UnhealthyThreshold = nil }, "health_checks[0]: unhealthy_threshold is missing"},
		{func(h *HealthCheck) { h.Timeout = ptr(time.Duration(0)) }, "health_checks[0].timeout: the time is not above 0"},
		{func(h *HealthCheck) { h.Interval = ptr(-time.Second) }, "health_checks[0].interval: "},
		{func(h *HealthCheck) { h.NoTrafficInterval = ptr(time.Duration(0)) }, "health_checks[0].no_traffic_interval: "},
		{func(h *HealthCheck) { h.InitialJitter = ptr(-time.Second) }, "health_checks[0].initial_jitter: "},
		{func(h *HealthCheck) { h.AltPort = ptr(uint32(70000)) }, "health_checks[0].alt_port: 70000 is not a port"},
		{func(h *HealthCheck) { h.HTTPHealthCheck = nil }, "health_checks[0]: 0 kinds of check"},
		{func(h *HealthCheck) { h.TCPHealthCheck = &TCPHealthCheck{} }, "health_checks[0]: 2 kinds of check"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Path = "" }, "health_checks[0].http_health_check: path is missing"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Path = "healthz" }, "health_checks[0].http_health_check.path: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Path = "/a b" }, "health_checks[0].http_health_check.path: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Path = "/healthz?deep=1" }, ""},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Host = "a\nb" }, "health_checks[0].http_health_check.host: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Method = "CONNECT" }, "health_checks[0].http_health_check.method: CONNECT"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Method = "post" }, ""},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Send, h.HTTPHealthCheck.Method = &Payload{Text: "50"}, "GET" }, "health_checks[0].http_health_check.method: a request by GET has no body"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Receive = []Payload{{Text: "50"}, {Text: "5"}} }, "health_checks[0].http_health_check.receive[1].text: this is not an even number of hex"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Receive = []Payload{{}} }, "health_checks[0].http_health_check.receive[0]: neither"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.Receive = []Payload{{Text: "50", Binary: "UA"}} }, "health_checks[0].http_health_check.receive[0]: text and binary"},
		{func(h *HealthCheck) { tcp(h); h.TCPHealthCheck.Send = &Payload{Text: "ping"} }, "health_checks[0].tcp_health_check.send.text: "},
		{func(h *HealthCheck) { tcp(h); h.TCPHealthCheck.Send = &Payload{Binary: "!"} }, "health_checks[0].tcp_health_check.send.binary: this is not base64"},
		{func(h *HealthCheck) { tcp(h); h.TCPHealthCheck.Send = &Payload{Binary: "_-8"} }, ""},
		{func(h *HealthCheck) { h.HTTPHealthCheck.ExpectedStatuses = []StatusRange{{200, 200}} }, "health_checks[0].http_health_check.expected_statuses[0]: 200 to 200"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RetriableStatuses = []StatusRange{{500, 600}, {1, 2}} }, "health_checks[0].http_health_check.retriable_statuses[1]: 1 to 2"},
		{func(h *HealthCheck) {
			h.HTTPHealthCheck.RequestHeadersToAdd = []any{header("X-A", "1", "ADD_IF_ABSENT")}
		}, ""},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RequestHeadersToAdd = []any{header("X A", "1", "")} }, "health_checks[0].http_health_check.request_headers_to_add[0].header.key: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RequestHeadersToAdd = []any{header("X-A", "a\r\nb", "")} }, "health_checks[0].http_health_check.request_headers_to_add[0].header.value: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RequestHeadersToAdd = []any{header("X-A", "1", "MAYBE")} }, "health_checks[0].http_health_check.request_headers_to_add[0].append_action: MAYBE"},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RequestHeadersToAdd = []any{"X-A: 1"} }, "health_checks[0].http_health_check.request_headers_to_add[0].header.key: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.RequestHeadersToRemove = []string{"a b"} }, "health_checks[0].http_health_check.request_headers_to_remove[0]: "},
		{func(h *HealthCheck) { h.HTTPHealthCheck.CodecClientType = "HTTP3" }, "health_checks[0].http_health_check.codec_client_type: HTTP3 needs https"},
		{func(h *HealthCheck) {
			h.HTTPHealthCheck, h.GRPCHealthCheck = nil, &GRPCHealthCheck{Authority: "a b"}
		}, "health_checks[0].grpc_health_check.authority: "},
		{func(h *HealthCheck) {
			h.HTTPHealthCheck, h.GRPCHealthCheck = nil, &GRPCHealthCheck{InitialMetadata: []any{header("", "", "")}}
		}, "health_checks[0].grpc_health_check.initial_metadata[0].header.key: "},
	} {
		got := ""
		h := aCheck(tc.change)
		if bad := CheckHealthChecks([]HealthCheck{h}, endpointsOf(t, "http://app:80")); len(bad) > 0 {
			got = bad[0].Error()
		}
		if tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%+v %+v: %q, want %q", h, h.HTTPHealthCheck, got, tc.want)
		}
	}
	for _, tc := range []struct{ to, want string }{{"h3://app", "health_checks[0].tcp_health_check: h3 endpoints"}, {"http://app", ""}} {
		got := ""
		if bad := CheckHealthChecks([]HealthCheck{aCheck(tcp)}, endpointsOf(t, tc.to)); len(bad) > 0 {
			got = bad[0].Error()
		}
		if tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) {
			t.Errorf("TCP check of %s: %q, want %q", tc.to, got, tc.want)
		}
	}
}

func endpointsOf(t *testing.T, urls ...string) []Endpoint {
	t.Helper()
	var out []Endpoint
	for _, s := range urls {
		out = append(out, Endpoint{URL: mustURL(t, s)})
	}
	return out
}

// A changed route whose host was healthy before stays in use while the first
// checks of the new target are under way; a sick or unknown one does not.
func TestHealthOutlivesChange(t *testing.T) {
	spec := func(path string) Spec {
		return Spec{Endpoints: endpointsOf(t, "http://192.0.2.1:80", "http://192.0.2.2:80"), HealthChecks: []HealthCheck{
			aCheck(func(h *HealthCheck) { h.HTTPHealthCheck.Path = path })}}
	}
	before, failed := Build([]Spec{spec("/a")}, nil, nil)
	if failed != nil {
		t.Fatal(failed)
	}
	defer before.Close()
	before.Target(0).hosts.Load().hosts[0].unhealthy.Store(false)
	wider := spec("/b")
	wider.Endpoints = append(wider.Endpoints, endpointsOf(t, "http://192.0.2.3:80")...)
	after, failed := Build([]Spec{wider}, before, nil)
	if failed != nil {
		t.Fatal(failed)
	}
	defer after.Close()
	if after.parts.well != nil {
		t.Error("the new pool holds on to the old one")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &script{verdicts: []verdict{bads}, began: time.Now()}
		m, _ := scripted(t, s, nil, aCheck(nil))
		m.traffic.Store(true)
		hosts := after.Target(0).hosts.Load().hosts
		m.hostsChanged(hosts)
		got := func() (out string) {
			for _, h := range hosts {
				out += map[bool]string{true: "-", false: "+"}[h.unhealthy.Load()]
			}
			return out
		}
		if got() != "+--" {
			t.Errorf("at first %s", got())
		}
		time.Sleep(time.Second)
		if got() != "+--" {
			t.Errorf("after one failure %s: the threshold is 3", got())
		}
		time.Sleep(25 * time.Second)
		if got() != "---" {
			t.Errorf("after three failures %s", got())
		}
		m.close()
	})
}
