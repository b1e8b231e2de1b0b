package server_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/internal/config"
	"postern/internal/server"
	"postern/internal/server/servertest"
	"postern/internal/session"
)

// What stops a start says what to do, all of it.
func TestRefusedStarts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	noErr(t, err)
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	noErr(t, os.WriteFile(file, nil, 0o600))
	for name, x := range map[string]struct {
		text string
		say  []string
	}{
		"a taken port":        {"address: " + taken.Addr().String() + public, []string{"address " + taken.Addr().String(), "stop the program that listens there"}},
		"a taken health port": {"health_check_addr: " + taken.Addr().String() + public, []string{"health_check_addr", "stop the program"}},
		"an address not here": {"address: 203.0.113.1:0" + public, []string{"address", "choose one that it has"}},
		"several problems":    {"timeout_idle: soon\ntimeout_read: later" + public, []string{"timeout_idle", "timeout_read"}},
		"a short secret":      {"shared_secret: AAAA" + public, []string{"shared_secret", "32"}},
		"narrowing":           {"idp_access_token_allowed_audiences: [x]" + public, []string{"idp_access_token_allowed_audiences", "admit more"}},
		"data dir is a file":  {"data_dir: " + file + "\ndatabroker_storage_type: file" + public, []string{file}},
		"no sign-in host":     {"routes: [{from: 'https://*.localhost', to: @APP@, allow_any_authenticated_user: true}]", []string{"authenticate_service_url"}},
		"two equal routes": {"routes: [{from: 'https://a.localhost', to: @APP@, allow_any_authenticated_user: true}, {from: 'https://a.localhost', to: @APP@, allow_any_authenticated_user: true}]",
			[]string{"routes[1]"}},
	} {
		p, err := servertest.Try(t, x.text)
		if err == nil {
			t.Errorf("%s: it started", name)
			p.Stop()
			continue
		}
		for _, word := range x.say {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q does not speak of %q", name, err, word)
			}
		}
	}
}

// Where people sign in, without and with authenticate_service_url (decision 10).
func TestSignInHost(t *testing.T) {
	const second = "  - {from: https://second.localhost, to: @APP@, allow_any_authenticated_user: true}\n"
	for name, x := range map[string]struct{ text, host string }{
		"unset":         {signedIn + second, "app.localhost"},
		"hosted":        {"authenticate_service_url: https://authenticate.pomerium.app\n" + signedIn + second, "app.localhost"},
		"of its own":    {"authenticate_service_url: https://auth.localhost\n" + signedIn + second, "auth.localhost"},
		"also a route":  {"authenticate_service_url: https://second.localhost\n" + signedIn + second, "second.localhost"},
		"wildcard skip": {"routes:\n  - {from: 'https://*.w.localhost', to: @APP@, allow_any_authenticated_user: true}\n" + second, "second.localhost"},
	} {
		p := servertest.Start(t, x.text)
		page := p.Agent().Get("https://second.localhost/")
		if page.StatusCode != 302 || !strings.HasPrefix(page.Header.Get("Location"), "https://"+x.host+"/.pomerium/sign_in") {
			t.Errorf("%s: %d to %s", name, page.StatusCode, page.Header.Get("Location"))
		}
		a := p.Agent()
		a.SignIn("https://second.localhost/x", servertest.Ada)
		// A shared host keeps its own /, a sign-in host of its own leads on.
		home := p.Agent().Get("https://" + x.host + "/")
		if own := x.host == "auth.localhost"; own != (home.Header.Get("Location") == "/.pomerium/") {
			t.Errorf("%s: / answers %d %s", name, home.StatusCode, home.Header.Get("Location"))
		}
		noErr(t, p.Stop())
	}
}

// local_users_file is followed: groups count from the next request, and who is
// removed or disabled is out.
func TestLocalUsersFileIsFollowed(t *testing.T) {
	p := servertest.Start(t, strings.Replace(signedIn, "allow_any_authenticated_user: true", "policy: {allow: {or: [{groups: {has: astronomy}}, {groups: {has: finance}}]}}", 1))
	file := filepath.Join(p.Dir, "users.yaml")
	ada, bob := p.Agent(), p.Agent()
	ada.SignIn("https://app.localhost/", servertest.Ada)
	bob.SignIn("https://app.localhost/", servertest.Bob)
	change := func(f func([]session.LocalAccount) []session.LocalAccount) {
		t.Helper()
		servertest.WriteUsers(t, file, f(servertest.Users()))
		if problems := p.Reload(); len(problems) > 0 {
			t.Fatal(problems)
		}
	}
	status := func(a *servertest.Agent, good bool, when string) {
		t.Helper()
		if err := servertest.Eventually(func() error { // the records follow the swap
			if page := a.Get("https://app.localhost/"); (page.StatusCode == 200) != good {
				return fmt.Errorf("%s: %d", when, page.StatusCode)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	change(func(u []session.LocalAccount) []session.LocalAccount { u[0].Groups = []string{"staff"}; return u })
	status(ada, false, "out of the group")
	status(bob, true, "another person")
	change(func(u []session.LocalAccount) []session.LocalAccount { return u })
	status(ada, true, "in the group again")
	change(func(u []session.LocalAccount) []session.LocalAccount { u[1].Disabled = true; return u })
	status(bob, false, "disabled")
	change(func(u []session.LocalAccount) []session.LocalAccount { return u[1:] })
	status(ada, false, "removed")
	status(bob, false, "enabled again, though the session ended")
	bob.SignIn("https://app.localhost/", servertest.Bob)
	// A file that cannot be read changes nobody.
	noErr(t, os.WriteFile(file, []byte("- {id: x}"), 0o600))
	if problems := strings.Join(p.Reload(), "\n"); !strings.Contains(problems, "local_users_file") {
		t.Errorf("%q", problems)
	}
}

// Check finds what a start would find, and touches no network.
func TestCheck(t *testing.T) {
	check := func(text string) []config.Problem {
		t.Helper()
		cfg, problems := config.Load(t.Context(), config.Text("config.yaml", config.YAML, []byte(text)))
		if cfg == nil || config.Fatal(problems) {
			t.Fatalf("%v", problems)
		}
		return server.Check(cfg)
	}
	const route = "routes:\n  - {from: https://a.example, to: http://127.0.0.1:1, allow_any_authenticated_user: true}\n"
	if problems := check("idp_provider: oidc\nidp_provider_url: https://192.0.2.1:1\nidp_client_id: a\nidp_client_secret: b\n" + route); len(problems) > 0 {
		t.Errorf("a provider that nobody can reach now: %v", problems)
	}
	for say, text := range map[string]string{
		"set authenticate_service_url": strings.Replace(route, "https://a.example", "'https://*.a.example'", 1),
	} {
		if problems := check(text); !slices.ContainsFunc(problems, func(p config.Problem) bool { return strings.Contains(p.String(), say) }) {
			t.Errorf("%s: %v", say, problems)
		}
	}
}
