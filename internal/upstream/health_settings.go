package upstream

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"postern/internal/exchange"
)

// KeyProblem is what is wrong with a setting, for the checks that package
// config makes while it loads.
type KeyProblem struct {
	// Key is the path of the setting below the route.
	Key string
	// Message says what is wrong, Hint what to do.
	Message, Hint string
}

func (p KeyProblem) Error() string {
	if p.Hint == "" {
		return p.Key + ": " + p.Message
	}
	return p.Key + ": " + p.Message + "; " + p.Hint
}

// under puts the problem below an item of a list.
func (p KeyProblem) under(list string, i int) KeyProblem {
	at := fmt.Sprintf("%s[%d]", list, i)
	if p.Key != "" {
		at += "." + p.Key
	}
	p.Key = at
	return p
}

// CheckHealthChecks tells what is wrong with the health checks of a route
// with these endpoints.
func CheckHealthChecks(checks []HealthCheck, to []Endpoint) []KeyProblem {
	var out []KeyProblem
	for i := range checks {
		c, problems := compileHealthCheck(&checks[i])
		if len(problems) == 0 {
			problems = c.fits(to)
		}
		for _, p := range problems {
			out = append(out, p.under("health_checks", i))
		}
	}
	return out
}

// healthCheck is a HealthCheck with its defaults filled in.
type healthCheck struct {
	kind                                 string // for people
	timeout                              time.Duration
	interval, unhealthyInterval          time.Duration
	healthyEdgeInterval                  time.Duration
	unhealthyEdgeInterval                time.Duration
	noTrafficInterval                    time.Duration
	noTrafficHealthyInterval             time.Duration
	initialJitter, intervalJitter        time.Duration
	intervalJitterPercent                uint32
	healthyThreshold, unhealthyThreshold uint32
	reuse                                bool
	logFailures, logSuccesses            bool
	altPort                              uint16 // 0 for the host's

	http *httpCheck
	tcp  *tcpCheck
	grpc *grpcCheck
}

// newProber makes what checks one host.
func (c *healthCheck) newProber(t *Target, h *host) prober {
	switch {
	case c.tcp != nil:
		return &tcpProber{t: t, h: h, c: c}
	case c.grpc != nil:
		return newGRPCProber(t, h, c)
	}
	return newHTTPProber(t, h, c)
}

// problems collects what is wrong with one check.
type problems []KeyProblem

func (p *problems) add(key, message, hint string) {
	*p = append(*p, KeyProblem{key, message, hint})
}

func compileHealthCheck(h *HealthCheck) (*healthCheck, []KeyProblem) {
	var bad problems
	for _, need := range []struct {
		name    string
		missing bool
	}{
		{"timeout", h.Timeout == nil}, {"interval", h.Interval == nil},
		{"healthy_threshold", h.HealthyThreshold == nil}, {"unhealthy_threshold", h.UnhealthyThreshold == nil},
	} {
		if need.missing {
			bad.add("", need.name+" is missing", "a health check needs timeout, interval, healthy_threshold and unhealthy_threshold")
		}
	}
	c := &healthCheck{
		healthyThreshold: orDefault(h.HealthyThreshold, 1), unhealthyThreshold: orDefault(h.UnhealthyThreshold, 1),
		intervalJitterPercent: h.IntervalJitterPercent, reuse: orDefault(h.ReuseConnection, true),
		logFailures: h.AlwaysLogHealthCheckFailures, logSuccesses: h.AlwaysLogHealthCheckSuccess,
	}
	positive := func(name string, set *time.Duration, unset time.Duration) time.Duration {
		if set != nil && *set <= 0 {
			bad.add(name, "the time is not above 0", "write a time such as 5s")
		}
		return orDefault(set, unset)
	}
	c.timeout = positive("timeout", h.Timeout, 0)
	c.interval = positive("interval", h.Interval, 0)
	c.unhealthyInterval = positive("unhealthy_interval", h.UnhealthyInterval, c.interval)
	c.unhealthyEdgeInterval = positive("unhealthy_edge_interval", h.UnhealthyEdgeInterval, c.unhealthyInterval)
	c.healthyEdgeInterval = positive("healthy_edge_interval", h.HealthyEdgeInterval, c.interval)
	c.noTrafficInterval = positive("no_traffic_interval", h.NoTrafficInterval, time.Minute)
	c.noTrafficHealthyInterval = positive("no_traffic_healthy_interval", h.NoTrafficHealthyInterval, c.noTrafficInterval)
	notNegative := func(name string, set *time.Duration) time.Duration {
		if set != nil && *set < 0 {
			bad.add(name, "the time is below 0", "write a time such as 1s")
		}
		return orDefault(set, 0)
	}
	c.initialJitter = notNegative("initial_jitter", h.InitialJitter)
	c.intervalJitter = notNegative("interval_jitter", h.IntervalJitter)
	if p := h.AltPort; p != nil {
		if *p == 0 || *p > 65535 {
			bad.add("alt_port", fmt.Sprintf("%d is not a port", *p), "write a number from 1 to 65535")
		}
		c.altPort = uint16(min(*p, 65535))
	}
	kinds := 0
	if h.HTTPHealthCheck != nil {
		kinds++
		c.kind, c.http = "HTTP", compileHTTPCheck(h.HTTPHealthCheck, &bad)
	}
	if h.TCPHealthCheck != nil {
		kinds++
		c.kind, c.tcp = "TCP", &tcpCheck{
			send:    payload(h.TCPHealthCheck.Send, "tcp_health_check.send", &bad),
			receive: payloads(h.TCPHealthCheck.Receive, "tcp_health_check.receive", &bad),
		}
	}
	if g := h.GRPCHealthCheck; g != nil {
		kinds++
		c.kind, c.grpc = "gRPC", &grpcCheck{service: g.ServiceName, authority: g.Authority,
			metadata: headerOptions(g.InitialMetadata, "grpc_health_check.initial_metadata", &bad)}
		if !isAuthority(g.Authority) {
			bad.add("grpc_health_check.authority", "it holds characters that no authority has", "write a name such as app.internal")
		}
	}
	if kinds != 1 {
		bad.add("", fmt.Sprintf("%d kinds of check are set", kinds), "set exactly one of http_health_check, tcp_health_check and grpc_health_check")
	}
	return c, bad
}

