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

	To []Endpoint `key:"to" form:"endpoints" status:"acts" doc:"One URL or a list; http, https, h2c, tcp, udp, ssh, unix and https+unix. A weight may follow a comma: all endpoints or none carry one."`

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
	HealthChecks          []HealthCheck `key:"health_checks" status:"accepted" doc:"Active health checks of the endpoints, in the JSON form of protobuf (durations such as 5s)."`
	HealthyPanicThreshold *int32        `key:"healthy_panic_threshold" strict:"true" status:"acts" doc:"Percentage of healthy endpoints below which all of them are used; 50 if unset, 0 for never."`
	OutlierDetection      *Outlier      `key:"outlier_detection" status:"accepted" doc:"Ejects endpoints whose answers fail; in the JSON form of protobuf."`
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
	Timeout                      *time.Duration   `key:"timeout" form:"pbduration" status:"accepted" doc:"Time for one check; required."`
	Interval                     *time.Duration   `key:"interval" form:"pbduration" status:"accepted" doc:"Time between checks; required."`
	HealthyThreshold             *uint32          `key:"healthy_threshold" status:"accepted" doc:"Good checks before an endpoint is healthy; required."`
	UnhealthyThreshold           *uint32          `key:"unhealthy_threshold" status:"accepted" doc:"Bad checks before an endpoint is unhealthy; required."`
	InitialJitter                *time.Duration   `key:"initial_jitter" form:"pbduration" status:"accepted" doc:"Random delay before the first check."`
	IntervalJitter               *time.Duration   `key:"interval_jitter" form:"pbduration" status:"accepted" doc:"Random delay added to the interval."`
	IntervalJitterPercent        uint32           `key:"interval_jitter_percent" status:"accepted" doc:"Random delay added to the interval, in percent of it."`
	ReuseConnection              *bool            `key:"reuse_connection" status:"accepted" doc:"Keep the connection between checks; true if unset."`
	NoTrafficInterval            *time.Duration   `key:"no_traffic_interval" form:"pbduration" status:"accepted" doc:"Interval while the endpoint never had traffic; 60s if unset."`
	NoTrafficHealthyInterval     *time.Duration   `key:"no_traffic_healthy_interval" form:"pbduration" status:"accepted" doc:"As no_traffic_interval, once healthy."`
	UnhealthyInterval            *time.Duration   `key:"unhealthy_interval" form:"pbduration" status:"accepted" doc:"Interval while unhealthy."`
	UnhealthyEdgeInterval        *time.Duration   `key:"unhealthy_edge_interval" form:"pbduration" status:"accepted" doc:"Interval right after becoming unhealthy."`
	HealthyEdgeInterval          *time.Duration   `key:"healthy_edge_interval" form:"pbduration" status:"accepted" doc:"Interval right after becoming healthy."`
	AlwaysLogHealthCheckFailures bool             `key:"always_log_health_check_failures" status:"accepted" doc:"Log every failed check."`
	AlwaysLogHealthCheckSuccess  bool             `key:"always_log_health_check_success" status:"accepted" doc:"Log every good check."`
	TransportSocketMatchCriteria map[string]any   `key:"transport_socket_match_criteria" status:"accepted" doc:"Understood and ignored."`
	AltPort                      *uint32          `key:"alt_port" status:"accepted" doc:"Port to check instead of the endpoint's."`
	HTTPHealthCheck              *HTTPHealthCheck `key:"http_health_check" status:"accepted" doc:"Check by an HTTP request."`
	TCPHealthCheck               *TCPHealthCheck  `key:"tcp_health_check" status:"accepted" doc:"Check by a TCP connection."`
	GRPCHealthCheck              *GRPCHealthCheck `key:"grpc_health_check" status:"accepted" doc:"Check by the gRPC health service."`
}

// HTTPHealthCheck checks by an HTTP request.
type HTTPHealthCheck struct {
	Host                   string         `key:"host" status:"accepted" doc:"Host of the request."`
	Path                   string         `key:"path" status:"accepted" doc:"Path of the request; required."`
	Send                   *Payload       `key:"send" status:"accepted" doc:"Body of the request."`
	Receive                []Payload      `key:"receive" status:"accepted" doc:"Parts the answer must hold."`
	ResponseBufferSize     *uint64        `key:"response_buffer_size" status:"accepted" doc:"Bytes of the answer that are looked at; 1024 if unset."`
	RequestHeadersToRemove []string       `key:"request_headers_to_remove" status:"accepted" doc:"Headers left out of the request."`
	RequestHeadersToAdd    []any          `key:"request_headers_to_add" status:"accepted" doc:"Headers added to the request."`
	Method                 string         `key:"method" status:"accepted" doc:"Method of the request."`
	ExpectedStatuses       []StatusRange  `key:"expected_statuses" status:"accepted" doc:"Half-open ranges of good statuses; 200 if unset."`
	RetriableStatuses      []StatusRange  `key:"retriable_statuses" status:"accepted" doc:"Half-open ranges of statuses that count against the threshold instead of failing at once."`
	CodecClientType        string         `key:"codec_client_type" enum:"HTTP1|HTTP2|HTTP3" status:"accepted" doc:"HTTP version of the request."`
	ServiceNameMatcher     map[string]any `key:"service_name_matcher" status:"accepted" doc:"Understood and ignored."`
}

