package telemetry

import (
	"hash/fnv"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics holds every metric that Postern fills. Names are those of
// wire-contract.md §12, dashboards read them. Make one for the process; it is
// safe for concurrent use, and a nil *Metrics counts nothing.
type Metrics struct {
	reg *prometheus.Registry

	reloadSuccess, reloadTime *prometheus.GaugeVec
	checksum                  *prometheus.GaugeVec
	policies                  *prometheus.GaugeVec
	isolated, refused         prometheus.Gauge

	serverRequests               *prometheus.CounterVec
	serverDuration, serverInSize *prometheus.HistogramVec
	serverOutSize                *prometheus.HistogramVec
	downstreamTotal              prometheus.Counter
	downstreamClass              [6]prometheus.Counter
	downstreamTime               prometheus.Histogram
	downstreamActive             prometheus.Gauge
	upstreamTotal                *prometheus.CounterVec
	upstreamClass                *prometheus.CounterVec
	upstreamTime                 *prometheus.HistogramVec
	extAuthz                     [3]prometheus.Counter
	evaluations, allowals        atomic.Uint64
	denials                      atomic.Uint64
	evaluationDuration           prometheus.Histogram
	shadow                       [3]*prometheus.CounterVec // evaluations, would allow, would deny
	rateLimited                  *prometheus.CounterVec

	mu     sync.RWMutex
	series map[seriesKey]*series
}

// seriesKey names the label values of one request, series the metrics they
// lead to: finding them once is much cheaper than hashing labels each time.
type seriesKey struct {
	cluster, host, method string
	status, upstream      int // upstream: class of the upstream's status, 0 without
}

type series struct {
	requests                  prometheus.Counter
	duration, inSize, outSize prometheus.Observer
	upTotal, upClass          prometheus.Counter
	upTime                    prometheus.Observer
}

// maxSeries bounds the label combinations; further ones count as "other".
const maxSeries = 20000

// msBuckets are the histogram bounds for durations in milliseconds.
var msBuckets = []float64{0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000}

// sizeBuckets are the histogram bounds for sizes in bytes.
var sizeBuckets = []float64{0, 256, 1024, 4096, 16384, 65536, 262144, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30, 4 << 30}

// BuildInfo says which program this is.
type BuildInfo struct {
	Service  string // "pomerium" where all roles run in one process
	Version  string
	Revision string
}

// NewMetrics makes the metrics with a registry of their own.
func NewMetrics(b BuildInfo) *Metrics {
	reg := prometheus.NewRegistry()
	m := &Metrics{reg: reg, series: map[seriesKey]*series{}}
	if b.Service == "" {
		b.Service = "pomerium"
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		reg.MustRegister(v)
		return v
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
		reg.MustRegister(v)
		return v
	}
	host, _ := os.Hostname()
	gauge("pomerium_build_info", "Build of the running program; always 1.",
		"service", "version", "envoy_version", "revision", "goversion", "host").
		WithLabelValues(b.Service, b.Version, "", b.Revision, runtime.Version(), host).Set(1)
	m.reloadSuccess = gauge("pomerium_config_last_reload_success", "1 if the last configuration was taken, else 0.", "service")
	m.reloadTime = gauge("pomerium_config_last_reload_success_timestamp", "Unix time in seconds of the last configuration taken.", "service")
	m.checksum = gauge("pomerium_config_checksum_decimal", "Checksum of the configuration in use.", "service", "config")
	m.policies = gauge("pomerium_policy_count_total", "Routes with a policy in the configuration in use.", "service")

	m.isolated = register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "postern_config_isolated_routes", Help: "Routes that answer 503 because of mistakes in them (config_bad_route)."}))
	m.refused = register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "postern_config_last_refused_timestamp", Help: "Unix time in seconds when the last change was refused; 0 if it was taken."}))

	labels := []string{"service", "host", "http_method", "http_status"}
	m.serverRequests = counter("pomerium_http_server_requests_total", "Requests served.", labels...)
	m.serverDuration = histogram("pomerium_http_server_request_duration_ms", "Time to serve a request, in milliseconds.", msBuckets, labels...)
	m.serverInSize = histogram("pomerium_http_server_request_size_bytes", "Request body size in bytes.", sizeBuckets, labels...)
	m.serverOutSize = histogram("pomerium_http_server_response_size_bytes", "Response body size in bytes.", sizeBuckets, labels...)

	ingress := prometheus.Labels{"service": "pomerium-proxy", "envoy_http_conn_manager_prefix": "ingress"}
	m.downstreamTotal = register(reg, prometheus.NewCounter(prometheus.CounterOpts{
		Name: "envoy_http_downstream_rq_total", Help: "Requests from clients.", ConstLabels: ingress}))
	class := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "envoy_http_downstream_rq_xx", Help: "Responses to clients by class of status.", ConstLabels: ingress},
		[]string{"envoy_response_code_class"})
	reg.MustRegister(class)
	for i := 1; i < len(m.downstreamClass); i++ {
		m.downstreamClass[i] = class.WithLabelValues(strconv.Itoa(i))
	}
	m.downstreamTime = register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "envoy_http_downstream_rq_time", Help: "Time to serve a request, in milliseconds.", ConstLabels: ingress, Buckets: msBuckets}))
	m.downstreamActive = register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "envoy_http_downstream_cx_active", Help: "Open client connections.", ConstLabels: ingress}))

	m.upstreamTotal = counter("envoy_cluster_upstream_rq_total", "Requests to upstreams.", "service", "envoy_cluster_name")
	m.upstreamClass = counter("envoy_cluster_upstream_rq_xx", "Responses of upstreams by class of status.", "service", "envoy_cluster_name", "envoy_response_code_class")
	m.upstreamTime = histogram("envoy_cluster_upstream_rq_time", "Time until an upstream answered, in milliseconds.", msBuckets, "service", "envoy_cluster_name")
	for i, name := range []string{"ok", "denied", "error"} {
		m.extAuthz[i] = register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "envoy_cluster_ext_authz_" + name, Help: "Decisions that ended so.",
			ConstLabels: prometheus.Labels{"service": "pomerium-proxy", "envoy_cluster_name": "pomerium-ingress"}}))
	}

	for name, n := range map[string]*atomic.Uint64{"evaluations": &m.evaluations, "allowals": &m.allowals, "denials": &m.denials} {
		for _, suffix := range []string{"", "_total"} {
			reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Name: "pomerium_authorize_evaluator_" + name + suffix, Help: "Policy " + name + ".",
				ConstLabels: prometheus.Labels{"service": b.Service},
			}, func() float64 { return float64(n.Load()) }))
		}
	}
	m.evaluationDuration = register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "pomerium_authorize_evaluator_evaluation_duration", Help: "Time of one decision, in milliseconds.",
		ConstLabels: prometheus.Labels{"service": b.Service},
		Buckets:     []float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 10, 100, 1000}}))

	for i, name := range []string{"evaluations", "would_allow", "would_deny"} {
		m.shadow[i] = counter("postern_policy_shadow_"+name+"_total", shadowHelp[i], "route")
	}

	m.rateLimited = counter("postern_rate_limited_total", "Requests answered 429 because of a rate limit.", "route")

	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func register[C prometheus.Collector](reg *prometheus.Registry, c C) C {
	reg.MustRegister(c)
	return c
}

