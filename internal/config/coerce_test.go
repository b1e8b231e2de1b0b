package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// Every coercion of configuration.md §1.3: what a line means, or that it is
// refused.
func TestCoercion(t *testing.T) {
	refused := "refused"
	tests := []struct {
		line string
		get  func(c *Config) any
		want any
	}{
		// Switches.
		{"insecure_server: true", insecure, true},
		{"insecure_server: True", insecure, true},
		{"insecure_server: TRUE", insecure, true},
		{"insecure_server: t", insecure, true},
		{"insecure_server: T", insecure, true},
		{"insecure_server: 'true'", insecure, true},
		{"insecure_server: 1", insecure, true},
		{"insecure_server: '1'", insecure, true},
		{"insecure_server: 0", insecure, false},
		{"insecure_server: f", insecure, false},
		{"insecure_server: False", insecure, false},
		{"insecure_server: ''", insecure, false},
		{"insecure_server: yes", insecure, refused},
		{"insecure_server: no", insecure, refused},
		{"insecure_server: on", insecure, refused},
		{"insecure_server: off", insecure, refused},
		{"insecure_server: 2", insecure, refused},
		{"insecure_server: [true]", insecure, refused},
		{"insecure_server: {}", insecure, refused},
		{"insecure_server: 2001-01-01", insecure, refused},
		// Numbers.
		{"xff_num_trusted_hops: 2", hops, uint32(2)},
		{"xff_num_trusted_hops: '2'", hops, uint32(2)},
		{"xff_num_trusted_hops: 0x10", hops, uint32(16)},
		{"xff_num_trusted_hops: 1e1", hops, uint32(10)},
		{"xff_num_trusted_hops: 2.0", hops, uint32(2)},
		{"xff_num_trusted_hops: 4294967295", hops, uint32(4294967295)},
		{"xff_num_trusted_hops: 4294967296", hops, refused},
		{"xff_num_trusted_hops: -1", hops, refused},
		{"xff_num_trusted_hops: 1.5", hops, refused},
		{"xff_num_trusted_hops: true", hops, refused},
		{"xff_num_trusted_hops: two", hops, refused},
		{"xff_num_trusted_hops: .nan", hops, refused},
		{"otel_traces_sampler_arg: 0.25", sampler, 0.25},
		{"otel_traces_sampler_arg: '1'", sampler, 1.0},
		{"otel_traces_sampler_arg: .inf", sampler, refused},
		// Text.
		{"cookie_name: 123", cookieName, "123"},
		{"cookie_name: 1.50", cookieName, "1.50"},
		{"cookie_name: 2024-01-01", cookieName, "2024-01-01"},
		{"cookie_name: true", cookieName, "true"},
		{"cookie_name: [a]", cookieName, refused},
		// Durations.
		{"timeout_read: 1h5m", read, time.Hour + 5*time.Minute},
		{"timeout_read: '30s'", read, 30 * time.Second},
		{"timeout_read: 0", read, time.Duration(0)},
		{"timeout_read: '0'", read, time.Duration(0)},
		{"timeout_read: 5000000000", read, 5 * time.Second},
		{"timeout_read: '5000000000'", read, refused},
		{"timeout_read: 1.5", read, refused},
		{"timeout_read: -1s", read, refused},
		{"timeout_read: -5", read, refused},
		{"timeout_read: 1d", read, refused},
		{"timeout_read: true", read, refused},
		{"timeout_read: 99999999999999999999", read, refused},
		{"timeout_read: 10:00:00", read, refused},
		// Milliseconds.
		{"otel_exporter_otlp_timeout: 500", otlp, int64(500)},
		{"otel_exporter_otlp_timeout: '500'", otlp, int64(500)},
		{"otel_exporter_otlp_timeout: 5s", otlp, refused},
		// Lists.
		{"idp_scopes: [a, b]", scopes, []string{"a", "b"}},
		{"idp_scopes: 'a, b'", scopes, []string{"a", " b"}},
		{"idp_scopes: a", scopes, []string{"a"}},
		{"idp_scopes: 5", scopes, []string{"5"}},
		{"idp_scopes: [1, true, x]", scopes, []string{"1", "true", "x"}},
		{"idp_scopes: ''", scopes, []string{}},
		{"idp_scopes: {a: b}", scopes, refused},
		{"idp_scopes: [[a]]", scopes, refused},
		// Maps.
		{"idp_request_params: {A: 1, b: x}", params, map[string]string{"A": "1", "b": "x"}},
		{"idp_request_params: '{\"a\": \"b\"}'", params, map[string]string{"a": "b"}},
		{"idp_request_params: [{a: b}, {c: d}]", params, map[string]string{"a": "b", "c": "d"}},
		{"idp_request_params: a", params, refused},
		{"idp_request_params: {a: 1, a: 2}", params, refused},
		{"idp_request_params: {a: {b: c}}", params, refused},
		// Words.
		{"bearer_token_format: IDP_ACCESS_TOKEN", bearer, "idp_access_token"},
		{"bearer_token_format: BEARER_TOKEN_FORMAT_IDP_ACCESS_TOKEN", bearer, "idp_access_token"},
		{"bearer_token_format: ''", bearer, "unknown"},
		{"bearer_token_format: something", bearer, refused},
		{"jwt_issuer_format: URI", issuer, "uri"},
		{"jwt_issuer_format: hostonly", issuer, "hostOnly"},
		{"jwt_issuer_format: IssuerHostOnly", issuer, "hostOnly"},
		{"log_level: DEBUG", level, refused},
		{"log_level: debug", level, "debug"},
		{"dns_lookup_family: v4_only", family, refused},
		{"dns_lookup_family: V4_ONLY", family, "V4_ONLY"},
		{"cookie_same_site: LAX", sameSite, "lax"},
		{"path_with_escaped_slashes_action: unchanged", slashes, "keep_unchanged"},
		// Strict scalars.
		{"dns_use_tcp: 'true'", func(c *Config) any { return *c.Upstream.DNSUseTCP }, refused},
		{"dns_use_tcp: true", func(c *Config) any { return *c.Upstream.DNSUseTCP }, true},
		{"dns_query_tries: '3'", func(c *Config) any { return *c.Upstream.DNSQueryTries }, refused},
		{"dns_query_tries: 3", func(c *Config) any { return *c.Upstream.DNSQueryTries }, uint32(3)},
		{"circuit_breaker_thresholds: {max_retries: '3'}", level, refused},
		// Claims.
		{"jwt_claims_headers: email", claims, map[string]string{"x-pomerium-claim-email": "email"}},
		{"jwt_claims_headers: 'email,groups user'", claims, map[string]string{"x-pomerium-claim-email": "email", "x-pomerium-claim-groups": "groups", "x-pomerium-claim-user": "user"}},
		{"jwt_claims_headers: [email, a.b]", claims, map[string]string{"x-pomerium-claim-email": "email", "x-pomerium-claim-a.b": "a.b"}},
		{"jwt_claims_headers: {X-E: email}", claims, map[string]string{"X-E": "email"}},
		{"jwt_claims_headers: {'bad name': email}", claims, refused},
		{"jwt_claims_headers: {X-E: email, x-e: name}", claims, refused},
		// Services.
		{"services: all", services, allServices},
		{"services: 'Proxy, CACHE ,authorize,authenticate'", services, allServices},
		{"services: [all]", services, allServices},
		{"services: ''", services, refused},
		{"services: proxy,nonsense", services, refused},
		// Networks.
		{"trusted_proxies: [10.1.2.3/8, '::1']", proxies, "[10.0.0.0/8 ::1/128]"},
		{"trusted_proxies: 10.0.0.0/8", proxies, "[10.0.0.0/8]"},
		{"trusted_proxies: [10.0.0]", proxies, refused},
	}
	for _, test := range tests {
		cfg, problems := loadText(test.line + "\n")
		if test.want == refused {
			if cfg != nil {
				t.Errorf("%s: taken as %v", test.line, test.get(cfg))
			} else if p := fatal(problems)[0]; p.Line != 1 || p.Path == "" || p.Message == "" {
				t.Errorf("%s: no position: %s", test.line, p)
			}
			continue
		}
		if cfg == nil {
			t.Errorf("%s: %s", test.line, show(problems))
			continue
		}
		if got := test.get(cfg); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: got %#v, want %#v", test.line, got, test.want)
		}
	}
}

