package config

import "strings"

// removedKey is a key that older versions had (configuration.md §5).
type removedKey struct {
	fatal bool // stops the start; else only logged
	hint  string
}

const directorySync = "groups now come from directory sync or from the groups claim; remove the key"
const traces = "use otel_traces_exporter and otel_exporter_otlp_endpoint"

var removedGlobal = map[string]removedKey{
	"client_ca":                         {true, "use downstream_mtls.ca"},
	"client_ca_file":                    {true, "use downstream_mtls.ca_file"},
	"client_crl":                        {true, "use downstream_mtls.crl"},
	"client_crl_file":                   {true, "use downstream_mtls.crl_file"},
	"idp_service_account":               {true, directorySync},
	"idp_refresh_directory_timeout":     {true, directorySync},
	"idp_refresh_directory_interval":    {true, directorySync},
	"idp_qps":                           {true, directorySync},
	"tracing_provider":                  {true, traces},
	"tracing_sample_rate":               {true, "use otel_traces_sampler_arg"},
	"tracing_datadog_address":           {true, traces},
	"tracing_jaeger_collector_endpoint": {true, traces},
	"tracing_jaeger_agent_endpoint":     {true, traces},
	"tracing_zipkin_endpoint":           {true, traces},
	"policy_file":                       {true, "move the routes of that file under routes"},

	"cache_service_url":                    {false, "use databroker_service_url"},
	"headers":                              {false, "use set_response_headers"},
	"authenticate_callback_path":           {false, "the callback path is /oauth2/callback; remove the key"},
	"cookie_secure":                        {false, "cookies are always Secure; remove the key"},
	"debug":                                {false, "use log_level: debug"},
	"signing_key_algorithm":                {false, "the algorithm follows from signing_key; remove the key"},
	"administrators":                       {false, "use admin_policy"},
	"enable_user_impersonation":            {false, "remove the key"},
	"forward_auth_url":                     {false, "remove the key"},
	"grpc_client_dns_roundrobin":           {false, "remove the key"},
	"grpc_server_max_connection_age":       {false, "remove the key"},
	"grpc_server_max_connection_age_grace": {false, "remove the key"},
	"refresh_cooldown":                     {false, "remove the key"},
	"audit_key":                            {false, "remove the key"},
	"databroker_storage_tls_skip_verify":   {false, "use sslmode in the connection string"},
	"databroker_storage_cert_file":         {false, "use sslcert in the connection string"},
	"databroker_storage_key_file":          {false, "use sslkey in the connection string"},
	"databroker_storage_ca_file":           {false, "use sslrootcert in the connection string"},
	"envoy_opts":                           {false, "remove the key"},
}

// removedRoute are removed keys of items of routes; under policy they are
// only unknown.
var removedRoute = map[string]removedKey{
	"allowed_groups":           {true, "use the groups or claim/groups criterion in policy"},
	"set_authorization_header": {true, "use set_request_headers with ${pomerium.access_token} or ${pomerium.id_token}"},

	"lb_config":               {false, "use load_balancing_policy; its finer settings have no effect"},
	"least_request_lb_config": {false, "use load_balancing_policy: LEAST_REQUEST; its finer settings have no effect"},
	"ring_hash_lb_config":     {false, "use load_balancing_policy: RING_HASH; its finer settings have no effect"},
	"maglev_lb_config":        {false, "use load_balancing_policy: MAGLEV; its finer settings have no effect"},
}

// removedFor looks a key up among the removed ones. path is that of the block
// with a final dot, empty at the top.
func removedFor(path, name string) (removedKey, bool) {
	if path == "" {
		old, ok := removedGlobal[name]
		return old, ok
	}
	list, rest, _ := strings.Cut(path, "[")
	if _, below, _ := strings.Cut(rest, "]."); below != "" {
		return removedKey{}, false
	}
	old, ok := removedRoute[name]
	if list != "routes" && list != "policy" {
		return removedKey{}, false
	}
	if list == "policy" {
		old.fatal = false
	}
	return old, ok
}