// fits tells what of a check the endpoints cannot do.
func (c *healthCheck) fits(to []Endpoint) []KeyProblem {
	var bad problems
	for _, e := range to {
		if e.URL == nil {
			continue
		}
		secure := e.URL.Scheme == "https" || e.URL.Scheme == "h3"
		switch {
		case c.tcp != nil && e.URL.Scheme == "h3":
			bad.add("tcp_health_check", "h3 endpoints are not reached by TCP", "use http_health_check or grpc_health_check")
		case c.http != nil && c.http.codec == "HTTP3" && !secure:
			bad.add("http_health_check.codec_client_type", "HTTP3 needs https or h3 endpoints", "use HTTP1 or HTTP2")
		case c.http != nil && e.URL.Scheme == "h3" && (c.http.codec == "HTTP1" || c.http.codec == "HTTP2"):
			bad.add("http_health_check.codec_client_type", "h3 endpoints speak HTTP3 only", "leave it away")
		default:
			continue
		}
		break
	}
	return bad
}

func compileHTTPCheck(h *HTTPHealthCheck, bad *problems) *httpCheck {
	const at = "http_health_check."
	c := &httpCheck{
		host: h.Host, path: h.Path, method: h.Method, codec: h.CodecClientType,
		send:    payload(h.Send, at+"send", bad),
		receive: payloads(h.Receive, at+"receive", bad),
		add:     headerOptions(h.RequestHeadersToAdd, at+"request_headers_to_add", bad),
		buffer:  1024, expected: statuses(h.ExpectedStatuses, at+"expected_statuses", bad),
		retriable: statuses(h.RetriableStatuses, at+"retriable_statuses", bad),
	}
	if h.ResponseBufferSize != nil {
		c.buffer = min(*h.ResponseBufferSize, 1<<30)
	}
	switch {
	case c.path == "":
		bad.add("http_health_check", "path is missing", "write path: /healthz")
	case c.path[0] != '/' || strings.ContainsFunc(c.path, func(r rune) bool { return r <= ' ' || r == 0x7F || r == '#' }):
		bad.add(at+"path", "it does not begin with a slash, or holds characters that no path has", "write path: /healthz")
	}
	if len(c.expected) == 0 {
		c.expected = []StatusRange{{200, 201}}
	}
	c.method = strings.ToUpper(strings.TrimPrefix(strings.ToUpper(c.method), "METHOD_"))
	switch c.method {
	case "", "METHOD_UNSPECIFIED", "UNSPECIFIED":
		c.method = http.MethodGet
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH":
	default:
		bad.add(at+"method", h.Method+" is not a method that a check can have", "use GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS or TRACE")
	}
	if c.send != nil && (c.method == "GET" || c.method == "HEAD" || c.method == "DELETE" || c.method == "TRACE") {
		if h.Method != "" {
			bad.add(at+"method", "a request by "+c.method+" has no body, and send is set", "use POST, PUT, PATCH or OPTIONS")
		}
	}
	if !isAuthority(c.host) {
		bad.add(at+"host", "it holds characters that no host has", "write a name such as app.internal")
	}
	for i, name := range h.RequestHeadersToRemove {
		if !exchange.IsToken(name) {
			bad.add(fmt.Sprintf("%srequest_headers_to_remove[%d]", at, i), "this is not the name of a header", "use letters, digits and -")
		}
		c.remove = append(c.remove, name)
	}
	return c
}

func isAuthority(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7F || strings.ContainsRune(`/\?#@"<>`, r) })
}

