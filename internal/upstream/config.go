package upstream

import (
	"net/netip"
	"net/url"
	"time"
)

// Config holds the global settings for reaching upstreams. The tags are the
// declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.15"`

	DNSLookupFamily        string         `key:"dns_lookup_family" default:"V4_PREFERRED" form:"exact" enum:"AUTO|V4_ONLY|V6_ONLY|V4_PREFERRED|ALL" status:"acts" doc:"Address families looked up for upstream hosts; upper case only. Every address is an endpoint."`
	DNSRefreshRate         *time.Duration `key:"dns_refresh_rate" status:"acts" doc:"How often upstream names that are in use are resolved again, at least 1ms. Unset: the record's TTL, or 10s where the system's resolver is asked."`
	DNSFailureRefreshRate  *time.Duration `key:"dns_failure_refresh_rate" status:"acts" doc:"How soon a failed lookup is tried again, at least 1ms; 1s if unset. Meanwhile the last good answer is used."`
	DNSQueryTimeout        *time.Duration `key:"dns_query_timeout" status:"acts" doc:"Time for one DNS query; whole seconds are used. 5s if unset."`
	DNSQueryTries          *uint32        `key:"dns_query_tries" strict:"true" status:"acts" doc:"Tries per DNS query and resolver; 4 if unset."`
	DNSUDPMaxQueries       *uint32        `key:"dns_udp_max_queries" default:"100" strict:"true" status:"acts" doc:"Queries per UDP port before another one is used; 0 is any number."`
	DNSUseTCP              *bool          `key:"dns_use_tcp" strict:"true" status:"acts" doc:"Ask DNS over TCP."`
	DNSResolvers           []string       `key:"dns_resolvers" status:"acts" doc:"Resolvers, udp://IP:port or tcp://IP:port; the system's if unset."`
	BindSourceAddress      string         `key:"envoy_bind_config_source_address" status:"acts" doc:"Source IP address of connections to upstreams."`
	BindFreebind           *bool          `key:"envoy_bind_config_freebind" strict:"true" status:"acts" doc:"Allow a source address that this machine does not have (IP_FREEBIND)."`
	UpstreamDialAllow      []netip.Prefix `key:"upstream_dial_allow" section:"ours" form:"prefixes" status:"accepted" doc:"Networks that routes from API or cluster may dial although they are loopback, link-local or metadata addresses."`
	CircuitBreakerSettings *Breakers      `key:"circuit_breaker_thresholds" section:"2.16" status:"acts" doc:"Limits of connections and requests per upstream; routes override field by field."`
}

// Breakers are circuit breaker limits; nil fields are the defaults
// 1024, 1024, 1024, 3 and unlimited.
type Breakers struct {
	MaxConnections     *uint32 `key:"max_connections" strict:"true" status:"acts" doc:"Connections to the upstream of a route, WebSockets included; 1024 if unset. Requests wait for one for up to 10s."`
	MaxPendingRequests *uint32 `key:"max_pending_requests" strict:"true" status:"acts" doc:"Requests waiting for a connection; 1024 if unset."`
	MaxRequests        *uint32 `key:"max_requests" strict:"true" status:"acts" doc:"Requests under way, WebSockets included; 1024 if unset."`
	MaxRetries         *uint32 `key:"max_retries" strict:"true" status:"acts" doc:"Retries under way, of requests that could not be sent; 3 if unset."`
	MaxConnectionPools *uint32 `key:"max_connection_pools" strict:"true" status:"acts" doc:"Addresses with connections; unlimited if unset."`
}

