package config

import (
	"strings"
	"testing"
)

// Every check of configuration.md §2 and §3: a text, the path of the one
// problem that stops it, and a part of what it says.
func TestChecks(t *testing.T) {
	tests := []struct{ text, path, message string }{
		// §2.1
		{"authenticate_service_url: authenticate.example.com", "authenticate_service_url", "lacks a scheme"},
		{"authenticate_service_url: 'https:///x'", "authenticate_service_url", "lacks a host"},
		{"authenticate_service_url: 'ftp://x'", "authenticate_service_url", "not https"},
		{"authenticate_service_url: 'https://%zz'", "authenticate_service_url", "not a URL"},
		{"authorize_service_url: nonsense", "authorize_service_url", "lacks"},
		{"databroker_service_url: nonsense", "databroker_service_url", "lacks"},
		{"databroker_service_urls: [https://a, b]", "databroker_service_urls[1]", "lacks"},
		{"signout_redirect_url: 'javascript:alert(1)'", "signout_redirect_url", "not https"},
		// §2.2
		{"address: a:b:c", "address", "not host:port"},
		{"address: ':99999'", "address", "port"},
		{"http_redirect_addr: ':x'", "http_redirect_addr", "port"},
		{"certificate: " + b64("x"), "certificate", "certificate_key is missing"},
		{"certificate_key: " + b64("x"), "certificate_key", "certificate is missing"},
		{"certificate: /etc/x.pem\ncertificate_key: " + b64("x"), "certificate", "not standard base64"},
		{"certificate: " + b64("x") + "\ncertificate_key: " + b64("x"), "certificate", "cannot be used"},
		{"certificate_file: /x", "certificate_file", "certificate_key_file is missing"},
		{"certificate_authority: " + b64("x"), "certificate_authority", "no certificate"},
		{"certificates: [{cert: /x}]", "certificates[0]", "one is missing"},
		{"certificates: [/x]", "certificates[0]", "block of keys"},
		{"certificates: [{cert: " + b64("-----BEGIN CERTIFICATE-----") + ", key: '/nowhere/key_file: /'}]", "certificates[0].cert", "not the path"},
		{"tls_derive: 'a b'", "tls_derive", "not a host name"},
		// §2.3
		{"autocert_eab_key_id: a", "autocert_eab_key_id", "autocert_eab_mac_key is missing"},
		{"autocert_eab_key_id: a\nautocert_eab_mac_key: 'a='", "autocert_eab_mac_key", "base64url"},
		{"autocert_dir: ftp://x", "autocert_dir", "scheme"},
		{"autocert_trusted_ca: '%'", "autocert_trusted_ca", "base64"},
		{"autocert_trusted_ca: " + b64("x"), "autocert_trusted_ca", "no certificate"},
		{"autocert_trusted_ca: " + b64("x") + "\nautocert_trusted_ca_file: /x", "autocert_trusted_ca_file", "set, too"},
		{"autocert_ca: x", "autocert_ca", "not a URL"},
		// §2.4
		{"shared_secret: short", "shared_secret", "base64"},
		{"shared_secret: " + b64("short"), "shared_secret", "holds 5 bytes"},
		{"services: proxy", "shared_secret", "common secret"},
		{"cookie_secret: " + b64("short"), "cookie_secret", "holds 5 bytes"},
		{"signing_key: nonsense!", "signing_key", "neither PEM"},
		{"signing_key: " + b64("nonsense"), "signing_key", ""},
		{"google_cloud_serverless_authentication_service_account: '{'", "google_cloud_serverless_authentication_service_account", "base64"},
		{"shared_secret: " + secret32 + "\nshared_secret_previous: " + secret32, "shared_secret_previous", "same"},
		// §2.5
		{"cookie_same_site: x", "cookie_same_site", "not a value"},
		{"cookie_name: 'a b'", "cookie_name", "not the name"},
		{"cookie_domain: 'a b'", "cookie_domain", "not a domain"},
		{"cookie_expire: 0s", "cookie_expire", "at once"},
		{"cookie_name: __Host-x\ncookie_domain: example.com", "cookie_domain", "refuse"},
		// §2.6
		{"idp_provider_url: 'ldap://x'", "idp_provider_url", "not a URL"},
		{"identity_providers: {a: {audiences: [x]}}", "identity_providers.a.issuer", "missing"},
		{"identity_providers: {a: {issuer: 'http://x', audiences: [x]}}", "identity_providers.a.issuer", "https"},
		{"identity_providers: {a: {issuer: 'https://x'}}", "identity_providers.a.audiences", "no audience"},
		{"identity_providers: {a/b: {issuer: 'https://x', audiences: [x]}}", "identity_providers.a/b", "name"},
		{"identity_providers: {a: {issuer: 'https://x', audiences: [x], supported_algs: [HS256]}}", "identity_providers.a.supported_algs[0]", "HS256"},
		{"identity_providers: {a: {issuer: 'https://x', audiences: [x]}, b: {issuer: 'https://x', audiences: [x]}}", "identity_providers.b.issuer", "that of a"},
		{"identity_providers: {a: {issuer: 'kubernetes:///', audiences: [x], jwks_url: 'https://x'}}", "identity_providers.a.jwks_url", "API server"},
		{"identity_providers: {a: {issuer: 'https://x', audiences: [x], jwks_url: 'http://x'}}", "identity_providers.a.jwks_url", "https"},
		{"identity_providers: [a]", "identity_providers", "mapping is wanted"},
		// §2.7
		{"bearer_token_format: x", "bearer_token_format", "not a value"},
		{"bearer_token_format: jwt\n" + app, "bearer_token_format", "no identity provider"},
		{"jwt_claims_headers: {'a b': c}", "jwt_claims_headers.a b", "not the name"},
		{"jwt_issuer_format: x", "jwt_issuer_format", "not a value"},
		{"assertion_reuse: 61s", "assertion_reuse", "longer"},
		// §2.8
		{"databroker_storage_type: redis", "databroker_storage_type", "not a value"},
		{"databroker_storage_type: postgres", "databroker_storage_type", "needs"},
		{"databroker_storage_type: file\ndatabroker_storage_connection_string: 'http://x/y'", "databroker_storage_connection_string", "file:///"},
		{"databroker_cluster_nodes: [{id: a, grpc_address: x}]", "databroker_cluster_nodes[0].grpc_address", "not a URL"},
		{"databroker_cluster_nodes: [{id: a, grpc_address: 'http://x', raft_address: x}]", "databroker_cluster_nodes[0].raft_address", "host:port"},
		{"databroker_cluster_node_id: a", "databroker_cluster_node_id", "none of"},
		{"databroker_cluster_leader_id: a", "databroker_cluster_leader_id", "none of"},
		{"max_stale: 0s", "max_stale", "refused"},
		// §2.10
		{"downstream_mtls: {enforcement: x}", "downstream_mtls.enforcement", "not a value"},
		{"downstream_mtls: {ca: " + b64("x") + "}", "downstream_mtls.ca", "no certificate"},
		{"downstream_mtls: {ca: " + b64("x") + ", ca_file: /x}", "downstream_mtls.ca_file", "set, too"},
		{"downstream_mtls: {crl: " + b64("x") + "}", "downstream_mtls.crl", "revocation"},
		{"downstream_mtls: {match_subject_alt_names: [{dns: a, email: b}]}", "downstream_mtls.match_subject_alt_names[0]", "one kind"},
		{"downstream_mtls: {match_subject_alt_names: [{x: a}]}", "downstream_mtls.match_subject_alt_names[0]", "not a kind"},
		{"downstream_mtls: {match_subject_alt_names: [{dns: '('}]}", "downstream_mtls.match_subject_alt_names[0]", "malformed"},
		{"downstream_mtls: {max_verify_depth: -1}", "downstream_mtls.max_verify_depth", "negative"},
		{"downstream_mtls: text", "downstream_mtls", "block of keys"},
		// §2.12
		{"set_response_headers: {'a b': c}", "set_response_headers.a b", "not the name"},
		{"set_response_headers: {a: \"b\\nc\"}", "set_response_headers.a", "character"},
		{"codec_type: http4", "codec_type", "not a value"},
		{"allow_upgrades: ['a b']", "allow_upgrades[0]", "not the name"},
		{"headers_with_underscores_action: x", "headers_with_underscores_action", "not a value"},
		// §2.13, §2.14
		{"log_level: verbose", "log_level", "not a value"},
		{"metrics_address: ':0'", "metrics_address", "port"},
		{"metrics_address: host", "metrics_address", "host:port"},
		{"metrics_basic_auth: x", "metrics_basic_auth", "base64"},
		{"metrics_basic_auth: " + b64("nocolon"), "metrics_basic_auth", "user:password"},
		{"otel_traces_sampler_arg: 2", "otel_traces_sampler_arg", "0 to 1"},
		{"otel_bsp_schedule_delay: 99", "otel_bsp_schedule_delay", "below 100"},
		{"otel_bsp_max_export_batch_size: 0", "otel_bsp_max_export_batch_size", "below 1"},
		{"otel_traces_exporter: zipkin", "otel_traces_exporter", "not a value"},
		{"debug_address: ''", "debug_address", "empty"},
		{"debug_address: x", "debug_address", "host:port"},
		{"health_check_addr: ''", "health_check_addr", "empty"},
		{"health_check_addr: x", "health_check_addr", "host:port"},
		// §2.15, §2.16
		{"dns_refresh_rate: 1us", "dns_refresh_rate", "below 1ms"},
		{"dns_query_timeout: -1s", "dns_query_timeout", "negative"},
		{"dns_lookup_family: v4", "dns_lookup_family", "not a value"},
		{"dns_resolvers: ['udp://dns.example.com:53']", "dns_resolvers[0]", "not a resolver"},
		{"envoy_bind_config_source_address: x", "envoy_bind_config_source_address", "not an IP"},
		{"ssh_address: ':22'\nssh_host_key_files: [/nowhere/x]", "ssh_host_key_files[0]", "cannot be read"},
		{"mcp_allowed_client_id_domains: [a, '']", "mcp_allowed_client_id_domains[1]", "empty"},
		{"blob_storage: {bucket_uri: 'ftp://x'}", "blob_storage.bucket_uri", "not the URI"},
		{"runtime_flags: {mcp: perhaps}", "runtime_flags.mcp", "not true or false"},
		{"primary_color: purple", "primary_color", "not a colour"},
		{"admin_policy: {allow: {or: [{emial: {is: x}}]}}", "admin_policy.allow.or[0]", "emial"},
		// §3.1
		{"routes: [{to: 'http://x'}]", "routes[0].from", "missing"},
		{"routes: [{from: x, to: 'http://x'}]", "routes[0].from", "no scheme"},
		{"routes: [{from: 'https://', to: 'http://x'}]", "routes[0].from", "no host"},
		{"routes: [{from: 'https://x/y', to: 'http://x'}]", "routes[0].from", "path"},
		{"routes: [{from: 'gopher://x', to: 'http://x'}]", "routes[0].from", "scheme"},
		{"routes: [5]", "routes[0]", "a mapping"},
		{"routes: text", "routes[0]", "a mapping"},
		// §3.2
		{"routes: [{from: 'https://x'}]", "routes[0]", "none of"},
		{"routes: [{from: 'https://x', to: []}]", "routes[0].to", "empty"},
		{"routes: [{from: 'https://x', redirect: {response_code: 0}}]", "routes[0].redirect.response_code", "0 is not"},
		{"routes: [{from: 'https://x', redirect: {response_code: 304}}]", "routes[0].redirect.response_code", "304"},
		{"routes: [{from: 'https://x', redirect: {port_redirect: 70000}}]", "routes[0].redirect.port_redirect", "port"},
		{"routes: [{from: 'https://x', response: {status: 99}}]", "routes[0].response.status", "99"},
		{"routes: [{from: 'ssh://x', to: 'http://x'}]", "routes[0].to", "ssh"},
		{"routes: [{from: 'ssh://x', to: ['ssh://x', 'ssh://y']}]", "routes[0].to", "exactly one"},
		// §3.3, §3.4
		{inRoute("regex: '('"), "routes[0].regex", "malformed"},
		{app + "  - {from: 'https://app.example.com:443', to: 'http://app:80', policy: {allow: {or: [{accept: true}]}}}", "routes[1]", "equal to routes[0] in line 2"},
		// §3.5, §3.6
		{inRoute("regex_rewrite_pattern: '['"), "routes[0].regex_rewrite_pattern", "malformed"},
		{inRoute("host_path_regex_rewrite_pattern: '['"), "routes[0].host_path_regex_rewrite_pattern", "malformed"},
		{inRoute("regex_rewrite_pattern: a\nprefix_rewrite: b"), "routes[0].regex_rewrite_pattern", "set, too"},
		{inRoute("set_request_headers: {Host: x}"), "routes[0].set_request_headers.Host", "Host cannot"},
		{inRoute("set_request_headers: {':path': x}"), "routes[0].set_request_headers.:path", "pseudo"},
		{inRoute("set_request_headers: {X-A: 1, x-a: 2}"), "routes[0].set_request_headers.x-a", "already set"},
		{inRoute("remove_request_headers: ['a b']"), "routes[0].remove_request_headers[0]", "not the name"},
		{inRoute("rewrite_response_headers: [{prefix: a, value: b}]"), "routes[0].rewrite_response_headers[0]", "not the name"},
		{inRoute("host_rewrite_header: 'a b'"), "routes[0].host_rewrite_header", "not the name"},
		// §3.7
		{inRoute("tls_custom_ca: x"), "routes[0].tls_custom_ca", "base64"},
		{inRoute("tls_custom_ca_file: /nowhere/x"), "routes[0].tls_custom_ca_file", "cannot be read"},
		{inRoute("tls_client_cert: " + b64("x")), "routes[0].tls_client_cert", "tls_client_key is missing"},
		{inRoute("tls_client_key_file: /nowhere/x"), "routes[0].tls_client_key_file", ""},
		{inRoute("tls_downstream_client_ca: " + b64("x")), "routes[0].tls_downstream_client_ca", "no certificate"},
		// §3.8
		{inRoute("load_balancing_policy: x"), "routes[0].load_balancing_policy", "not a value"},
		{inRoute("health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, tcp_health_check: {}}]"), "routes[0].health_checks[0]", "unhealthy_threshold is missing"},
		{inRoute("health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1}]"), "routes[0].health_checks[0]", "0 kinds"},
		{inRoute("health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {}}]"), "routes[0].health_checks[0].http_health_check", "path"},
		{inRoute("health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: /, expected_statuses: [{start: 300, end: 200}]}}]"), "routes[0].health_checks[0].http_health_check.expected_statuses[0]", "range"},
		{inRoute("healthy_panic_threshold: 101"), "routes[0].healthy_panic_threshold", "100"},
		{inRoute("outlier_detection: {interval: 5m}"), "routes[0].outlier_detection.interval", "seconds"},
		{inRoute("circuit_breaker_thresholds: {max_retries: -1}"), "routes[0].circuit_breaker_thresholds.max_retries", "negative"},
		// §3.9
		{inRoute("timeout: x"), "routes[0].timeout", "duration"},
		{inRoute("idle_timeout: -1s"), "routes[0].idle_timeout", "negative"},
		// §3.10
		{inRoute("policy: {allow: {or: [{emial: {is: x}}]}}"), "routes[0].policy.allow.or[0]", "emial"},
		{inRoute("policy: 5"), "routes[0].policy", ""},
		{inRoute("allow_public_unauthenticated_access: true\nallow_any_authenticated_user: true"), "routes[0].allow_public_unauthenticated_access", "set, too"},
		{inRoute("allow_public_unauthenticated_access: true\nallowed_users: []"), "routes[0].allow_public_unauthenticated_access", "allowed_users"},
		{inRoute("allow_public_unauthenticated_access: true\nallowed_domains: [x]"), "routes[0].allow_public_unauthenticated_access", "allowed_domains"},
		{inRoute("allow_any_authenticated_user: true\nallowed_users: [a]"), "routes[0].allow_any_authenticated_user", "allowed_users"},
		{inRoute("depends_on: [a, b, c, d, e, f]"), "routes[0].depends_on", "6 hosts"},
		{inRoute("depends_on: [a/b]"), "routes[0].depends_on[0]", "not a host"},
		{"cookie_domain: example.com\n" + inRoute("depends_on: [a]"), "routes[0].depends_on", "cookie_domain"},
		{inRoute("sub_policies: [{source_ppl: 'allow: {or: [{emial: 1}]}'}]"), "routes[0].sub_policies[0].source_ppl", "emial"},
		// §3.11, §3.12
		{"identity_providers: {a: {issuer: 'https://x', audiences: [x]}}\n" + inRoute("bearer_token_format: jwt\nidentity_providers: [x]"), "routes[0].identity_providers[0]", "not a declared"},
		{"identity_providers: {a: {issuer: 'https://x', audiences: [x]}}\n" + inRoute("identity_providers: [a]"), "routes[0].identity_providers", "does not take"},
		{inRoute("bearer_token_format: jwt"), "routes[0].bearer_token_format", "no identity provider"},
		{inRoute("kubernetes_service_account_token: a\nkubernetes_service_account_token_file: /x"), "routes[0].kubernetes_service_account_token_file", "set, too"},
		{inRoute("mcp: {}"), "routes[0].mcp", "neither"},
		{inRoute("mcp: {server: {authorization_server_url: 'http://x'}}"), "routes[0].mcp.server.authorization_server_url", "https"},
		{inRoute("upstream_tunnel: {ssh_policy: {allow: 5}}"), "routes[0].upstream_tunnel.ssh_policy", ""},
	}
	for _, test := range tests {
		cfg, problems := loadText(test.text + "\n")
		found := fatal(problems)
		if cfg != nil || len(found) == 0 {
			t.Errorf("%s\n  loads", test.text)
			continue
		}
		p := found[0]
		if !strings.HasPrefix(p.Path, test.path) || !strings.Contains(p.Message, test.message) {
			t.Errorf("%s\n  says %s\n  want %s: %s", test.text, p, test.path, test.message)
		}
		if p.Line == 0 && test.path != "shared_secret" {
			t.Errorf("%s\n  has no position: %s", test.text, p)
		}
		// One mistake, one complaint; a key that is half of a pair may be two.
		if len(found) > 1 && !strings.Contains(test.text, "_file: /") {
			t.Errorf("%s\n  says more:\n%s", test.text, show(found))
		}
	}
}

