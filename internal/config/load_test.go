package config

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected problems in testdata")

func TestGoodFixturesLoad(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.good.*")
	if len(files) < 5 {
		t.Fatalf("only %d fixtures found", len(files))
	}
	dir := material(t)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text := strings.ReplaceAll(readFile(t, file), "@DIR@", dir)
			path := write(t, t.TempDir(), filepath.Base(file), text)
			cfg, problems := LoadFile(path, nil)
			if cfg == nil {
				t.Fatalf("does not load:\n%s", show(problems))
			}
			for _, p := range problems {
				if p.Kind == KindUnknownKey || p.Kind == KindMisspelt {
					t.Errorf("unknown key: %s", p)
				}
			}
		})
	}
}

// The problems of a bad fixture stand beside it, one per line.
func TestBadFixtures(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.bad.*")
	for _, file := range files {
		if strings.HasSuffix(file, ".problems") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			format, err := formatOf(file)
			if err != nil {
				t.Fatal(err)
			}
			cfg, problems := Load(context.Background(), Text(filepath.Base(file), format, []byte(readFile(t, file))))
			if cfg != nil {
				t.Error("a bad document gives a Config")
			}
			got := show(problems)
			if *update {
				if err := os.WriteFile(file+".problems", []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := readFile(t, file+".problems"); got != want {
				t.Errorf("problems:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestEveryKeyIsSetByTheFixture(t *testing.T) {
	dir := material(t)
	text := strings.ReplaceAll(readFile(t, "testdata/every.good.yaml"), "@DIR@", dir)
	mustLoad(t, text)
	l, _ := parseDocument("config.yaml", YAML, []byte(text), nil)
	d := newDecoder()
	d.document("config.yaml", l)
	for _, it := range d.items {
		d.route(it.node, &Route{List: it.list, Index: it.index})
	}
	set := map[string]bool{}
	for _, s := range d.cfg.set {
		set[generic(s.path)] = true
	}
	// Inline variants of the files that the fixture names, and what excludes
	// something it sets.
	elsewhere := map[string]bool{
		"certificate": true, "certificate_key": true, "certificate_authority": true, "autocert_trusted_ca": true,
		"autocert_dns_tsig_secret_file": true, "autocert_dns_webhook_secret_file": true, "ech_keys": true,
		"shared_secret": true, "shared_secret_previous_file": true, "signing_key": true, "cookie_secret": true,
		"cookie_domain": true, "idp_client_secret": true, "databroker_storage_connection_string_file": true,
		"metrics_certificate": true, "metrics_certificate_key": true, "metrics_client_ca": true,
		"pomerium_zero_token": true, "ssh_address": true,
		"routes[].kubernetes_service_account_token": true, "routes[].tls_custom_ca": true,
		"routes[].tls_client_cert": true, "routes[].tls_client_key": true, "routes[].tls_downstream_client_ca": true,
		"routes[].allow_public_unauthenticated_access": true, "routes[].sub_policies": true, "routes[].shadow_policy": true,
		"routes[].id":  true,
		"policy_tests": true, "routes[].policy_tests": true, // run in package server
	}
	for _, list := range []*schema{globalKeys(), routeKeys()} {
		for _, k := range list.keys {
			if !set[k.path] && !elsewhere[k.path] && k.section != "2.16" {
				t.Errorf("the fixture does not set %s", k.path)
			}
		}
	}
}

func TestDefaults(t *testing.T) {
	cfg := mustLoad(t, "")
	if got := cfg.Services.Services; len(got) != 4 || !cfg.Services.All() {
		t.Errorf("services = %v", got)
	}
	if cfg.Proxy.TimeoutRead != 30*time.Second || cfg.Proxy.TimeoutWrite != 0 || cfg.Proxy.TimeoutIdle != 5*time.Minute {
		t.Errorf("timeouts = %+v", cfg.Proxy)
	}
	if cfg.Authn.CookieExpire != 14*time.Hour || cfg.Authn.CookieName != "_pomerium" || cfg.Authn.CookieNameSet {
		t.Errorf("cookies = %+v", cfg.Authn)
	}
	if !reflect.DeepEqual(cfg.Authn.ProgrammaticRedirectDomainWhitelist, []string{"localhost"}) {
		t.Errorf("whitelist = %v", cfg.Authn.ProgrammaticRedirectDomainWhitelist)
	}
	if cfg.Telemetry.HealthCheckAddr != "127.0.0.1:28080" || cfg.Telemetry.DebugAddress != "" {
		t.Errorf("listeners = %+v", cfg.Telemetry)
	}
	if cfg.Proxy.HeadersWithUnderscoresAction != "reject_request" || !cfg.Proxy.NormalizePath || !cfg.Proxy.MergeSlashes {
		t.Errorf("hygiene = %+v", cfg.Proxy)
	}
	if *cfg.Certs.DownstreamMTLS.MaxVerifyDepth != 1 || cfg.Certs.DownstreamMTLS.Enforcement != "policy_with_default_deny" {
		t.Errorf("mtls = %+v", cfg.Certs.DownstreamMTLS)
	}
	if !cfg.Flag("config_hot_reload") || cfg.Flag("pomerium_jwt_endpoint") || cfg.Flag("nonsense") {
		t.Error("flags are not at their defaults")
	}
	if cfg.Authz.AssertionReuse != time.Minute || cfg.Store.MaxStale != 10*time.Second {
		t.Errorf("%v %v", cfg.Authz.AssertionReuse, cfg.Store.MaxStale)
	}
	if _, problems := loadText(""); len(problems) > 0 {
		t.Errorf("an empty document has problems:\n%s", show(problems))
	}
}

func TestPolicyItemsComeBeforeRoutes(t *testing.T) {
	cfg := mustLoad(t, `
routes:
  - {from: https://b.example.com, to: http://b}
  - {from: https://c.example.com, to: http://c}
policy:
  - {from: https://a.example.com, to: http://a}
`)
	var got []string
	for _, r := range cfg.Routes {
		got = append(got, r.Path()+" "+r.Match.From)
	}
	want := []string{"policy[0] https://a.example.com", "routes[0] https://b.example.com", "routes[1] https://c.example.com"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("routes = %v", got)
	}
}

func TestLaterSourcesWin(t *testing.T) {
	cfg, problems := Load(context.Background(),
		Text("base.yaml", YAML, []byte("timeout_read: 1s\ntimeout_idle: soon\ndownstream_mtls:\n  enforcement: policy\n  max_verify_depth: 3\n"+app)),
		Text("over.json", JSON, []byte(`{"timeout_idle": "9s"}`)),
		Environment([]string{"TIMEOUT_READ=2s", "DOWNSTREAM_MTLS_ENFORCEMENT=reject_connection"}))
	if cfg == nil {
		t.Fatalf("an overruled bad value stops the load:\n%s", show(problems))
	}
	if cfg.Proxy.TimeoutRead != 2*time.Second || cfg.Proxy.TimeoutIdle != 9*time.Second {
		t.Errorf("timeouts = %v %v", cfg.Proxy.TimeoutRead, cfg.Proxy.TimeoutIdle)
	}
	m := cfg.Certs.DownstreamMTLS
	if m.Enforcement != "reject_connection" || *m.MaxVerifyDepth != 3 {
		t.Errorf("single fields of a block are not overridden: %+v", m)
	}
	if len(cfg.Routes) != 1 {
		t.Errorf("%d routes", len(cfg.Routes))
	}
}

func TestRoutesOfALaterSourceReplaceTheList(t *testing.T) {
	cfg, problems := Load(context.Background(),
		Text("a.yaml", YAML, []byte("routes: [{from: https://a, to: nonsense}]")),
		Text("b.yaml", YAML, []byte("routes: [{from: https://b, to: http://b}]")))
	if cfg == nil || len(cfg.Routes) != 1 || cfg.Routes[0].Match.From != "https://b" {
		t.Fatalf("%v\n%s", cfg, show(problems))
	}
}

func TestFormatsSayTheSame(t *testing.T) {
	yaml := mustLoad(t, "Timeout_Read: 7s\nroutes:\n  - from: https://a\n    to: [http://a]\n    set_request_headers: {X-A: one}\n    policy: {allow: {or: [{email: {is: a@b.c}}]}}\n")
	json, problems := Load(context.Background(), Text("c.json", JSON, []byte("{\n\t\"Timeout_Read\": \"7s\",\n\t\"routes\": [{\"from\": \"https://a\", \"to\": [\"http://a\"], \"set_request_headers\": {\"X-A\": \"one\"}, \"policy\": {\"allow\": {\"or\": [{\"email\": {\"is\": \"a@b.c\"}}]}}}]}")))
	if json == nil {
		t.Fatal(show(problems))
	}
	toml, problems := Load(context.Background(), Text("c.toml", TOML, []byte("Timeout_Read = '7s'\n[[routes]]\nfrom = 'https://a'\nto = ['http://a']\n[routes.set_request_headers]\nX-A = 'one'\n[[routes.policy.allow.or]]\nemail = {is = 'a@b.c'}\n")))
	if toml == nil {
		t.Fatal(show(problems))
	}
	for _, other := range []*Config{json, toml} {
		if !reflect.DeepEqual(other.Proxy, yaml.Proxy) {
			t.Errorf("%+v\n%+v", other.Proxy, yaml.Proxy)
		}
		a, b := other.Routes[0], yaml.Routes[0]
		if !reflect.DeepEqual(a.Upstream, b.Upstream) || !reflect.DeepEqual(a.Proxy, b.Proxy) || a.Compiled == nil || b.Compiled == nil {
			t.Errorf("%+v\n%+v", a, b)
		}
	}
}

func TestUnsetIsNotEmpty(t *testing.T) {
	unset := mustLoad(t, app)
	null := mustLoad(t, "access_log_fields:\nidp_request_params: ~\n"+app)
	empty := mustLoad(t, "access_log_fields: []\nidp_request_params: {}\nidp_access_token_allowed_audiences: []\nallow_upgrades: []\n"+inRoute("idp_access_token_allowed_audiences: []\nallow_upgrades: []\nallowed_users: []"))
	for _, cfg := range []*Config{unset, null} {
		if cfg.Telemetry.AccessLogFields != nil || cfg.Identity.IDPRequestParams != nil || cfg.Identity.IDPAccessTokenAudiences != nil || cfg.Routes[0].Authz.AllowedUsers != nil {
			t.Error("unset lists are not nil")
		}
	}
	r := empty.Routes[0]
	if empty.Telemetry.AccessLogFields == nil || empty.Identity.IDPRequestParams == nil || empty.Identity.IDPAccessTokenAudiences == nil ||
		r.Identity.IDPAccessTokenAudiences == nil || r.Authz.AllowedUsers == nil || r.Proxy.AllowUpgrades == nil {
		t.Error("empty lists are nil")
	}
}

func TestMapKeysKeepTheirCase(t *testing.T) {
	cfg := mustLoad(t, "SET_Response_Headers: {X-MiXed: a}\njwt_claims_headers: {X-Email: Email}\n"+inRoute("Allowed_IDP_Claims: {Team: [a]}"))
	if cfg.Proxy.SetResponseHeaders["X-MiXed"] != "a" || cfg.Authz.JWTClaimsHeaders["X-Email"] != "Email" || cfg.Routes[0].Authz.AllowedIDPClaims["Team"] == nil {
		t.Errorf("%v %v", cfg.Proxy.SetResponseHeaders, cfg.Routes[0].Authz.AllowedIDPClaims)
	}
}

func TestChecksumFollowsContent(t *testing.T) {
	dir := material(t)
	path := write(t, dir, "config.yaml", "shared_secret_file: "+dir+"/secret\n"+app)
	sum := func(env ...string) uint64 {
		cfg, problems := LoadFile(path, env)
		if cfg == nil {
			t.Fatal(show(problems))
		}
		return cfg.Checksum()
	}
	first := sum()
	if sum() != first || sum("UNRELATED=1") != first {
		t.Error("the checksum changes by itself")
	}
	if sum("LOG_LEVEL=debug") == first {
		t.Error("the environment does not count")
	}
	write(t, dir, "secret", b64("a different secret of 32 bytes !!"[:32]))
	if sum() == first {
		t.Error("referenced files do not count")
	}
}

func TestFilesAreWatched(t *testing.T) {
	dir := material(t)
	text := strings.ReplaceAll(readFile(t, "testdata/every.good.yaml"), "@DIR@", dir)
	path := write(t, t.TempDir(), "config.yaml", text)
	cfg, problems := LoadFile(path, nil)
	if cfg == nil {
		t.Fatal(show(problems))
	}
	got := map[string]bool{}
	for _, f := range cfg.Files() {
		got[f.Path] = true
		if f.Hash == [32]byte{} {
			t.Errorf("%s has no hash", f.Path)
		}
	}
	for _, want := range []string{path, dir + "/tls.crt", dir + "/tls.key", dir + "/secret", dir + "/client-secret", dir + "/token", dir + "/users.json"} {
		if !got[want] {
			t.Errorf("%s is not watched", want)
		}
	}
	if cfg.Files()[0].Path != path {
		t.Error("the main file does not come first")
	}
}

func TestMissingMainFileAndExtension(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "none.yaml"), write(t, dir, "config.txt", ""), dir + "/", write(t, dir, "bare", "")} {
		cfg, problems := LoadFile(path, nil)
		if cfg != nil || len(fatal(problems)) != 1 {
			t.Errorf("%s: %v", path, problems)
		}
	}
	if cfg, problems := LoadFile("", []string{"LOG_LEVEL=debug"}); cfg == nil || cfg.Telemetry.LogLevel != "debug" {
		t.Errorf("the environment alone does not load: %v", problems)
	}
}

func TestManyProblemsAreBounded(t *testing.T) {
	cfg, problems := loadText("routes:\n" + strings.Repeat("  - {from: 1, to: 2, nonsense: 3}\n", 5000))
	if cfg != nil || len(problems) > maxProblems+5 {
		t.Errorf("%d problems", len(problems))
	}
}