// ConfigLoaded records a configuration that was taken (ok) or refused. sum is
// a checksum of the configuration in use, config its name; routes how many
// routes it has.
func (m *Metrics) ConfigLoaded(ok bool, at time.Time, config string, sum uint64, routes int) {
	if m == nil {
		return
	}
	if !ok {
		m.reloadSuccess.WithLabelValues("pomerium").Set(0)
		m.refused.Set(float64(at.Unix()))
		return
	}
	m.refused.Set(0)
	m.reloadSuccess.WithLabelValues("pomerium").Set(1)
	m.reloadTime.WithLabelValues("pomerium").Set(float64(at.Unix()))
	m.checksum.Reset()
	m.checksum.WithLabelValues("pomerium", config).Set(float64(sum))
	m.policies.WithLabelValues("pomerium").Set(float64(routes))
}

// RoutesIsolated says how many routes are out of service because of mistakes
// in them.
func (m *Metrics) RoutesIsolated(n int) {
	if m != nil {
		m.isolated.Set(float64(n))
	}
}

// Checksum gives a number for a document, for ConfigLoaded.
func Checksum(doc []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(doc)
	return h.Sum64() >> 11 // 53 bits: a metric is a float64 and must show it exactly
}

// HTTPRequest is one served request, for the counters. Host must be a name
// from the configuration (the route's), never what a client may choose.
type HTTPRequest struct {
	Host, Method     string
	Status           int
	Duration         time.Duration
	InBytes          int64 // -1: unknown
	OutBytes         int64
	Cluster          string // "" if no upstream was asked
	UpstreamStatus   int    // 0 if it did not answer
	UpstreamDuration time.Duration
}

