package config

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// configuration.md §3.9: what a route's timeouts come to.
func TestEffectiveTimeouts(t *testing.T) {
	tests := []struct {
		global, route string
		timeout, idle time.Duration
		upgrades      string
	}{
		{"", "", 30 * time.Second, 5 * time.Minute, ""},
		{"default_upstream_timeout: 7s", "", 7 * time.Second, 5 * time.Minute, ""},
		{"", "timeout: 0", 0, 5 * time.Minute, ""},
		{"", "timeout: 2m\nidle_timeout: 0s", 2 * time.Minute, 0, ""},
		{"", "idle_timeout: 1h", 30 * time.Second, time.Hour, ""}, // trap 5
		{"", "allow_websockets: true", 0, 0, "websocket"},
		{"", "allow_websockets: true\ntimeout: 5s", 5 * time.Second, 0, "websocket"},
		{"", "allow_spdy: true", 30 * time.Second, 5 * time.Minute, "spdy/3.1"},
		{"allow_upgrades: [WebSocket]", "", 0, 0, "websocket"}, // trap 8
		{"allow_upgrades: [websocket]", "allow_upgrades: []", 30 * time.Second, 5 * time.Minute, ""},
		{"", "allow_upgrades: ['', x, websocket]", 0, 0, "x websocket"},
		{"", "kubernetes_service_account_token: x", 0, 0, "websocket spdy/3.1"},
		{"", "mcp: {server: {}}", 0, 0, ""},
		{"", "mcp: {client: {}}", 30 * time.Second, 5 * time.Minute, ""},
	}
	for _, test := range tests {
		r := mustLoad(t, test.global+"\n"+inRoute(test.route)).Routes[0].Proxy.Resolved
		if r.Timeout != test.timeout || r.IdleTimeout != test.idle || strings.Join(r.Upgrades, " ") != test.upgrades || r.Websockets != strings.Contains(test.upgrades, "websocket") {
			t.Errorf("%s / %s: %+v", test.global, test.route, r)
		}
	}
	for _, route := range []string{"{from: 'tcp+https://a:1', to: 'tcp://b:1'}", "{from: 'udp+https://a:1', to: 'udp://b:1'}"} {
		if r := mustLoad(t, "routes: ["+route+"]").Routes[0].Proxy.Resolved; r.Timeout != 0 || r.IdleTimeout != 0 {
			t.Errorf("%s: %+v", route, r)
		}
	}
}

// configuration.md §2.12 and §3.6: response headers.
func TestResponseHeaders(t *testing.T) {
	dir := material(t)
	certificate := "certificate_file: " + dir + "/tls.crt\ncertificate_key_file: " + dir + "/tls.key\n"
	const frame, xss, hsts = "X-Frame-Options", "X-XSS-Protection", "Strict-Transport-Security"
	tests := []struct {
		global, route string
		names         string // of the route's effective headers
	}{
		{"", "", frame + " " + xss},
		{certificate, "", hsts + " " + frame + " " + xss},
		{certificate + "autocert_use_staging: true\n", "", frame + " " + xss},
		{certificate + "set_response_headers: {A: b}\n", "", "A"},
		{certificate + "set_response_headers: {}\n", "", ""},
		{certificate + "set_response_headers:\n", "", hsts + " " + frame + " " + xss},
		{certificate + "set_response_headers: {Disable: '', A: b}\n", "", ""},
		{"", "set_response_headers: {A: b}", "A " + frame + " " + xss},
		{"", "set_response_headers: {x-frame-options: DENY}", xss + " x-frame-options"},
		{"", "set_response_headers: {disable: true}", ""},
		{"set_response_headers: {disable: true}\n", "set_response_headers: {A: b}", "A"},
	}
	for _, test := range tests {
		cfg := mustLoad(t, test.global+inRoute(test.route))
		var names []string
		for name := range cfg.Routes[0].Proxy.Resolved.ResponseHeaders {
			names = append(names, name)
		}
		if got := strings.Join(sorted(names), " "); got != test.names {
			t.Errorf("%q / %q: %s", test.global, test.route, got)
		}
	}
}

func TestRouteOverridesIdentitySettings(t *testing.T) {
	cfg := mustLoad(t, "pass_identity_headers: true\nbearer_token_format: unknown\njwt_issuer_format: uri\nassertion_reuse: 5s\n"+app+
		"  - {from: 'https://b', to: 'http://b', pass_identity_headers: false, bearer_token_format: idp_access_token, jwt_issuer_format: hostOnly, assertion_reuse: 0s}\n")
	a, b := cfg.Routes[0].Authz.Resolved, cfg.Routes[1].Authz.Resolved
	if !a.PassIdentityHeaders || a.BearerTokenFormat != "default" || a.JWTIssuerFormat != "uri" || a.AssertionReuse != 5*time.Second {
		t.Errorf("inherited: %+v", a)
	}
	if b.PassIdentityHeaders || b.BearerTokenFormat != "idp_access_token" || b.JWTIssuerFormat != "hostOnly" || b.AssertionReuse != 0 {
		t.Errorf("overridden: %+v", b)
	}
	if mustLoad(t, app).Routes[0].Authz.Resolved.PassIdentityHeaders {
		t.Error("identity headers are passed by default")
	}
}

