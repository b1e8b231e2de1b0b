package server_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"postern/internal/server"
	"postern/internal/server/servertest"
)

const signedIn = `
routes:
  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}
`

func call(t *testing.T, p *servertest.Program, method, path string, in, out any) {
	t.Helper()
	noErr(t, p.Control.Call(context.Background(), method, path, in, out))
}

func TestControlSocket(t *testing.T) {
	p := servertest.Start(t, signedIn)
	socket := filepath.Join(p.Dir, "data", "control.sock")
	info, err := os.Stat(socket)
	noErr(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v", info.Mode())
	}
	// A second process on the same data is told of the first.
	if other, err := servertest.Try(t, signedIn, servertest.Options{Dir: p.Dir}); err == nil {
		t.Error("a second process started")
		other.Stop()
	} else if !strings.Contains(err.Error(), "another postern answers") || !strings.Contains(err.Error(), "control_address") {
		t.Errorf("%v", err)
	}
	// ... and does not take the socket with it.
	if st := p.Status(); st.Version != "test" || st.Listeners["main"] != p.Main || st.Storage != "memory" || st.Checks["authorize"] == "" && len(st.Checks) == 0 {
		t.Errorf("%+v", st)
	}
	noErr(t, p.Stop())
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left behind")
	}
	if err := p.Control.Call(context.Background(), "GET", "/v1/status", nil, nil); err == nil || !strings.Contains(err.Error(), "start it") {
		t.Errorf("nobody there: %v", err)
	}
	// One left behind by a process that was killed is no obstacle.
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	noErr(t, err)
	ln.SetUnlinkOnClose(false)
	ln.Close()
	servertest.Start(t, signedIn, servertest.Options{Dir: p.Dir})
}

// Whoever is neither this user nor root is sent away even where the mode of
// the socket lets them in.
func TestControlSocketPeers(t *testing.T) {
	if path := os.Getenv("POSTERN_TEST_DIAL"); path != "" {
		err := server.Dial(path).Call(context.Background(), "GET", "/v1/status", nil, nil)
		if err == nil {
			os.Exit(7)
		}
		os.Exit(8)
	}
	p := servertest.Start(t, signedIn)
	dir, err := os.MkdirTemp("", "pu-")
	noErr(t, err)
	defer os.RemoveAll(dir)
	self := filepath.Join(dir, "self") // where anybody may run it
	b, err := os.ReadFile(os.Args[0])
	noErr(t, err)
	noErr(t, os.WriteFile(self, b, 0o755))
	socket := filepath.Join(p.Dir, "data", "control.sock")
	for path, mode := range map[string]os.FileMode{dir: 0o755, p.Dir: 0o755, filepath.Join(p.Dir, "data"): 0o755, socket: 0o666} {
		noErr(t, os.Chmod(path, mode))
	}
	dial := func(uid uint32) int {
		cmd := exec.Command(self, "-test.run=^TestControlSocketPeers$")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "POSTERN_TEST_DIAL="+socket)
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		}
		_ = cmd.Run()
		return cmd.ProcessState.ExitCode()
	}
	if code := dial(uint32(os.Geteuid())); code != 7 {
		t.Errorf("this user: exit %d", code)
	}
	if os.Geteuid() != 0 {
		return // nobody else can be played
	}
	if code := dial(65534); code != 8 {
		t.Errorf("another user: exit %d", code)
	}
}