// RouteConfig holds the per-route settings for reaching upstreams.
type RouteConfig struct {
	_ struct{} `section:"3.2"`

	To []Endpoint `key:"to" form:"endpoints" status:"acts" doc:"One URL or a list; http, https, h2c, h3 (HTTP/3, an addition of ours), tcp, udp, ssh, unix and https+unix. A weight may follow a comma: all endpoints or none carry one."`

	_ struct{} `section:"3.7"`

	TLSSkipVerify                 bool   `key:"tls_skip_verify" status:"acts" doc:"Accept any certificate of the upstream."`
	TLSUpstreamServerName         string `key:"tls_upstream_server_name" status:"acts" doc:"Server name sent to, and expected of, the upstream; beats tls_server_name."`
	TLSServerName                 string `key:"tls_server_name" deprecated:"tls_upstream_server_name" status:"acts" doc:"Old name of tls_upstream_server_name."`
	TLSUpstreamAllowRenegotiation bool   `key:"tls_upstream_allow_renegotiation" status:"acts" doc:"Let the upstream renegotiate TLS."`

	// PEM, from the inline key (base64) or the file; inline wins.
	TLSCustomCA       []byte `key:"tls_custom_ca" form:"b64" status:"acts" doc:"Base64 PEM of the CA for this upstream; replaces system and global roots."`
	TLSCustomCAFile   string `key:"tls_custom_ca_file" form:"file" status:"acts" doc:"File holding the PEM CA for this upstream."`
	TLSClientCert     []byte `key:"tls_client_cert" form:"b64" status:"acts" doc:"Base64 PEM of the client certificate shown to the upstream; needs tls_client_key."`
	TLSClientKey      []byte `key:"tls_client_key" form:"b64" secret:"true" status:"acts" doc:"Base64 PEM of the key of tls_client_cert."`
	TLSClientCertFile string `key:"tls_client_cert_file" form:"file" status:"acts" doc:"File holding the PEM client certificate shown to the upstream."`
	TLSClientKeyFile  string `key:"tls_client_key_file" form:"file" status:"acts" doc:"File holding the PEM key of tls_client_cert_file."`

	_ struct{} `section:"3.8"`

	LoadBalancingPolicy   string        `key:"load_balancing_policy" aliases:"lb_policy" enum:"ROUND_ROBIN|MAGLEV|RANDOM|RING_HASH|LEAST_REQUEST" default:"ROUND_ROBIN" status:"acts" doc:"How an endpoint is chosen. RING_HASH and MAGLEV keep a session, else a client address, with one endpoint."`
	HealthChecks          []HealthCheck `key:"health_checks" status:"acts" doc:"Active health checks of the endpoints, in the JSON form of protobuf (durations such as 5s)."`
	HealthyPanicThreshold *int32        `key:"healthy_panic_threshold" strict:"true" status:"acts" doc:"Percentage of healthy endpoints below which all of them are used; 50 if unset, 0 for never."`
	OutlierDetection      *Outlier      `key:"outlier_detection" status:"acts" doc:"Ejects endpoints whose answers fail; in the JSON form of protobuf."`
	CircuitBreakers       *Breakers     `key:"circuit_breaker_thresholds" status:"acts" doc:"Limits of connections and requests; overrides the global limits field by field."`
}

// Endpoint is one destination of a route. Weight is 0 where no endpoint of
// the route carries one.
type Endpoint struct {
	URL    *url.URL
	Weight uint32
}

// String gives the URL and, after a comma, the weight.
func (e Endpoint) String() string {
	if e.URL == nil {
		return ""
	}
	return e.URL.String()
}

// HealthCheck is one active health check (configuration.md §3.8).
type HealthCheck struct {
	Timeout                      *time.Duration   `key:"timeout" form:"pbduration" status:"acts" doc:"Time for one check; required."`
	Interval                     *time.Duration   `key:"interval" form:"pbduration" status:"acts" doc:"Time between checks; required."`
	HealthyThreshold             *uint32          `key:"healthy_threshold" status:"acts" doc:"Good checks in a row before an unhealthy endpoint is healthy again; required. The first success of a new one counts at once."`
	UnhealthyThreshold           *uint32          `key:"unhealthy_threshold" status:"acts" doc:"Bad checks in a row before an endpoint is unhealthy; required. An unexpected HTTP status counts at once."`
	InitialJitter                *time.Duration   `key:"initial_jitter" form:"pbduration" status:"acts" doc:"Random delay, up to this, before the first check."`
	IntervalJitter               *time.Duration   `key:"interval_jitter" form:"pbduration" status:"acts" doc:"Random delay, up to this, added to each interval."`
	IntervalJitterPercent        uint32           `key:"interval_jitter_percent" status:"acts" doc:"Random delay, up to this percentage of the interval, added to it."`
	ReuseConnection              *bool            `key:"reuse_connection" status:"acts" doc:"Keep the connection between checks; true if unset."`
	NoTrafficInterval            *time.Duration   `key:"no_traffic_interval" form:"pbduration" status:"acts" doc:"Interval while the route never had a request; beats the others. 60s if unset."`
	NoTrafficHealthyInterval     *time.Duration   `key:"no_traffic_healthy_interval" form:"pbduration" status:"acts" doc:"As no_traffic_interval, of endpoints that are healthy; that if unset."`
	UnhealthyInterval            *time.Duration   `key:"unhealthy_interval" form:"pbduration" status:"acts" doc:"Interval while unhealthy; interval if unset."`
	UnhealthyEdgeInterval        *time.Duration   `key:"unhealthy_edge_interval" form:"pbduration" status:"acts" doc:"Time to the first check after becoming unhealthy; unhealthy_interval if unset."`
	HealthyEdgeInterval          *time.Duration   `key:"healthy_edge_interval" form:"pbduration" status:"acts" doc:"Time to the first check after becoming healthy; interval if unset."`
	AlwaysLogHealthCheckFailures bool             `key:"always_log_health_check_failures" status:"acts" doc:"Log every failed check, not only changes."`
	AlwaysLogHealthCheckSuccess  bool             `key:"always_log_health_check_success" status:"acts" doc:"Log every good check, not only changes."`
	TransportSocketMatchCriteria map[string]any   `key:"transport_socket_match_criteria" status:"ignored" doc:"Understood and ignored: a route has one set of TLS settings, and nothing to choose from."`
	AltPort                      *uint32          `key:"alt_port" status:"acts" doc:"Port to check instead of the endpoint's."`
	HTTPHealthCheck              *HTTPHealthCheck `key:"http_health_check" status:"acts" doc:"Check by an HTTP request."`
	TCPHealthCheck               *TCPHealthCheck  `key:"tcp_health_check" status:"acts" doc:"Check by a TCP connection."`
	GRPCHealthCheck              *GRPCHealthCheck `key:"grpc_health_check" status:"acts" doc:"Check by the gRPC health service."`
}