func insecure(c *Config) any   { return c.Proxy.InsecureServer }
func hops(c *Config) any       { return c.Proxy.XFFNumTrustedHops }
func sampler(c *Config) any    { return *c.Telemetry.OTelTracesSamplerArg }
func cookieName(c *Config) any { return c.Authn.CookieName }
func read(c *Config) any       { return c.Proxy.TimeoutRead }
func otlp(c *Config) any       { return *c.Telemetry.OTelExporterOTLPTimeout }
func scopes(c *Config) any     { return c.Identity.IDPScopes }
func params(c *Config) any     { return c.Identity.IDPRequestParams }
func bearer(c *Config) any     { return c.Authz.BearerTokenFormat }
func issuer(c *Config) any     { return c.Authz.JWTIssuerFormat }
func level(c *Config) any      { return c.Telemetry.LogLevel }
func family(c *Config) any     { return c.Upstream.DNSLookupFamily }
func sameSite(c *Config) any   { return c.Authn.CookieSameSite }
func slashes(c *Config) any    { return c.Proxy.PathWithEscapedSlashesAction }
func claims(c *Config) any     { return c.Authz.JWTClaimsHeaders }
func services(c *Config) any   { return c.Services.Services }
func proxies(c *Config) any {
	var words []string
	for _, p := range c.Proxy.TrustedProxies {
		words = append(words, p.String())
	}
	return "[" + strings.Join(words, " ") + "]"
}