// StatusRange is a half-open range of HTTP statuses.
type StatusRange struct {
	Start int64 `key:"start" status:"accepted" doc:"First status of the range."`
	End   int64 `key:"end" status:"accepted" doc:"First status behind the range."`
}

// TCPHealthCheck checks by connecting, sending and expecting bytes.
type TCPHealthCheck struct {
	Send    *Payload  `key:"send" status:"accepted" doc:"Bytes to send; none: connect only."`
	Receive []Payload `key:"receive" status:"accepted" doc:"Bytes expected."`
}

// Payload is a sequence of bytes, written in hexadecimal or base64.
type Payload struct {
	Text   string `key:"text" status:"accepted" doc:"The bytes in hexadecimal."`
	Binary string `key:"binary" status:"accepted" doc:"The bytes in base64."`
}

// GRPCHealthCheck checks by grpc.health.v1.Health.
type GRPCHealthCheck struct {
	ServiceName     string `key:"service_name" status:"accepted" doc:"Service asked about."`
	Authority       string `key:"authority" status:"accepted" doc:":authority of the request."`
	InitialMetadata []any  `key:"initial_metadata" status:"accepted" doc:"Metadata added to the request."`
}

// Outlier ejects endpoints whose answers fail; nil fields are defaults
// (configuration.md §3.8).
type Outlier struct {
	Consecutive5xx                         *uint32        `key:"consecutive_5xx" status:"accepted" doc:"Answers 5xx in a row before ejection; 5."`
	Interval                               *time.Duration `key:"interval" form:"pbduration" status:"accepted" doc:"Time between sweeps; 10s."`
	BaseEjectionTime                       *time.Duration `key:"base_ejection_time" form:"pbduration" status:"accepted" doc:"Time of a first ejection; 30s."`
	MaxEjectionTime                        *time.Duration `key:"max_ejection_time" form:"pbduration" status:"accepted" doc:"Longest ejection; 300s."`
	MaxEjectionTimeJitter                  *time.Duration `key:"max_ejection_time_jitter" form:"pbduration" status:"accepted" doc:"Random time added to an ejection; 0s."`
	MaxEjectionPercent                     *uint32        `key:"max_ejection_percent" status:"accepted" doc:"Share of endpoints that may be ejected; 10."`
	AlwaysEjectOneHost                     *bool          `key:"always_eject_one_host" status:"accepted" doc:"One endpoint may always be ejected; false."`
	EnforcingConsecutive5xx                *uint32        `key:"enforcing_consecutive_5xx" status:"accepted" doc:"Percent of such ejections that are carried out; 100."`
	ConsecutiveGatewayFailure              *uint32        `key:"consecutive_gateway_failure" status:"accepted" doc:"Gateway failures in a row before ejection; 5."`
	EnforcingConsecutiveGatewayFailure     *uint32        `key:"enforcing_consecutive_gateway_failure" status:"accepted" doc:"Percent of such ejections that are carried out; 0."`
	SplitExternalLocalOriginErrors         *bool          `key:"split_external_local_origin_errors" status:"accepted" doc:"Count errors of connecting apart from answers; false."`
	ConsecutiveLocalOriginFailure          *uint32        `key:"consecutive_local_origin_failure" status:"accepted" doc:"Errors of connecting in a row before ejection; 5."`
	EnforcingConsecutiveLocalOriginFailure *uint32        `key:"enforcing_consecutive_local_origin_failure" status:"accepted" doc:"Percent of such ejections that are carried out; 100."`
	EnforcingLocalOriginSuccessRate        *uint32        `key:"enforcing_local_origin_success_rate" status:"accepted" doc:"Percent of such ejections that are carried out; 100."`
	EnforcingSuccessRate                   *uint32        `key:"enforcing_success_rate" status:"accepted" doc:"Percent of such ejections that are carried out; 100."`
	SuccessRateMinimumHosts                *uint32        `key:"success_rate_minimum_hosts" status:"accepted" doc:"Endpoints needed for judging by success rate; 5."`
	SuccessRateRequestVolume               *uint32        `key:"success_rate_request_volume" status:"accepted" doc:"Requests needed for judging by success rate; 100."`
	SuccessRateStdevFactor                 *uint32        `key:"success_rate_stdev_factor" status:"accepted" doc:"Standard deviations, in thousandths, below the mean; 1900."`
	FailurePercentageThreshold             *uint32        `key:"failure_percentage_threshold" status:"accepted" doc:"Percent of failures before ejection; 85."`
	EnforcingFailurePercentage             *uint32        `key:"enforcing_failure_percentage" status:"accepted" doc:"Percent of such ejections that are carried out; 0."`
	EnforcingFailurePercentageLocalOrigin  *uint32        `key:"enforcing_failure_percentage_local_origin" status:"accepted" doc:"Percent of such ejections that are carried out; 0."`
	FailurePercentageMinimumHosts          *uint32        `key:"failure_percentage_minimum_hosts" status:"accepted" doc:"Endpoints needed for judging by failure percentage; 5."`
	FailurePercentageRequestVolume         *uint32        `key:"failure_percentage_request_volume" status:"accepted" doc:"Requests needed for judging by failure percentage; 50."`
	SuccessfulActiveHealthCheckUnejectHost *bool          `key:"successful_active_health_check_uneject_host" status:"accepted" doc:"A good health check ends an ejection; true."`
}