// HTTPHealthCheck checks by an HTTP request.
type HTTPHealthCheck struct {
	Host                   string         `key:"host" status:"acts" doc:"Host of the request; the name of the route's cluster, as the access log gives it, if unset."`
	Path                   string         `key:"path" status:"acts" doc:"Path of the request, with its query; required."`
	Send                   *Payload       `key:"send" status:"acts" doc:"Body of the request."`
	Receive                []Payload      `key:"receive" status:"acts" doc:"Parts the answer must hold."`
	ResponseBufferSize     *uint64        `key:"response_buffer_size" status:"acts" doc:"Bytes of the answer in which receive is looked for; 1024 if unset, 0 is no limit."`
	RequestHeadersToRemove []string       `key:"request_headers_to_remove" status:"acts" doc:"Headers left out of the request."`
	RequestHeadersToAdd    []any          `key:"request_headers_to_add" status:"acts" doc:"Headers added to the request: a list of header {key, value} and append_action. Values are sent as written."`
	Method                 string         `key:"method" status:"acts" doc:"Method of the request; GET if unset. With send: POST, PUT, PATCH or OPTIONS."`
	ExpectedStatuses       []StatusRange  `key:"expected_statuses" status:"acts" doc:"Half-open ranges of good statuses; 200 if unset."`
	RetriableStatuses      []StatusRange  `key:"retriable_statuses" status:"acts" doc:"Half-open ranges of statuses that count against the threshold instead of failing at once."`
	CodecClientType        string         `key:"codec_client_type" enum:"HTTP1|HTTP2|HTTP3" status:"acts" doc:"HTTP version of the request. Unset: HTTP1, but HTTP2 for h2c and HTTP3 for h3 endpoints."`
	ServiceNameMatcher     map[string]any `key:"service_name_matcher" status:"ignored" doc:"Understood and ignored: it matches a header by which another proxy names its own upstream."`
}

// StatusRange is a half-open range of HTTP statuses.
type StatusRange struct {
	Start int64 `key:"start" status:"acts" doc:"First status of the range."`
	End   int64 `key:"end" status:"acts" doc:"First status behind the range."`
}

// TCPHealthCheck checks by connecting, sending and expecting bytes.
type TCPHealthCheck struct {
	Send    *Payload  `key:"send" status:"acts" doc:"Bytes to send; none: connect only."`
	Receive []Payload `key:"receive" status:"acts" doc:"Bytes expected."`
}

// Payload is a sequence of bytes, written in hexadecimal or base64.
type Payload struct {
	Text   string `key:"text" status:"acts" doc:"The bytes in hexadecimal."`
	Binary string `key:"binary" status:"acts" doc:"The bytes in base64."`
}

// GRPCHealthCheck checks by grpc.health.v1.Health.
type GRPCHealthCheck struct {
	ServiceName     string `key:"service_name" status:"acts" doc:"Service asked about; the server as a whole if unset."`
	Authority       string `key:"authority" status:"acts" doc:":authority of the request; the name of the route's cluster if unset."`
	InitialMetadata []any  `key:"initial_metadata" status:"acts" doc:"Metadata added to the request: a list of header {key, value}."`
}