func TestControlSessions(t *testing.T) {
	p := servertest.Start(t, signedIn)
	ada, bob := p.Agent(), p.Agent()
	ada.SignIn("https://app.localhost/", servertest.Ada)
	bob.SignIn("https://app.localhost/", servertest.Bob)
	var list []server.SessionInfo
	call(t, p, "GET", "/v1/sessions", nil, &list)
	if len(list) != 2 {
		t.Fatalf("%+v", list)
	}
	call(t, p, "GET", "/v1/sessions?user="+servertest.Ada.Email, nil, &list)
	if len(list) != 1 || list[0].Email != servertest.Ada.Email || list[0].ExpiresAt.IsZero() {
		t.Fatalf("%+v", list)
	}
	var revoked struct{ Revoked int }
	call(t, p, "POST", "/v1/sessions/revoke", map[string]any{"ids": []string{list[0].ID}}, &revoked)
	if revoked.Revoked != 1 {
		t.Errorf("%+v", revoked)
	}
	out := func(a *servertest.Agent) {
		t.Helper()
		if err := servertest.Eventually(func() error { // the copy follows within moments
			if page := a.Get("https://app.localhost/"); page.StatusCode != 302 {
				return fmt.Errorf("a revoked session is answered %d", page.StatusCode)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	out(ada)
	if page := bob.Get("https://app.localhost/"); page.StatusCode != 200 {
		t.Errorf("somebody else's: %d", page.StatusCode)
	}
	call(t, p, "POST", "/v1/sessions/revoke", map[string]any{"user": servertest.Bob.Email}, &revoked)
	if revoked.Revoked != 1 {
		t.Errorf("by user: %+v", revoked)
	}
	out(bob)
	call(t, p, "POST", "/v1/sessions/revoke", map[string]any{"ids": []string{"nobody"}}, &revoked)
	if revoked.Revoked != 0 {
		t.Errorf("an unknown session: %+v", revoked)
	}
}

// Accounts kept as records: made, changed and removed over the socket.
func TestControlUsers(t *testing.T) {
	p := servertest.Start(t, strings.Replace(signedIn, "allow_any_authenticated_user: true", "policy: {allow: {or: [{groups: {has: crew}}]}}", 1))
	cy := servertest.Account{ID: "cy", Email: "cy@example.net", Password: "another long password"}
	refused := func(change server.AccountChange, say string) {
		t.Helper()
		if err := p.Control.Call(context.Background(), "PUT", "/v1/users", change, nil); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%+v: %v", change.AccountInfo, err)
		}
	}
	refused(server.AccountChange{AccountInfo: server.AccountInfo{Email: "words"}, Password: cy.Password, Create: true}, "e-mail")
	refused(server.AccountChange{AccountInfo: server.AccountInfo{Email: cy.Email}, Password: "short", Create: true}, "characters")
	refused(server.AccountChange{AccountInfo: server.AccountInfo{Email: cy.Email}, Create: true}, "password")
	refused(server.AccountChange{AccountInfo: server.AccountInfo{Email: cy.Email}}, "no account")
	call(t, p, "PUT", "/v1/users", server.AccountChange{AccountInfo: server.AccountInfo{Email: cy.Email, Groups: []string{"crew"}}, Password: cy.Password, Create: true}, nil)
	refused(server.AccountChange{AccountInfo: server.AccountInfo{Email: cy.Email}, Password: cy.Password, Create: true}, "already")
	a := p.Agent()
	a.SignIn("https://app.localhost/", cy)

	var list []server.AccountInfo
	call(t, p, "GET", "/v1/users", nil, &list)
	if !slices.ContainsFunc(list, func(a server.AccountInfo) bool {
		return a.Email == cy.Email && slices.Equal(a.Groups, []string{"crew"})
	}) {
		t.Errorf("%+v", list)
	}
	call(t, p, "DELETE", "/v1/users", map[string]string{"email": cy.Email}, nil)
	if err := p.Control.Call(context.Background(), "DELETE", "/v1/users", map[string]string{"email": cy.Email}, nil); err == nil {
		t.Error("an account is removed twice")
	}
	page, err := p.Agent().Visit("https://app.localhost/", cy)
	noErr(t, err)
	if page.StatusCode == 200 && servertest.FindForm(page.Body) == nil {
		t.Error("a removed account signs in")
	}
	noErr(t, servertest.Eventually(func() error {
		if page := a.Get("https://app.localhost/"); page.StatusCode == 200 {
			return os.ErrPermission
		}
		return nil
	}))
}

// What is not JSON, or too much of it, is refused with words.
func TestControlMalformed(t *testing.T) {
	p := servertest.Start(t, signedIn)
	for _, x := range []struct{ method, path string }{{"PUT", "/v1/users"}, {"DELETE", "/v1/users"}, {"POST", "/v1/sessions/revoke"}} {
		if err := p.Control.Call(context.Background(), x.method, x.path, "words", nil); err == nil || !strings.Contains(err.Error(), "JSON") {
			t.Errorf("%s %s: %v", x.method, x.path, err)
		}
	}
	if err := p.Control.Call(context.Background(), "GET", "/v1/nothing", nil, nil); err == nil {
		t.Error("an unknown path answers")
	}
}
