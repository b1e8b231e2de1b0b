// Package servertest runs the whole program inside a test: from the text of a
// configuration to listeners that answer, with an application that echoes
// behind them and a browser without a screen in front.
//
//	p := servertest.Start(t, `
//	routes:
//	  - from: https://app.localhost
//	    to: @APP@
//	    allow_any_authenticated_user: true
//	`)
//	page := p.Agent().SignIn("https://app.localhost/", servertest.Ada)
//
// In a configuration @APP@ is the URL of the application and @DIR@ the
// directory of this program. What a test does not set has small defaults:
// addresses on free ports of 127.0.0.1, a data directory, local accounts.
package servertest

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"postern/internal/certs"
	"postern/internal/certs/acme"
	"postern/internal/identity"
	"postern/internal/server"
	"postern/internal/session"
)

// limit bounds every wait in a test.
const limit = 20 * time.Second

// Options change how a program is started.
type Options struct {
	// Env are variables, NAME=value.
	Env []string
	// Files are written into the program's directory first.
	Files map[string]string
	// Vars are further @NAME@ in the configuration.
	Vars map[string]string
	// NoLocalCA leaves names without a certificate to the configuration.
	NoLocalCA bool
	// Dir is a directory to use again; "" is a new one.
	Dir string
	// Autocert are the moments of certificates by ACME.
	Autocert acme.Timing
	// Bare takes the text as the whole configuration.
	Bare bool
}

// Program is a running server.
type Program struct {
	t       testing.TB
	Dir     string
	Config  string // path of the configuration
	Main    string // address of the main listener
	Log     *Log
	App     *App
	CA      *certs.LocalCA
	Control *server.Client
	Sighup  chan struct{}

	vars   map[string]string
	bare   bool
	idle   []func() // closes what agents keep open
	cancel context.CancelFunc
	ended  chan error
}

// Log keeps what a program wrote.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Account is somebody who can sign in.
type Account struct{ ID, Email, Password string }

// The accounts of users.yaml, which is local_users_file unless a test sets
// another: Ada of staff and astronomy, Bob of finance.
var (
	Ada = Account{"ada", "ada@example.com", "a long password"}
	Bob = Account{"bob", "bob@example.org", "a long password"}
)

// passwordHash is of the least cost: what hashing costs is tested where it is
// done.
func passwordHash() session.Token {
	salt := []byte("salt for a test.")
	sum := argon2.IDKey([]byte(Ada.Password), salt, 1, 64, 1, 32)
	b64 := base64.RawStdEncoding
	return session.Token("$argon2id$v=19$m=64,t=1,p=1$" + b64.EncodeToString(salt) + "$" + b64.EncodeToString(sum))
}

// Users gives the accounts as records, to be changed and written by WriteUsers.
func Users() []session.LocalAccount {
	return []session.LocalAccount{
		{ID: Ada.ID, Email: Ada.Email, Name: "Ada Lovelace", Groups: []string{"staff", "astronomy"}, PasswordHash: passwordHash(), Claims: map[string]any{"team": "stars"}},
		{ID: Bob.ID, Email: Bob.Email, Name: "Bob", Groups: []string{"finance"}, PasswordHash: passwordHash()},
	}
}

