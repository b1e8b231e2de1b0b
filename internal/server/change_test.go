package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// answer is what a route says, in a word: its status, and whose answer it is.
func answer(a *servertest.Agent, target string) string {
	page := a.Get(target)
	return fmt.Sprint(page.StatusCode, " ", strings.TrimSpace(strings.SplitN(page.Body, "\n", 2)[0]))
}

// TestBadRoutesAreIsolated: with config_bad_route: isolate a mistake costs one
// route, at the start as on reload, and nothing that it was to serve falls to
// another.
func TestBadRoutesAreIsolated(t *testing.T) {
	const text = `config_bad_route: isolate
routes:
  - {from: https://good.localhost, response: {status: 200, body: good}, allow_public_unauthenticated_access: true}
  - {from: https://app.localhost, prefix: /admin, response: {status: 200, body: admin}, policy: [{alow: {}}]}
  - {from: https://app.localhost, regex: '(', response: {status: 200, body: regex}, allow_any_authenticated_user: true}
  - {from: https://app.localhost, response: {status: 200, body: rest}, allow_public_unauthenticated_access: true}
  - {from: https://lone.localhost, prefix: /a, to: nonsense, allow_public_unauthenticated_access: true}
  - {from: https://lone.localhost, prefix: /b, response: {status: 200, body: b}, allow_public_unauthenticated_access: true}
  - {from: "https://odd.localhost/with/path?", response: {status: 200, body: odd}, policy: [{allow: {or: [{email: a@example.com}]}}]}
  - {from: "https://*.localhost", response: {status: 200, body: any}, allow_public_unauthenticated_access: true}
`
	p := servertest.Start(t, text)
	a := p.Agent()
	for target, want := range map[string]string{
		"https://good.localhost/":                  "200 good",
		"https://app.localhost/admin":              "503",
		"https://app.localhost/other":              "503", // the matcher of the second is not readable: the host is its own
		"https://lone.localhost/a":                 "503",
		"https://lone.localhost/b":                 "200 b",
		"https://odd.localhost/":                   "503",
		"https://something.localhost/":             "200 any",
		"https://good.localhost/.pomerium/nothing": "404",
	} {
		if got := answer(a, target); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	page := a.Get("https://app.localhost/admin")
	if strings.Contains(page.Body, "alow") || strings.Contains(page.Body, "config.yaml") {
		t.Errorf("a visitor is told what is wrong:\n%s", page.Body)
	}
	st := p.Status()
	if len(st.Config.Isolated) != 4 || st.Config.Refused != nil || len(st.Config.Problems) != 0 {
		t.Errorf("%+v", st.Config)
	}
	if !strings.Contains(st.Checks["config.routes"], "4 of 8 routes") || !strings.HasPrefix(st.Checks["config.databroker.build"], "RUNNING") {
		t.Errorf("%+v", st.Checks)
	}
	if ready := internal(t, p, "health", "/readyz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("one bad route makes the process unready: %s", ready)
	}
	noErr(t, p.WaitLog(`config.yaml:\d+:\d+: warning: routes\[1\].*answers 503`))

	// Corrected, it serves; and what is wrong with the whole is refused.
	p.Change(strings.Replace(text, "alow: {}", "allow: {or: [{accept: 1}]}", 1))
	if got := answer(a, "https://app.localhost/admin"); got != "200 admin" {
		t.Errorf("after the correction: %s", got)
	}
	if n := len(p.Status().Config.Isolated); n != 3 {
		t.Errorf("%d routes are isolated", n)
	}
	p.Write("config_bad_route: isolate\ntimeout_read: soon\n" + public)
	if problems := p.Reload(); len(problems) != 1 {
		t.Errorf("%q", problems)
	}
	// Without the key the same is refused as a whole.
	p.Write(strings.Replace(text, "config_bad_route: isolate\n", "", 1))
	if problems := p.Reload(); len(problems) != 4 || !strings.Contains(problems[0], "config.yaml:") || !strings.Contains(problems[0], "routes[1].policy[0]") {
		t.Errorf("%q", problems)
	}
	if got := answer(a, "https://good.localhost/"); got != "200 good" {
		t.Errorf("the configuration before does not serve on: %s", got)
	}
}

// TestRoutesWithoutAHostAreNotIsolated: a route whose host cannot be read can
// answer 503 nowhere, and what it was to judge would fall to wider routes.
func TestRoutesWithoutAHostAreNotIsolated(t *testing.T) {
	const text = `config_bad_route: isolate
routes:
  - {from: https://app.localhost, prefix: /admin, response: {status: 200, body: admin}, policy: [{allow: {or: [{email: a@example.com}]}}]}
  - {from: https://app.localhost, response: {status: 200, body: rest}, allow_public_unauthenticated_access: true}
  - {from: "https://*.localhost", response: {status: 200, body: any}, allow_public_unauthenticated_access: true}
`
	p := servertest.Start(t, text)
	a := p.Agent()
	for _, from := range []string{"from: https://", "from: 'https://app .localhost'", "from: ''", "from: [https://app.localhost]", "form: https://app.localhost"} {
		p.Write(strings.Replace(text, "from: https://app.localhost", from, 1))
		if problems := p.Reload(); len(problems) == 0 || !strings.Contains(strings.Join(problems, " "), "routes[0]") {
			t.Errorf("%s: %q, want a refusal", from, problems)
		}
		if got := answer(a, "https://app.localhost/admin"); strings.HasPrefix(got, "200") {
			t.Errorf("%s: whoever asks for /admin gets %s", from, got)
		}
	}
	p.Write(strings.Replace(text, "routes:\n", "routes:\n  - https://app.localhost\n", 1))
	if problems := p.Reload(); len(problems) == 0 {
		t.Error("a route that is no mapping is left out")
	}
}

// internal asks a listener for operators.
func internal(t *testing.T, p *servertest.Program, name, path string) string {
	t.Helper()
	return askInternal(p.Status().Listeners[name], path)
}

func askInternal(addr, path string) string {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	res, err := c.Get("http://" + addr + path)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return fmt.Sprint(res.StatusCode, " ", string(b))
}

// TestAdoptedAndRefusedAreTold: which configuration serves, and which was
// refused, in status, health and metrics; gone when a good one is taken.
func TestAdoptedAndRefusedAreTold(t *testing.T) {
	at, err := servertest.Port()
	noErr(t, err)
	global := "metrics_address: 127.0.0.1:" + at + "\n"
	p := servertest.Start(t, global+public)
	good := p.Status()
	p.Write(global + strings.Replace(public, "to: @APP@", "to: nonsense", 1))
	if problems := p.Reload(); len(problems) != 1 || !strings.Contains(problems[0], "config.yaml:") {
		t.Fatalf("%q", problems)
	}
	st := p.Status()
	if r := st.Config.Refused; r == nil || r.Checksum == good.Config.Checksum || r.At.Before(good.Config.LoadedAt) || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "routes[0].to") {
		t.Errorf("%+v", r)
	}
	if st.Config.Checksum != good.Config.Checksum || !st.Config.LoadedAt.Equal(good.Config.LoadedAt) {
		t.Errorf("adopted is %+v", st.Config)
	}
	if status := internal(t, p, "health", "/status"); !strings.Contains(status, st.Config.Refused.Checksum) || !strings.Contains(status, good.Config.Checksum) {
		t.Errorf("health: %s", status)
	}
	if ready := internal(t, p, "health", "/healthz"); !strings.HasPrefix(ready, "200") {
		t.Errorf("a refused change makes a serving process unhealthy: %s", ready)
	}
	metrics := internal(t, p, "metrics", "/metrics")
	for _, want := range []string{"pomerium_config_last_reload_success{service=\"pomerium\"} 0", "pomerium_config_checksum_decimal{"} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	if strings.Contains(metrics, "postern_config_last_refused_timestamp 0") {
		t.Error("the refusal is not in the metrics")
	}
	// Taking it back is enough.
	p.Change(global + public)
	st = p.Status()
	if st.Config.Refused != nil || len(st.Config.Problems) > 0 || st.Generation != good.Generation || st.Checks["config.reload"] != "RUNNING" {
		t.Errorf("%+v %v", st.Config, st.Checks)
	}
	if metrics := internal(t, p, "metrics", "/metrics"); !strings.Contains(metrics, "postern_config_last_refused_timestamp 0") || !strings.Contains(metrics, "reload_success{service=\"pomerium\"} 1") {
		t.Error("the metrics still tell a refusal")
	}
}