func TestBareDurationsAreWarnedOf(t *testing.T) {
	_, problems := loadText("timeout_read: 30\n")
	if got := ofLevel(problems, LevelWarning); len(got) != 1 || !strings.Contains(got[0].Message, "nanoseconds") {
		t.Errorf("%v", problems)
	}
	if _, problems := loadText("timeout_write: 0\n"); len(problems) != 0 {
		t.Errorf("0 is warned of: %v", problems)
	}
}

func TestDestinations(t *testing.T) {
	tests := []struct{ to, want string }{
		{"http://a:80", "http://a:80"},
		{"[http://a, [http://b, [http://c]]]", "http://a http://b http://c"},
		{"['http://a,3', 'http://b,1']", "http://a=3 http://b=1"},
		{"h2c://a", "h2c://a"},
		{"HTTPS://a", "https://a"},
		{"unix:///run/a.sock", "unix:///run/a.sock"},
		{"http+unix:///run/a.sock", "unix:///run/a.sock"},
		{"https+unix:///run/a.sock", "https+unix:///run/a.sock"},
		{"[http://a, https://b, h2c://c]", "http://a https://b h2c://c"},
		{"http://a/x/?q=1", "http://a/x/?q=1"},
		{"'http://[::1]:80'", "http://[::1]:80"},

		{"'http://a,0'", ""}, {"'http://a,x'", ""}, {"'http://a,-1'", ""}, {"'http://a,http://b'", ""}, {"'http://a,1.5'", ""},
		{"['http://a,1', http://b]", ""},
		{"a:80", ""}, {"//a", ""}, {"gopher://a", ""}, {"http://", ""}, {"http://:80", ""}, {"http://a:0", ""}, {"http://a:99999", ""},
		{"unix://a/b", ""}, {"unix:///", ""}, {"''", ""}, {"[]", ""}, {"{}", ""}, {"{a: b}", ""}, {"5", ""},
		{"[tcp://a, http://b]", ""}, {"[udp://a, tcp://b]", ""}, {"[unix:///a, http://b]", ""}, {"[https+unix:///a, unix:///b]", ""},
	}
	for _, test := range tests {
		cfg, problems := loadText("routes:\n  - from: https://x\n    to: " + test.to + "\n")
		var got []string
		if cfg != nil {
			for _, e := range cfg.Routes[0].Upstream.To {
				s := e.URL.String()
				if e.Weight > 0 {
					s += "=" + string(rune('0'+e.Weight))
				}
				got = append(got, s)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("to: %s gives %v, want %q\n%s", test.to, got, test.want, show(problems))
		}
	}
}

func TestHealthCheckDurations(t *testing.T) {
	text := func(interval string) string {
		return inRoute("health_checks: [{timeout: 1s, interval: " + interval + ", healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]")
	}
	for in, want := range map[string]time.Duration{"5s": 5 * time.Second, "0.25s": 250 * time.Millisecond, "1.000000001s": time.Second + 1} {
		if got := *mustLoad(t, text(in)).Routes[0].Upstream.HealthChecks[0].Interval; got != want {
			t.Errorf("%s = %v", in, got)
		}
	}
	for _, in := range []string{"5", "5m", "1h", "'5'", "-5s", "1.0000000001s", "s1s", "true", "1m5s", "[]"} {
		if cfg, _ := loadText(text(in)); cfg != nil {
			t.Errorf("%s is taken", in)
		}
	}
}
