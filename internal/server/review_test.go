package server_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/server"
	"postern/internal/server/servertest"
	"postern/internal/session"
)

const forAnybody = `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_any_authenticated_user: true
`

// TestRemovedAccountIsOutAtOnce: once the command that removes an account has
// answered, nobody is signed in with it.
func TestRemovedAccountIsOutAtOnce(t *testing.T) {
	p := servertest.Start(t, "local_users_file: \"\"\n"+forAnybody)
	who := servertest.Account{ID: "cleo", Email: "cleo@example.com", Password: "a long password"}
	ctx := context.Background()
	change := server.AccountChange{AccountInfo: server.AccountInfo{ID: who.ID, Email: who.Email}, Password: who.Password, Create: true}
	if err := p.Control.Call(ctx, "PUT", "/v1/users", change, nil); err != nil {
		t.Fatal(err)
	}
	a := p.Agent()
	a.SignIn("https://app.localhost/", who)
	if _, err := a.Get("https://app.localhost/").Echo(); err != nil {
		t.Fatal(err)
	}
	if err := p.Control.Call(ctx, "DELETE", "/v1/users", map[string]string{"email": who.Email}, nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, err := a.Get("https://app.localhost/").Echo(); err != nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("a removed account still reaches the application")
		}
	}
}

// TestPasswordOpensNoDisabledAccount: what a change does not speak of stays.
func TestPasswordOpensNoDisabledAccount(t *testing.T) {
	list := []session.LocalAccount{{ID: "cleo", Email: "cleo@example.com", Disabled: true}}
	out, err := server.AccountChange{AccountInfo: server.AccountInfo{Email: "cleo@example.com"}, Password: "another password"}.Apply(list)
	if err != nil {
		t.Fatal(err)
	}
	if !out[0].Disabled || out[0].PasswordHash == "" {
		t.Errorf("after a new password: %+v", out[0])
	}
}

// TestControlSocketReplacesNothingElse: a mistaken path costs no file.
func TestControlSocketReplacesNothingElse(t *testing.T) {
	p, err := servertest.Try(t, "control_address: @DIR@/precious\n", servertest.Options{Files: map[string]string{"precious": "work of years"}})
	if err == nil || !strings.Contains(err.Error(), "control_address") {
		t.Errorf("the start was answered %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(p.Dir, "precious")); err != nil || string(b) != "work of years" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

// TestRefusedHeadsAreInTheAccessLog: what never became a request has a line all
// the same.
func TestRefusedHeadsAreInTheAccessLog(t *testing.T) {
	p := servertest.Start(t, forAnybody)
	c, err := p.Agent().Dial("app.localhost", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: app.localhost\r\nBad Name: 1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := p.WaitLog("http1.codec_error"); err != nil {
		t.Error(err)
	}
}