// TestInnerListenersFollow: health and metrics go where a change says, the new
// address before the old one is let go, and a change that cannot bind changes
// nothing.
func TestInnerListenersFollow(t *testing.T) {
	free := func() string {
		t.Helper()
		port, err := servertest.Port()
		noErr(t, err)
		return "127.0.0.1:" + port
	}
	p := servertest.Start(t, "metrics_address: "+free()+"\n"+public)
	before := p.Status().Listeners
	health, metrics := free(), free()
	p.Change("health_check_addr: " + health + "\nmetrics_address: " + metrics + "\n" + public)
	now := p.Status().Listeners
	if now["health"] != health || now["metrics"] != metrics {
		t.Fatalf("%v", now)
	}
	if got := askInternal(health, "/healthz"); !strings.HasPrefix(got, "200") {
		t.Error(got)
	}
	if got := askInternal(metrics, "/metrics"); !strings.HasPrefix(got, "200") {
		t.Error(got)
	}
	noErr(t, servertest.Eventually(func() error {
		for _, name := range []string{"health", "metrics"} {
			if got := askInternal(before[name], "/"); !strings.Contains(got, "refused") {
				return fmt.Errorf("the old address of %s answers: %s", name, got)
			}
		}
		return nil
	}))
	// On the same address the settings are exchanged.
	p.Change("health_check_addr: " + health + "\nmetrics_address: " + metrics + "\nmetrics_basic_auth: " + "YTpi" + "\n" + public)
	if got := askInternal(metrics, "/metrics"); !strings.HasPrefix(got, "401") {
		t.Errorf("without the password: %s", got)
	}
	p.Write("health_check_addr: " + p.Main + "\n" + public)
	if problems := p.Reload(); len(problems) != 1 || !strings.Contains(problems[0], "health_check_addr") {
		t.Errorf("%q", problems)
	}
	if got := askInternal(health, "/healthz"); !strings.HasPrefix(got, "200") {
		t.Errorf("after a change that was refused: %s", got)
	}
	p.Change("health_check_addr: " + health + "\n" + public)
	if _, ok := p.Status().Listeners["metrics"]; ok {
		t.Error("metrics are still listed")
	}
}