// Outlier ejects endpoints whose answers fail; nil fields are defaults
// (configuration.md §3.8).
type Outlier struct {
	Consecutive5xx                         *uint32        `key:"consecutive_5xx" status:"acts" doc:"Answers 5xx in a row before ejection; 5. Failures before an answer count as such, unless counted apart."`
	Interval                               *time.Duration `key:"interval" form:"pbduration" status:"acts" doc:"Time between sweeps; 10s."`
	BaseEjectionTime                       *time.Duration `key:"base_ejection_time" form:"pbduration" status:"acts" doc:"Time of a first ejection; 30s. Each further one is as much longer."`
	MaxEjectionTime                        *time.Duration `key:"max_ejection_time" form:"pbduration" status:"acts" doc:"Longest ejection; 300s, or base_ejection_time if that is longer."`
	MaxEjectionTimeJitter                  *time.Duration `key:"max_ejection_time_jitter" form:"pbduration" status:"acts" doc:"Random time, up to this, added to an ejection; 0s."`
	MaxEjectionPercent                     *uint32        `key:"max_ejection_percent" status:"acts" doc:"Share of endpoints that may be ejected at a time, in percent; 10, so that nothing is ejected below ten endpoints."`
	AlwaysEjectOneHost                     *bool          `key:"always_eject_one_host" status:"acts" doc:"One endpoint may be ejected whatever max_ejection_percent says; false."`
	EnforcingConsecutive5xx                *uint32        `key:"enforcing_consecutive_5xx" status:"acts" doc:"Percent of such ejections that are carried out; 100."`
	ConsecutiveGatewayFailure              *uint32        `key:"consecutive_gateway_failure" status:"acts" doc:"Answers 502, 503 and 504 in a row before ejection; 5. Failures before an answer count as such, unless counted apart."`
	EnforcingConsecutiveGatewayFailure     *uint32        `key:"enforcing_consecutive_gateway_failure" status:"acts" doc:"Percent of such ejections that are carried out; 0."`
	SplitExternalLocalOriginErrors         *bool          `key:"split_external_local_origin_errors" status:"acts" doc:"Count failures before an answer (connecting, timeouts) apart from answers; false."`
	ConsecutiveLocalOriginFailure          *uint32        `key:"consecutive_local_origin_failure" status:"acts" doc:"Failures before an answer in a row before ejection, if they are counted apart; 5."`
	EnforcingConsecutiveLocalOriginFailure *uint32        `key:"enforcing_consecutive_local_origin_failure" status:"acts" doc:"Percent of such ejections that are carried out; 100."`
	EnforcingLocalOriginSuccessRate        *uint32        `key:"enforcing_local_origin_success_rate" status:"acts" doc:"Percent of such ejections that are carried out; 100."`
	EnforcingSuccessRate                   *uint32        `key:"enforcing_success_rate" status:"acts" doc:"Percent of such ejections that are carried out; 100."`
	SuccessRateMinimumHosts                *uint32        `key:"success_rate_minimum_hosts" status:"acts" doc:"Endpoints with enough requests that are needed for judging by success rate; 5."`
	SuccessRateRequestVolume               *uint32        `key:"success_rate_request_volume" status:"acts" doc:"Requests in an interval that an endpoint needs for being judged by success rate; 100."`
	SuccessRateStdevFactor                 *uint32        `key:"success_rate_stdev_factor" status:"acts" doc:"Standard deviations, in thousandths, that a success rate may lie below the mean; 1900."`
	FailurePercentageThreshold             *uint32        `key:"failure_percentage_threshold" status:"acts" doc:"Percent of failures before ejection; 85."`
	EnforcingFailurePercentage             *uint32        `key:"enforcing_failure_percentage" status:"acts" doc:"Percent of such ejections that are carried out; 0."`
	EnforcingFailurePercentageLocalOrigin  *uint32        `key:"enforcing_failure_percentage_local_origin" status:"acts" doc:"Percent of such ejections that are carried out; 0."`
	FailurePercentageMinimumHosts          *uint32        `key:"failure_percentage_minimum_hosts" status:"acts" doc:"Endpoints with enough requests that are needed for judging by failure percentage; 5."`
	FailurePercentageRequestVolume         *uint32        `key:"failure_percentage_request_volume" status:"acts" doc:"Requests in an interval that an endpoint needs for being judged by failure percentage; 50."`
	SuccessfulActiveHealthCheckUnejectHost *bool          `key:"successful_active_health_check_uneject_host" status:"acts" doc:"A good health check ends an ejection; true."`
}