// What the specification permits although one may think otherwise.
func TestPermitted(t *testing.T) {
	for _, text := range []string{
		"address: localhost", "address: ''", "address: '[::1]:443'", "http_redirect_addr: '\"0.0.0.0:80\"'", "metrics_address: ''",
		"metrics_certificate: " + b64("x"), // half a pair is ignored
		"idp_provider: hosted", "idp_provider: ''",
		"identity_providers: {Upper: {issuer: 'https://x', audiences: [x]}}",
		"downstream_mtls: {}", "downstream_mtls:", "routes:", "routes: []", "policy: []",
		"jwt_claims_headers: {}", "runtime_flags: {}",
		"services: all\nshared_secret: ''",
		inRoute("prefix: x"), inRoute("regex: ''"), inRoute("policy: []"), inRoute("policy:"), inRoute("allowed_users: []"),
		inRoute("redirect: {}"), inRoute("outlier_detection: {}"), inRoute("bearer_token_format: DEFAULT"),
		inRoute("allow_public_unauthenticated_access: true\npolicy: {deny: {or: [{source_ip: 10.0.0.1}]}}"),
		"routes: [{from: 'https://x', to: 'http://x'}, {from: 'https://x', to: 'http://x', prefix: /a}]",
		"routes: [{from: 'https://*.x-*.y', to: 'http://x'}]", "routes: [{from: 'http://x', to: 'http://x'}]",
		"routes: [{from: 'https://x?a#b', to: 'http://x'}]", "routes: [{from: 'https://x/', to: 'http://x'}]",
		"routes: [{from: 'https://x', redirect: {https_redirect: true}, response: {status: 200}, to: 'http://x'}]",
		inRoute("health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}, unknown_field: 1}]"),
	} {
		if cfg, problems := loadText(text + "\n"); cfg == nil {
			t.Errorf("%s\n  is refused:\n%s", text, show(fatal(problems)))
		}
	}
}