// TestGuessingIsSlowedOverReloads: wrong passwords are counted over changes of
// the configuration.
func TestGuessingIsSlowedOverReloads(t *testing.T) {
	p := servertest.Start(t, signedIn)
	wrong := servertest.Account{ID: "ada", Email: servertest.Ada.Email, Password: "wrong"}
	last := 0
	for i := range 8 {
		page, err := p.Agent().Visit("https://app.localhost/", wrong)
		noErr(t, err)
		if last = page.StatusCode; last == http.StatusTooManyRequests {
			break
		}
		p.Change(fmt.Sprintf("timeout_idle: %dm\n", i+1) + signedIn)
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("eight wrong passwords with a reload after each: %d", last)
	}
}

// TestWatcherHearsOfChanges: a change is live without anybody asking for it,
// by a rename as by a write in place.
func TestWatcherHearsOfChanges(t *testing.T) {
	body := func(n int) string {
		return fmt.Sprintf("routes:\n  - {from: https://app.localhost, response: {status: 200, body: version %d}, allow_public_unauthenticated_access: true}\n", n)
	}
	p := servertest.Start(t, body(0))
	a := p.Agent()
	wait := func(n int) {
		t.Helper()
		noErr(t, servertest.Eventually(func() error {
			if got := answer(a, "https://app.localhost/"); got != fmt.Sprintf("200 version %d", n) {
				return fmt.Errorf("change %d: %s", n, got)
			}
			return nil
		}))
	}
	p.Write(body(1))
	wait(1)
	text, err := os.ReadFile(p.Config)
	noErr(t, err)
	noErr(t, os.WriteFile(p.Config, []byte(strings.Replace(string(text), "version 1", "version 2", 1)), 0o600))
	wait(2)
	// As Kubernetes exchanges a volume.
	v3 := filepath.Join(p.Dir, "v3")
	noErr(t, os.Mkdir(v3, 0o700))
	noErr(t, os.WriteFile(filepath.Join(v3, "config.yaml"), []byte(strings.Replace(string(text), "version 1", "version 3", 1)), 0o600))
	noErr(t, os.Symlink(filepath.Join(v3, "config.yaml"), p.Config+".link"))
	noErr(t, os.Rename(p.Config+".link", p.Config))
	wait(3)
}
