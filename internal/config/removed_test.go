package config

import (
	"strings"
	"testing"
)

func TestRemovedKeys(t *testing.T) {
	// configuration.md §5, the rows marked F.
	for _, key := range []string{
		"client_ca", "client_ca_file", "client_crl", "client_crl_file", "idp_service_account", "idp_refresh_directory_timeout",
		"idp_refresh_directory_interval", "idp_qps", "tracing_provider", "tracing_sample_rate", "tracing_datadog_address",
		"tracing_jaeger_collector_endpoint", "tracing_jaeger_agent_endpoint", "tracing_zipkin_endpoint", "policy_file", "POLICY_FILE",
	} {
		cfg, problems := loadText(key + ": x\n")
		if cfg != nil || problems[0].Kind != KindRemovedKey || problems[0].Hint == "" || problems[0].Line != 1 {
			t.Errorf("%s: %s", key, show(problems))
		}
	}
	for _, key := range []string{"allowed_groups", "set_authorization_header"} {
		if cfg, problems := loadText(inRoute(key + ": x")); cfg != nil || fatal(problems)[0].Kind != KindRemovedKey {
			t.Errorf("routes: %s: %s", key, show(problems))
		}
		if cfg, problems := loadText(strings.Replace(inRoute(key+": x"), "routes:", "policy:", 1)); cfg == nil {
			t.Errorf("policy: %s stops: %s", key, show(problems))
		}
	}
	if cfg, problems := loadText("databroker_storage_type: redis\n"); cfg != nil {
		t.Errorf("redis: %s", show(problems))
	}
}

func TestUnknownKeysAreLogged(t *testing.T) {
	// configuration.md §5, the rows that are logged only.
	for _, key := range []string{
		"cookie_secure", "debug", "signing_key_algorithm", "administrators", "enable_user_impersonation", "forward_auth_url",
		"grpc_client_dns_roundrobin", "grpc_server_max_connection_age", "grpc_server_max_connection_age_grace", "refresh_cooldown",
		"audit_key", "databroker_storage_tls_skip_verify", "envoy_opts", "cache_service_url", "headers", "authenticate_callback_path",
		"nonsense", "_to_weights", "downstream_mtls: {nonsense",
	} {
		text := key + ": x\n"
		if strings.Contains(key, "{") {
			text = key + ": x}\n"
		}
		cfg, problems := loadText(text)
		if cfg == nil || len(problems) != 1 || problems[0].Level != LevelLogged || problems[0].Line != 1 || problems[0].Hint == "" {
			t.Errorf("%s: %s", key, show(problems))
		}
	}
	for _, key := range []string{"lb_config", "least_request_lb_config", "ring_hash_lb_config", "maglev_lb_config", "_to_weights", "allow_renegotiation", "timeout_read", "nonsense"} {
		cfg, problems := loadText(inRoute(key + ": {a: b}"))
		if cfg == nil || len(problems) != 1 || problems[0].Level != LevelLogged {
			t.Errorf("route %s: %s", key, show(problems))
		}
	}
	for key, hint := range map[string]string{
		"timout_read: 1s": "timeout_read",
		"rotes: []":       "routes",
		"prefix: /":       "a setting of a route",
		"runtime_flags: {config_hot_relod: true}":        "config_hot_reload",
		"runtime_flags: {legacy_identity_manager: true}": "remove it",
		"access_log_fields: [metod]":                     "method",
		"authorize_log_fields: [nonsense]":               "use one of",
	} {
		cfg, problems := loadText(key + "\n")
		if cfg == nil || len(problems) != 1 || problems[0].Level != LevelLogged || !strings.Contains(problems[0].Hint, hint) {
			t.Errorf("%s: %s", key, show(problems))
		}
	}
}

func TestMisspeltNarrowingKeysFailValidate(t *testing.T) {
	for _, text := range []string{"downstream_mtl: {ca: x}\n", "trusted_proxy: [10.0.0.0/8]\n", "downstream_mtls: {enforcment: policy}\n", inRoute("tls_downstream_client_c: x")} {
		cfg, problems := loadText(text)
		if cfg == nil || len(problems) != 1 || problems[0].Kind != KindMisspelt {
			t.Errorf("%s: %s", text, show(problems))
			continue
		}
		if !Fatal(ForValidate(problems)) || Fatal(problems) {
			t.Errorf("%s does not fail validate alone", text)
		}
	}
	if _, problems := loadText("timout_read: 1s\n"); Fatal(ForValidate(problems)) {
		t.Error("any misspelt key fails validate")
	}
}

func TestOldNames(t *testing.T) {
	cfg := mustLoad(t, inRoute("lb_policy: MAGLEV\ncors_preflight: true\ntls_server_name: x.example.com"))
	r := cfg.Routes[0]
	if r.Upstream.LoadBalancingPolicy != "MAGLEV" || !r.Authz.CORSAllowPreflight || r.Upstream.TLSUpstreamServerName != "x.example.com" {
		t.Errorf("%+v", r)
	}
	if cfg, problems := loadText(inRoute("lb_policy: MAGLEV\nload_balancing_policy: RANDOM")); cfg != nil {
		t.Errorf("both names are taken: %s", show(problems))
	}
}
