package telemetry

// Config holds the settings of logs, metrics, traces, debugging and health
// endpoints. The tags are the declaration that package config parses and
// documents.
type Config struct {
	_ struct{} `section:"2.13"`

	LogLevel      string `key:"log_level" default:"info" form:"exact" enum:"trace|debug|info|warn|warning|error|critical|fatal|panic|off|none|disabled" status:"acts" doc:"Least level that is logged; lower case."`
	ProxyLogLevel string `key:"proxy_log_level" form:"exact" enum:"|trace|debug|info|warn|warning|error|critical|fatal|panic|off|none|disabled" status:"acts" doc:"Least level of the data plane; log_level if unset. Access logs vanish above info."`
	// nil: the default fields; empty: none.
	AccessLogFields    []string `key:"access_log_fields" status:"acts" doc:"Fields of the access log, with headers.<Name> for request headers."`
	AuthorizeLogFields []string `key:"authorize_log_fields" status:"acts" doc:"Fields of the authorize log, with headers.<Name> for request headers."`

	_ struct{} `section:"2.14"`

	MetricsAddress            string `key:"metrics_address" status:"acts" doc:"Listener, host:port, of Prometheus metrics at /metrics; off if unset."`
	MetricsBasicAuth          string `key:"metrics_basic_auth" secret:"true" narrows:"true" status:"acts" doc:"Base64 of user:password asked for at the metrics listener."`
	MetricsCertificate        []byte `key:"metrics_certificate" form:"b64" status:"acts" doc:"Base64 PEM of the certificate of the metrics listener."`
	MetricsCertificateKey     []byte `key:"metrics_certificate_key" form:"b64" secret:"true" status:"acts" doc:"Base64 PEM of the key of metrics_certificate."`
	MetricsCertificateFile    string `key:"metrics_certificate_file" form:"file" status:"acts" doc:"File holding the PEM certificate of the metrics listener."`
	MetricsCertificateKeyFile string `key:"metrics_certificate_key_file" form:"file" status:"acts" doc:"File holding the PEM key of metrics_certificate_file."`
	MetricsClientCA           []byte `key:"metrics_client_ca" form:"b64" narrows:"true" status:"acts" doc:"Base64 PEM of the CA of client certificates asked for at the metrics listener."`
	MetricsClientCAFile       string `key:"metrics_client_ca_file" form:"file" narrows:"true" status:"acts" doc:"File holding the PEM CA of client certificates asked for at the metrics listener."`

	OTelTracesExporter             string   `key:"otel_traces_exporter" default:"none" enum:"none|otlp" status:"accepted" doc:"Where traces go: otlp or none."`
	OTelTracesSamplerArg           *float64 `key:"otel_traces_sampler_arg" default:"1.0" status:"accepted" doc:"Share of requests that are traced, 0 to 1."`
	OTelResourceAttributes         []string `key:"otel_resource_attributes" status:"accepted" doc:"Attributes (key=value) of all traces."`
	OTelLogLevel                   string   `key:"otel_log_level" default:"info" status:"accepted" doc:"Least level logged by the trace exporter."`
	OTelAttributeValueLengthLimit  *int32   `key:"otel_attribute_value_length_limit" default:"256" status:"accepted" doc:"Longest value of a trace attribute."`
	OTelExporterOTLPEndpoint       string   `key:"otel_exporter_otlp_endpoint" status:"accepted" doc:"URL that traces are sent to."`
	OTelExporterOTLPTracesEndpoint string   `key:"otel_exporter_otlp_traces_endpoint" status:"accepted" doc:"As otel_exporter_otlp_endpoint, and wins."`
	OTelExporterOTLPProtocol       string   `key:"otel_exporter_otlp_protocol" enum:"|grpc|http/protobuf" status:"accepted" doc:"grpc or http/protobuf; by port if unset."`
	OTelExporterOTLPTracesProtocol string   `key:"otel_exporter_otlp_traces_protocol" enum:"|grpc|http/protobuf" status:"accepted" doc:"As otel_exporter_otlp_protocol, and wins."`
	OTelExporterOTLPHeaders        []string `key:"otel_exporter_otlp_headers" secret:"true" status:"accepted" doc:"Headers (key=value) sent with traces."`
	OTelExporterOTLPTracesHeaders  []string `key:"otel_exporter_otlp_traces_headers" secret:"true" status:"accepted" doc:"As otel_exporter_otlp_headers, and wins."`
	OTelExporterOTLPTimeout        *int64   `key:"otel_exporter_otlp_timeout" default:"10000" status:"accepted" doc:"Time for sending traces, in milliseconds."`
	OTelExporterOTLPTracesTimeout  *int64   `key:"otel_exporter_otlp_traces_timeout" default:"10000" status:"accepted" doc:"As otel_exporter_otlp_timeout, and wins."`
	OTelBSPScheduleDelay           *int64   `key:"otel_bsp_schedule_delay" default:"5000" status:"accepted" doc:"Time between sending traces, in milliseconds, at least 100."`
	OTelBSPMaxExportBatchSize      *int32   `key:"otel_bsp_max_export_batch_size" default:"512" status:"accepted" doc:"Most spans sent at once."`

	DebugAddress               string `key:"debug_address" status:"accepted" doc:"Listener, host:port, for debugging; off unless set."`
	HealthCheckAddr            string `key:"health_check_addr" default:"127.0.0.1:28080" status:"acts" doc:"Listener, host:port, of /status, /startupz, /readyz and /healthz; cannot be empty."`
	HealthCheckSystemdDisabled bool   `key:"health_check_systemd_disabled" status:"acts" doc:"Do not tell systemd about readiness."`
	EnvoyAdminAddress          string `key:"envoy_admin_address" status:"accepted" doc:"Admin listener of the data plane; understood and ignored."`
	EnvoyAdminAccessLogPath    string `key:"envoy_admin_access_log_path" default:"/dev/null" status:"accepted" doc:"Understood and ignored."`
	EnvoyAdminProfilePath      string `key:"envoy_admin_profile_path" default:"/dev/null" status:"accepted" doc:"Understood and ignored."`
	InstallationID             string `key:"installation_id" section:"2.1" status:"accepted" doc:"Label of this installation in telemetry."`
}