// WriteUsers puts a users file in place, by rename.
func WriteUsers(t testing.TB, file string, list []session.LocalAccount) {
	t.Helper()
	b, err := identity.FormatUsers(list)
	if err == nil {
		if err = os.WriteFile(file+".new", b, 0o600); err == nil {
			err = os.Rename(file+".new", file)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// One CA serves all tests of a binary: minting is not what they test.
var sharedCA = sync.OnceValues(func() (*certs.LocalCA, error) {
	dir, err := os.MkdirTemp("", "postern-ca-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return certs.LoadOrCreateLocalCA(dir)
})

// defaults are the settings that a test need not write.
var defaults = []string{
	"address: 127.0.0.1:0",
	"health_check_addr: 127.0.0.1:0",
	"data_dir: @DIR@/data",
	"local_users_file: @DIR@/users.yaml",
	"shared_secret: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
	"log_level: info",
}

// defaultRoute is there where a configuration has no routes.
const defaultRoute = `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
`

var topKey = regexp.MustCompile(`(?m)^([a-z_0-9]+):`)

// whole completes a configuration.
func whole(text string) string {
	own := map[string]bool{}
	for _, m := range topKey.FindAllStringSubmatch(text, -1) {
		own[m[1]] = true
	}
	var b strings.Builder
	for _, line := range defaults {
		if name, _, _ := strings.Cut(line, ":"); !own[name] {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString(text)
	if !own["routes"] && !own["policy"] {
		b.WriteString(defaultRoute)
	}
	return b.String()
}

var variable = regexp.MustCompile(`@([A-Z][A-Z0-9_]*)@`)

func (p *Program) expand(text string) string {
	return variable.ReplaceAllStringFunc(text, func(m string) string {
		v, ok := p.vars[strings.Trim(m, "@")]
		if !ok {
			p.t.Fatalf("%s is not set", m)
		}
		return v
	})
}

// Start runs the program and fails the test if it does not come up. It ends
// with the test.
func Start(t testing.TB, text string, o ...Options) *Program {
	t.Helper()
	p, err := Try(t, text, o...)
	if err != nil {
		t.Fatalf("the program did not start: %v\n%s", err, p.Log)
	}
	return p
}

// Try is Start for configurations that may be refused. The Program is never
// nil: its Log tells.
func Try(t testing.TB, text string, opts ...Options) (*Program, error) {
	t.Helper()
	var o Options
	if len(opts) > 0 {
		o = opts[0]
	}
	p := &Program{t: t, Dir: o.Dir, Log: &Log{}, Sighup: make(chan struct{}, 1), bare: o.Bare}
	if p.Dir == "" {
		// Short, because a unix socket goes into it; and not of the test's
		// temporary directory, which must not be gone before the program.
		dir, err := os.MkdirTemp("", "pt-")
		if err != nil {
			t.Fatal(err)
		}
		p.Dir = dir
		t.Cleanup(func() { os.RemoveAll(dir) })
	}
	p.App = NewApp(t, "app")
	p.vars = map[string]string{"DIR": p.Dir, "APP": p.App.URL}
	for k, v := range o.Vars {
		p.vars[k] = v
	}
	p.Config = filepath.Join(p.Dir, "config.yaml")
	if _, err := os.Stat(filepath.Join(p.Dir, "users.yaml")); err != nil {
		WriteUsers(t, filepath.Join(p.Dir, "users.yaml"), Users())
	}
	for name, content := range o.Files {
		if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(p.expand(content)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.Write(text)
	ca, err := sharedCA()
	if err != nil {
		t.Fatal(err)
	}
	so := server.Options{ConfigFile: p.Config, Env: o.Env, Version: "test", Out: p.Log, Sighup: p.Sighup, Autocert: o.Autocert}
	if !o.NoLocalCA {
		p.CA, so.LocalCA = ca, ca
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	so.Ready = func() { close(ready) }
	p.cancel, p.ended = cancel, make(chan error, 1)
	go func() { p.ended <- server.Run(ctx, so) }()
	select {
	case <-ready:
	case err := <-p.ended:
		cancel()
		return p, errors.Join(err, errIfNil(err))
	case <-time.After(limit):
		cancel()
		return p, errors.New("not ready in time")
	}
	t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			t.Errorf("the program ended with %v", err)
		}
	})
	p.Control = server.Dial(p.controlPath())
	p.Main = p.Status().Listeners["main"]
	return p, nil
}

func errIfNil(err error) error {
	if err == nil {
		return errors.New("ended without being ready")
	}
	return nil
}

var controlKey = regexp.MustCompile(`(?m)^control_address: *(\S+)`)

func (p *Program) controlPath() string {
	b, _ := os.ReadFile(p.Config)
	if m := controlKey.FindSubmatch(b); m != nil {
		return string(m[1])
	}
	return filepath.Join(p.Dir, "data", "control.sock")
}

// Write puts another configuration in place; nothing reads it yet.
func (p *Program) Write(text string) {
	p.t.Helper()
	if !p.bare {
		text = whole(text)
	}
	if err := os.WriteFile(p.Config+".new", []byte(p.expand(text)), 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(p.Config+".new", p.Config); err != nil {
		p.t.Fatal(err)
	}
}

// Reload makes the program read its configuration and gives what was wrong.
func (p *Program) Reload() []string {
	p.t.Helper()
	var out struct{ Problems []string }
	if err := p.Control.Call(context.Background(), "POST", "/v1/reload", nil, &out); err != nil {
		p.t.Fatal(err)
	}
	return out.Problems
}

// Change writes a configuration and reloads it, which must go well.
func (p *Program) Change(text string) {
	p.t.Helper()
	p.Write(text)
	if problems := p.Reload(); len(problems) > 0 {
		p.t.Fatalf("the change was refused: %v", problems)
	}
}

// Status asks the program how it is.
func (p *Program) Status() server.Status {
	p.t.Helper()
	var st server.Status
	if err := p.Control.Call(context.Background(), "GET", "/v1/status", nil, &st); err != nil {
		p.t.Fatalf("status: %v\n%s", err, p.Log)
	}
	return st
}

// Stop ends the program and gives what Run gave. A second call does nothing.
func (p *Program) Stop() error {
	for _, f := range p.idle {
		f() // HTTP/2 waits a second for clients that could still have asked
	}
	p.cancel()
	if p.ended == nil {
		return nil
	}
	select {
	case err := <-p.ended:
		p.ended = nil
		return err
	case <-time.After(limit):
		return errors.New("did not end in time")
	}
}

// WaitLog waits until the log holds something that matches.
func (p *Program) WaitLog(pattern string) error {
	re := regexp.MustCompile(pattern)
	return Eventually(func() error {
		if re.MatchString(p.Log.String()) {
			return nil
		}
		return fmt.Errorf("the log has nothing like %s", pattern)
	})
}

// Eventually polls until f gives nil, or gives what f gave last.
func Eventually(f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
