package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEnvironment(t *testing.T) {
	cfg := mustLoad(t, "timeout_read: 1s\nlog_level: warn\nset_response_headers: {X-File: '1'}\nruntime_flags: {mcp: false}\n"+app,
		"TIMEOUT_READ=2s",
		"LOG_LEVEL=", // set but empty is unset
		"IDP_SCOPES=a, b",
		"IDP_REQUEST_PARAMS={}",
		"HEADERS=X-Env:1,X-Two: 2",
		"SET_RESPONSE_HEADERS={\"X-No\":\"1\"}", // not the name of the variable
		`RUNTIME_FLAGS={"routes_portal": false}`,
		"JWT_CLAIMS_HEADERS=email groups,user",
		"DOWNSTREAM_MTLS_ENFORCEMENT=policy",
		"DOWNSTREAM_MTLS_MAX_VERIFY_DEPTH=2",
		"DNS_USE_TCP=true",
		"DNS_QUERY_TRIES=4",
		"DNS_UDP_MAX_QUERIES=5",
		"ENVOY_BIND_CONFIG_FREEBIND=1",
		`CIRCUIT_BREAKER_THRESHOLDS={"max_connections": 7}`,
		`DATABROKER_CLUSTER_NODES=[{"id": "a", "grpc_address": "http://a"}]`,
		`BLOB_STORAGE={"bucket_uri": "s3://b"}`,
		"COOKIE_HTTP_ONLY=false",
		"UNKNOWN_THING=1", "nonsense", "ROUTES_PORTAL=x",
	)
	checks := []struct {
		name      string
		got, want any
	}{
		{"env wins", cfg.Proxy.TimeoutRead, 2 * time.Second},
		{"empty is unset", cfg.Telemetry.LogLevel, "warn"},
		{"lists are untrimmed", cfg.Identity.IDPScopes, []string{"a", " b"}},
		{"an empty object is set", cfg.Identity.IDPRequestParams, map[string]string{}},
		{"HEADERS replaces", cfg.Proxy.SetResponseHeaders, map[string]string{"X-Env": "1", "X-Two": "2"}},
		{"flags merge over defaults", []bool{cfg.Flag("mcp"), cfg.Flag("routes_portal"), cfg.Flag("config_hot_reload")}, []bool{true, false, true}},
		{"claims", cfg.Authz.JWTClaimsHeaders, map[string]string{"x-pomerium-claim-email": "email", "x-pomerium-claim-groups": "groups", "x-pomerium-claim-user": "user"}},
		{"nested", cfg.Certs.DownstreamMTLS.Enforcement, "policy"},
		{"nested number", *cfg.Certs.DownstreamMTLS.MaxVerifyDepth, uint32(2)},
		{"dns_use_tcp", *cfg.Upstream.DNSUseTCP, true},
		{"dns_query_tries", *cfg.Upstream.DNSQueryTries, uint32(4)},
		{"dns_udp_max_queries", *cfg.Upstream.DNSUDPMaxQueries, uint32(5)},
		{"freebind", *cfg.Upstream.BindFreebind, true},
		{"breakers", *cfg.Upstream.CircuitBreakerSettings.MaxConnections, uint32(7)},
		{"nodes", cfg.Store.ClusterNodes[0].ID, "a"},
		{"blob", cfg.Features.BlobStorage.BucketURI, "s3://b"},
		{"false", cfg.Authn.CookieHTTPOnly, false},
	}
	for _, c := range checks {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %#v, want %#v", c.name, c.got, c.want)
		}
	}
}

func TestHeadersVariableAsJSON(t *testing.T) {
	cfg := mustLoad(t, "", `HEADERS={"X-A": "1", "X-B": "a:b,c"}`)
	if want := map[string]string{"X-A": "1", "X-B": "a:b,c"}; !reflect.DeepEqual(cfg.Proxy.SetResponseHeaders, want) {
		t.Errorf("%v", cfg.Proxy.SetResponseHeaders)
	}
}

func TestRoutesInTheEnvironment(t *testing.T) {
	yaml := b64("- from: https://env.example.com\n  to: http://env\n")
	json := b64("[\n\t{\"from\": \"https://env.example.com\", \"to\": \"http://env\"}\n]")
	for _, value := range []string{yaml, json} {
		for _, name := range []string{"POLICY", "ROUTES"} {
			cfg := mustLoad(t, "", name+"="+value)
			if len(cfg.Routes) != 1 || cfg.Routes[0].List != strings.ToLower(name) || cfg.Routes[0].Match.From != "https://env.example.com" {
				t.Errorf("%s: %+v", name, cfg.Routes)
			}
		}
	}
	cfg := mustLoad(t, app, "ROUTES="+yaml)
	if len(cfg.Routes) != 1 || cfg.Routes[0].Match.From != "https://env.example.com" {
		t.Error("ROUTES does not replace the routes of the file")
	}
	for _, bad := range []string{"not base64!", yaml + "," + yaml, b64("- from: [\n"), b64("text"), strings.TrimRight(b64("- a: b"), "=") + "x"} {
		cfg, problems := loadText("", "ROUTES="+bad)
		if cfg != nil || !strings.Contains(show(problems), "ROUTES") {
			t.Errorf("ROUTES=%s: %v\n%s", bad, cfg, show(problems))
		}
	}
}

func TestBadVariablesNameThemselves(t *testing.T) {
	for _, env := range []string{"TIMEOUT_READ=5", "AUTOCERT=yes", "XFF_NUM_TRUSTED_HOPS=-1", "HEADERS=novalue", "RUNTIME_FLAGS=x",
		"COOKIE_SAME_SITE=x", "DOWNSTREAM_MTLS_ENFORCEMENT=x", "CLIENT_CA=x", "TRACING_PROVIDER=zipkin", "POLICY_FILE=/x"} {
		name, _, _ := strings.Cut(env, "=")
		cfg, problems := loadText("", env)
		if env == "TIMEOUT_READ=5" { // text is no bare number
			if cfg != nil {
				t.Errorf("%s loads", env)
			}
		}
		if cfg != nil || problems[0].File != environment || problems[0].Path != name || problems[0].Hint == "" {
			t.Errorf("%s: %s", env, show(problems))
		}
	}
}

func TestVariableOverrulesABadValueInTheFile(t *testing.T) {
	cfg := mustLoad(t, "timeout_read: nonsense\ndownstream_mtls:\n  enforcement: nonsense\n", "TIMEOUT_READ=3s", "DOWNSTREAM_MTLS_ENFORCEMENT=policy")
	if cfg.Proxy.TimeoutRead != 3*time.Second {
		t.Error(cfg.Proxy.TimeoutRead)
	}
}