func statuses(list []StatusRange, key string, bad *problems) []StatusRange {
	for i, s := range list {
		if s.Start < 100 || s.End > 600 || s.Start >= s.End {
			bad.add(fmt.Sprintf("%s[%d]", key, i), fmt.Sprintf("%d to %d is not a range of statuses", s.Start, s.End), "write start: 200 and end: 300; the end is not part of it")
		}
	}
	return list
}

func payloads(list []Payload, key string, bad *problems) [][]byte {
	var out [][]byte
	for i := range list {
		out = append(out, payload(&list[i], fmt.Sprintf("%s[%d]", key, i), bad))
	}
	return out
}

// payload reads bytes; nil for none.
func payload(p *Payload, key string, bad *problems) []byte {
	if p == nil {
		return nil
	}
	b, field, err := p.decode()
	if err != nil {
		if field != "" {
			key += "." + field
		}
		bad.add(key, err.Error(), `write text with hexadecimal digits such as "50494e47", or binary with base64`)
	}
	return b
}

func (p *Payload) decode() (b []byte, field string, err error) {
	switch {
	case p.Text != "" && p.Binary != "":
		return nil, "", errors.New("text and binary are both set")
	case p.Text != "":
		if b, err = hex.DecodeString(p.Text); err != nil {
			return nil, "text", errors.New("this is not an even number of hexadecimal digits")
		}
		return b, "text", nil
	case p.Binary != "":
		// The JSON form of protobuf knows both alphabets, padded or not.
		s := strings.TrimRight(strings.NewReplacer("-", "+", "_", "/").Replace(p.Binary), "=")
		if b, err = base64.RawStdEncoding.DecodeString(s); err != nil {
			return nil, "binary", errors.New("this is not base64")
		}
		return b, "binary", nil
	}
	return nil, "", errors.New("neither text nor binary is set")
}

// headerOption is a header to add, and what happens if there is one already.
type headerOption struct {
	name, value string
	action      headerAction
}

type headerAction int

const (
	appendOrAdd headerAction = iota
	addIfAbsent
	overwriteOrAdd
	overwriteIfExists
)

var headerActions = map[string]headerAction{
	"": appendOrAdd, "APPEND_IF_EXISTS_OR_ADD": appendOrAdd, "ADD_IF_ABSENT": addIfAbsent,
	"OVERWRITE_IF_EXISTS_OR_ADD": overwriteOrAdd, "OVERWRITE_IF_EXISTS": overwriteIfExists,
}

// headerOptions reads a list of {header: {key, value}, append_action}. Values
// are sent as they stand: there is no request whose parts they could name.
func headerOptions(list []any, key string, bad *problems) []headerOption {
	var out []headerOption
	for i, item := range list {
		at := fmt.Sprintf("%s[%d]", key, i)
		const hint = "write - header: {key: X-Name, value: text}"
		m, _ := item.(map[string]any)
		header, _ := m["header"].(map[string]any)
		o := headerOption{name: scalar(header["key"]), value: scalar(header["value"])}
		if raw := scalar(either(header, "raw_value", "rawValue")); raw != "" {
			b, err := base64.StdEncoding.DecodeString(raw)
			if err != nil {
				bad.add(at+".header.raw_value", "this is not base64", hint)
			}
			o.value = string(b)
		}
		if !exchange.IsToken(o.name) {
			bad.add(at+".header.key", "this is not the name of a header", hint)
		} else if !exchange.IsFieldValue(o.value) {
			bad.add(at+".header.value", "it holds characters that no header has", hint)
		}
		name := scalar(either(m, "append_action", "appendAction"))
		action, known := headerActions[strings.ToUpper(name)]
		if !known {
			bad.add(at+".append_action", name+" is unknown", "use APPEND_IF_EXISTS_OR_ADD, ADD_IF_ABSENT, OVERWRITE_IF_EXISTS_OR_ADD or OVERWRITE_IF_EXISTS")
		}
		if old, set := m["append"].(bool); set && name == "" && !old {
			action = overwriteOrAdd
		}
		o.action = action
		out = append(out, o)
	}
	return out
}

// apply puts the header among others.
func (o headerOption) apply(h http.Header) {
	have := h.Values(o.name) != nil
	switch o.action {
	case appendOrAdd:
		h.Add(o.name, o.value)
	case addIfAbsent:
		if !have {
			h.Set(o.name, o.value)
		}
	case overwriteOrAdd:
		h.Set(o.name, o.value)
	case overwriteIfExists:
		if have {
			h.Set(o.name, o.value)
		}
	}
}

func either(m map[string]any, a, b string) any {
	if v, ok := m[a]; ok {
		return v
	}
	return m[b]
}

// scalar is a value as text.
func scalar(v any) string {
	switch v := v.(type) {
	case nil, map[string]any, []any:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

func orDefault[T any](set *T, unset T) T {
	if set == nil {
		return unset
	}
	return *set
}