// ObserveHTTP counts one served request.
func (m *Metrics) ObserveHTTP(r *HTTPRequest) {
	if m == nil {
		return
	}
	ms := float64(r.Duration) / 1e6
	m.downstreamTotal.Inc()
	if c := r.Status / 100; 1 <= c && c < len(m.downstreamClass) {
		m.downstreamClass[c].Inc()
	}
	m.downstreamTime.Observe(ms)
	s := m.find(seriesKey{r.Cluster, r.Host, knownMethod(r.Method), r.Status, r.UpstreamStatus / 100})
	s.requests.Inc()
	s.duration.Observe(ms)
	if r.InBytes >= 0 {
		s.inSize.Observe(float64(r.InBytes))
	}
	s.outSize.Observe(float64(r.OutBytes))
	if s.upTotal != nil {
		s.upTotal.Inc()
		if s.upClass != nil {
			s.upClass.Inc()
			s.upTime.Observe(float64(r.UpstreamDuration) / 1e6)
		}
	}
}

func (m *Metrics) find(k seriesKey) *series {
	m.mu.RLock()
	s, n := m.series[k], len(m.series)
	m.mu.RUnlock()
	if s != nil {
		return s
	}
	if n >= maxSeries {
		k.host, k.cluster = "other", ""
	}
	status := strconv.Itoa(k.status)
	l := []string{"pomerium-proxy", k.host, k.method, status}
	s = &series{
		requests: m.serverRequests.WithLabelValues(l...),
		duration: m.serverDuration.WithLabelValues(l...),
		inSize:   m.serverInSize.WithLabelValues(l...),
		outSize:  m.serverOutSize.WithLabelValues(l...),
	}
	if k.cluster != "" {
		s.upTotal = m.upstreamTotal.WithLabelValues("pomerium-proxy", k.cluster)
		if k.upstream > 0 {
			s.upClass = m.upstreamClass.WithLabelValues("pomerium-proxy", k.cluster, strconv.Itoa(k.upstream))
		}
		s.upTime = m.upstreamTime.WithLabelValues("pomerium-proxy", k.cluster)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.series) < maxSeries+64 {
		m.series[k] = s
	}
	return s
}

// knownMethod keeps a client from making label values of its own.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch,
		http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "OTHER"
}

// Connections adds n to the number of open client connections.
func (m *Metrics) Connections(n int) {
	if m != nil {
		m.downstreamActive.Add(float64(n))
	}
}

// Verdict is how a decision ended, for ObserveDecision.
type Verdict uint8

// The verdicts.
const (
	VerdictAllow Verdict = iota
	VerdictDeny          // also sign-in and step-up
	VerdictError
)

// ObserveDecision counts one decision.
func (m *Metrics) ObserveDecision(v Verdict, took time.Duration) {
	if m == nil {
		return
	}
	m.evaluations.Add(1)
	switch v {
	case VerdictAllow:
		m.allowals.Add(1)
	case VerdictDeny:
		m.denials.Add(1)
	default:
		v = VerdictError
	}
	m.extAuthz[v].Inc()
	m.evaluationDuration.Observe(float64(took) / 1e6)
}

var shadowHelp = [3]string{
	"Requests that a shadow policy was asked about.",
	"Requests refused that the shadow policy would have let in.",
	"Requests let in that the shadow policy would have refused.",
}

// ObserveShadow counts one evaluation of a route's shadow policy (route is the
// route's id): whether it would have let in what was refused, or refused what
// was let in.
func (m *Metrics) ObserveShadow(route string, wouldAllow, wouldDeny bool) {
	if m == nil {
		return
	}
	m.shadow[0].WithLabelValues(route).Inc()
	if wouldAllow {
		m.shadow[1].WithLabelValues(route).Inc()
	}
	if wouldDeny {
		m.shadow[2].WithLabelValues(route).Inc()
	}
}

// ObserveRateLimited counts a request that a rate limit refused (route is the
// route's id).
func (m *Metrics) ObserveRateLimited(route string) {
	if m != nil {
		m.rateLimited.WithLabelValues(route).Inc()
	}
}

// RateLimitTables shows how often a counter of the rate limits had to make room
// for another (proxy.Limiter.Crowded). Call it once.
func (m *Metrics) RateLimitTables(crowded func() uint64) {
	if m != nil {
		m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "postern_rate_limit_crowded_total", Help: "Counters that had to make room for another client's while they still counted."},
			func() float64 { return float64(crowded()) }))
	}
}

// Registry gives the registry, for metrics of other parts.
func (m *Metrics) Registry() *prometheus.Registry { return m.reg }

// Handler serves /metrics and /metrics/envoy, behind auth if that is set.
func (m *Metrics) Handler(auth BasicAuth) http.Handler {
	h := promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	mux.Handle("GET /metrics/envoy", h)
	return auth.Guard(mux)
}