func TestAddressesWithoutPort(t *testing.T) {
	for text, want := range map[string]string{
		"":                        ":443 ",
		"address: 127.0.0.1":      "127.0.0.1:443 ",
		"address: localhost":      "localhost:443 ",
		"address: '::1'":          "[::1]:443 ",
		"address: '[::1]'":        "[::1]:443 ",
		"address: '127.0.0.1:'":   "127.0.0.1:443 ",
		"address: 127.0.0.1:8443": "127.0.0.1:8443 ",
		"address: 127.0.0.1\ninsecure_server: true": "127.0.0.1:80 ",
		"http_redirect_addr: 127.0.0.1":             ":443 127.0.0.1:80",
	} {
		cfg := mustLoad(t, text+"\n"+app)
		if got := cfg.Proxy.Address + " " + cfg.Proxy.HTTPRedirectAddr; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestNormalForms(t *testing.T) {
	cfg := mustLoad(t, "http_redirect_addr: \"':80'\"\ntls_derive: Upper.Example.COM\ncookie_domain: .Example.com\nidentity_providers: {Upper: {issuer: 'https://x', audiences: [x]}}\nbearer_token_format: jwt\n"+
		inRoute("identity_providers: [UPPER]"))
	if cfg.Proxy.HTTPRedirectAddr != ":80" || cfg.Certs.TLSDerive != "upper.example.com" || cfg.Authn.CookieDomain != "example.com" {
		t.Errorf("%q %q %q", cfg.Proxy.HTTPRedirectAddr, cfg.Certs.TLSDerive, cfg.Authn.CookieDomain)
	}
	if cfg.Identity.Providers["upper"].Issuer == "" || cfg.Routes[0].Identity.IdentityProviders[0] != "upper" {
		t.Errorf("%v", cfg.Identity.Providers)
	}
	cfg = mustLoad(t, inRoute("depends_on: ['https://A.example.com/x', b.example.com:8443]"))
	if want := []string{"a.example.com", "b.example.com:8443"}; !reflect.DeepEqual(cfg.Routes[0].Authn.DependsOn, want) {
		t.Errorf("%v", cfg.Routes[0].Authn.DependsOn)
	}
}

func TestKeysWithoutEffectAreToldOnce(t *testing.T) {
	cfg, problems := loadText("installation_id: x\nlog_level: info\nenvoy_admin_access_log_path: /dev/null\ncodec_type: http3\n" +
		inRoute("mcp: {server: {path: /x}}\nload_balancing_policy: RANDOM") + "  - {from: 'https://b', to: 'http://b', mcp: {client: {}}}\n")
	if cfg == nil || len(problems) != 1 {
		t.Fatalf("%s", show(problems))
	}
	want := "installation_id, routes[].mcp"
	if p := problems[0]; p.Kind != KindAccepted || p.Level != LevelWarning || !strings.HasSuffix(p.Message, ": "+want) {
		t.Errorf("%s", p)
	}
}

func TestNarrowingKeysThatDoNotActStopTheStart(t *testing.T) {
	// Every such key, so that a new one is covered the day it is declared.
	values := map[string]string{
		"idp_access_token_allowed_audiences": "[]", "identity_providers": "{a: {issuer: 'https://x', audiences: [x]}}",
		"jwt_groups_filter_infer_from_ppl": "true", "metrics_basic_auth": b64("a:b"),
	}
	dir := material(t)
	ca := b64(readFile(t, dir+"/ca.crt"))
	for _, list := range []struct {
		keys []*declared
		text func(line string) string
	}{
		{globalKeys().keys, func(line string) string { return line + "\n" }},
		{routeKeys().keys, inRoute},
	} {
		for _, k := range list.keys {
			if !k.narrows || k.status == "acts" {
				continue
			}
			value := values[k.name]
			if k.form == "b64" {
				value = ca
			} else if k.form == "file" {
				value = dir + "/ca.crt"
			} else if k.path == "routes[].identity_providers" {
				continue // needs a provider, which stops by itself
			}
			if value == "" {
				t.Errorf("no value to try %s with", k.path)
				continue
			}
			cfg, problems := loadText(list.text(k.name + ": " + value))
			if cfg == nil {
				t.Errorf("%s: %s", k.path, show(problems))
				continue
			}
			stops := cfg.StartProblems()
			if len(stops) != 1 || stops[0].Kind != KindNarrowing || stops[0].Level != LevelFatal || stops[0].Line == 0 || len(Narrowing(cfg)) != 1 {
				t.Errorf("%s does not stop the start: %s", k.path, show(stops))
			}
		}
	}
	for _, text := range []string{"", "jwt_groups_filter_infer_from_ppl: false", "identity_providers: ", "downstream_mtls: {enforcement: policy}"} {
		if stops := mustLoad(t, text+"\n").StartProblems(); len(stops) != 0 {
			t.Errorf("%s stops the start: %s", text, show(stops))
		}
	}
	for _, text := range []string{"databroker_storage_type: postgres\ndatabroker_storage_connection_string: x", "services: proxy\nshared_secret: " + secret32, "idp_provider: keycloack", "pomerium_zero_token: x"} {
		if stops := mustLoad(t, text+"\n").StartProblems(); len(stops) != 1 || stops[0].Line == 0 {
			t.Errorf("%s does not stop the start: %s", text, show(stops))
		}
	}
}
