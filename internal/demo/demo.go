// Package demo is the newcomer's first minute: a local certificate authority,
// local accounts, a sample application and a configuration with a route of
// each kind, all in one data directory and served by the ordinary server.
//
// Demo keys never serve beyond loopback: another address is refused, and the
// ordinary run refuses a data directory that the demo made.
package demo

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"postern/internal/certs"
	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/server"
	"postern/internal/session"
)

// Options of the demonstration.
type Options struct {
	// Listen is the address to serve, a loopback one; "" is 127.0.0.1:8443.
	Listen string
	// DataDir is where everything is kept; "" is $XDG_DATA_HOME/postern/demo.
	DataDir string
	// ReadyFile is written, as JSON, once the demo serves; "" writes none.
	ReadyFile string
	Version   string
	// Out is where people read. The server's log goes to postern.log in the
	// data directory, one JSON line each.
	Out io.Writer
}

// Marker is the file that says that a data directory belongs to the demo.
const Marker = "DEMO"

// hosts are the names that the demo serves, each with what stands there.
var hosts = struct{ app, denied, public, echo, authenticate string }{
	"app.localhost", "finance.localhost", "public.localhost", "echo.localhost", "auth.localhost",
}

// ready is what --ready-file holds.
type ready struct {
	CAFile   string            `json:"ca_file"`
	URLs     map[string]string `json:"urls"`
	Accounts []Account         `json:"accounts"`
}

// Run serves the demonstration until ctx ends.
func Run(ctx context.Context, o Options) error {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:8443"
	}
	port, err := loopbackPort(o.Listen)
	if err != nil {
		return err
	}
	dir, err := dataDir(o.DataDir)
	if err != nil {
		return err
	}
	accounts, err := loadAccounts(dir)
	if err != nil {
		return err
	}
	ca, err := certs.LoadOrCreateLocalCA(filepath.Join(dir, "ca"))
	if err != nil {
		return err
	}
	if err := writeUsers(dir, accounts); err != nil {
		return err
	}
	if err := makeSecret(filepath.Join(dir, "shared_secret")); err != nil {
		return err
	}
	app, stop, err := startApplication(dir, port, o.Listen, ca)
	if err != nil {
		return err
	}
	defer stop()

	configFile := filepath.Join(dir, "config.yaml")
	if err := writeFile(configFile, []byte(configuration(dir, o.Listen, port, app))); err != nil {
		return err
	}
	r := ready{CAFile: ca.File(), Accounts: accounts, URLs: map[string]string{
		"app":          "https://" + hosts.app + ":" + port + "/",
		"denied":       "https://" + hosts.denied + ":" + port + "/",
		"public":       "https://" + hosts.public + ":" + port + "/public",
		"portal":       "https://" + hosts.app + ":" + port + "/.pomerium/routes",
		"authenticate": "https://" + hosts.authenticate + ":" + port + "/",
	}}
	log, err := os.OpenFile(filepath.Join(dir, "postern.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("the log cannot be written: %w; give another --data-dir", err)
	}
	defer log.Close()
	return server.Run(ctx, server.Options{
		ConfigFile: configFile, Version: o.Version, Out: log, LocalCA: ca,
		Ready: func() {
			if o.ReadyFile != "" {
				if err := writeJSON(o.ReadyFile, r); err != nil {
					fmt.Fprintf(o.Out, "the ready file could not be written: %v\n", err)
				}
			}
			welcome(o.Out, dir, r)
		},
	})
}

// loopbackPort refuses addresses that others could reach (decision 31).
func loopbackPort(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("--listen %q is not an address: write 127.0.0.1:8443", listen)
	}
	if host == "localhost" {
		return port, nil
	}
	if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
		return "", fmt.Errorf("--listen %s can be reached from outside: the demo has printed passwords and a key that anyone on this machine can read, so it serves loopback addresses only; write a configuration of your own for anything else", listen)
	}
	if port == "0" {
		return "", errors.New("--listen needs a port of your choice: addresses contain it")
	}
	return port, nil
}

// dataDir makes the directory, or takes one that the demo made.
func dataDir(dir string) (string, error) {
	if dir == "" {
		base := os.Getenv("XDG_DATA_HOME")
		if base == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("there is no home directory to keep the demo's data in: %w; name a place with --data-dir", err)
			}
			base = filepath.Join(home, ".local", "share")
		}
		dir = filepath.Join(base, "postern", "demo")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	marker := filepath.Join(dir, Marker)
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return "", fmt.Errorf("the data directory cannot be made: %w; name another with --data-dir", err)
		}
	case err != nil:
		return "", fmt.Errorf("the data directory cannot be read: %w; name another with --data-dir", err)
	case len(entries) > 0:
		if _, err := os.Stat(marker); err != nil {
			return "", fmt.Errorf("%s holds something that is not the demo's: name an empty or new directory with --data-dir", dir)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return "", err
	}
	return dir, writeFile(marker, []byte("This directory belongs to postern demo. Its keys and passwords are for trying out only.\n"))
}

func writeUsers(dir string, accounts []Account) error {
	file := filepath.Join(dir, "users.yaml")
	old, _ := os.ReadFile(file)
	known := map[string]session.LocalAccount{}
	if list, err := identity.ParseUsers(old); err == nil {
		for _, a := range list {
			known[a.Email] = a
		}
	}
	list := make([]session.LocalAccount, 0, len(accounts))
	for _, a := range accounts {
		id, _, _ := strings.Cut(a.Email, "@")
		x, ok := known[a.Email]
		if !ok || len(known) != len(accounts) {
			hash, err := identity.HashPassword(a.Password)
			if err != nil {
				return err
			}
			x = session.LocalAccount{ID: id, Email: a.Email, Name: a.Name, Groups: a.Groups, PasswordHash: hash}
		}
		list = append(list, x)
	}
	b, err := identity.FormatUsers(list)
	if err != nil {
		return err
	}
	return writeFile(file, b)
}

// makeSecret makes the shared secret at the first start.
func makeSecret(file string) error {
	_, err := os.Stat(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	raw := make([]byte, 32)
	rand.Read(raw)
	return writeFile(file, []byte(base64.StdEncoding.EncodeToString(raw)))
}

// startApplication serves the sample on a unix socket, in a short directory of
// its own because such paths are limited to about 100 bytes.
func startApplication(dir, port, listen string, ca *certs.LocalCA) (socket string, stop func(), err error) {
	short, err := os.MkdirTemp("", "postern-demo-")
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(short, "app.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		os.RemoveAll(short)
		return "", nil, err
	}
	renderer, err := pages.New(pages.Branding{})
	if err != nil {
		return "", nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	app := &application{
		pages: renderer,
		verify: &verifier{
			jwks: "https://" + hosts.app + ":" + port + "/.well-known/pomerium/jwks.json",
			client: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
				// Names under localhost are not in every resolver.
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, network, listen)
				},
			}},
		},
		doors: []pages.Link{
			{Name: "Finance, for its group only", URL: "https://" + hosts.denied + ":" + port + "/"},
			{Name: "A page for everybody", URL: "https://" + hosts.public + ":" + port + "/public"},
			{Name: "What this application was sent", URL: "/headers"},
			{Name: "My applications", URL: "/.pomerium/routes"},
			{Name: "My account", URL: "/.pomerium/"},
		},
	}
	srv := &http.Server{Handler: app.handler(), ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(ln)
	return socket, func() { srv.Close(); os.RemoveAll(short) }, nil
}

// configuration is what the demo serves; people are invited to read and change
// a copy of it.
func configuration(dir, listen, port, socket string) string {
	return fmt.Sprintf(`# Written by postern demo at every start: copy it to make it yours.
address: %[2]s
authenticate_service_url: https://%[5]s:%[3]s
health_check_addr: 127.0.0.1:0
shared_secret_file: %[1]s/shared_secret
data_dir: %[1]s
databroker_storage_type: file
databroker_storage_connection_string: file://%[1]s/records
idp_provider: local
local_users_file: %[1]s/users.yaml
set_response_headers:
  X-Frame-Options: SAMEORIGIN
  X-XSS-Protection: 1; mode=block
pass_identity_headers: true
jwt_claims_headers: [email, groups, name]
admin_policy:
  allow:
    or:
      - groups: finance
routes:
  # One path for another group: the first route that matches decides.
  - from: https://%[6]s:%[3]s
    name: Observatory
    description: The telescopes, for astronomers
    prefix: /astronomy
    to: unix://%[4]s
    show_error_details: true
    policy:
      - allow:
          and:
            - groups: astronomy
  # Open to one group.
  - from: https://%[6]s:%[3]s
    name: Sample application
    description: Shows who you are, and how it knows
    to: unix://%[4]s
    allow_websockets: true
    show_error_details: true
    policy:
      - allow:
          and:
            - groups: staff
  # Refused to everybody else.
  - from: https://%[7]s:%[3]s
    name: Finance
    description: For the group finance
    to: unix://%[4]s
    show_error_details: true
    policy:
      - allow:
          and:
            - groups: finance
  # No sign-in.
  - from: https://%[8]s:%[3]s
    name: Notice board
    to: unix://%[4]s
    allow_public_unauthenticated_access: true
  # A WebSocket that answers every message with itself, at /ws.
  - from: https://%[9]s:%[3]s
    name: Echo
    description: A WebSocket at /ws
    to: unix://%[4]s
    allow_websockets: true
    allow_any_authenticated_user: true
`, dir, listen, port, socket, hosts.authenticate, hosts.app, hosts.denied, hosts.public, hosts.echo)
}

// welcome says what there is to try.
func welcome(w io.Writer, dir string, r ready) {
	fmt.Fprintf(w, `
Postern is ready. Nothing here leaves this machine.

  %-45s a private application, for the group staff
  %-45s the same, for the group finance
  %-45s for everybody, without signing in
  %-45s what you may open
  %-45s where sign-in happens

Accounts
`, r.URLs["app"], r.URLs["denied"], r.URLs["public"], r.URLs["portal"], r.URLs["authenticate"])
	for _, a := range r.Accounts {
		fmt.Fprintf(w, "  %-22s %-18s in %s\n", a.Email, a.Password, strings.Join(a.Groups, ", "))
	}
	fmt.Fprintf(w, `
Try
  1. Open the application and sign in as Ada. It greets her by name and shows
     the four checks by which it knows.
  2. As Ada, open finance: refused, with the reason. As Grace it opens.
  3. Sign out, and the application is closed again at once.
  4. Change a group in %[2]s/users.yaml and reload the page.
  5. go run ./cmd/postern sessions list --config %[2]s/config.yaml

Browsers warn until they trust the demo's own certificate authority (it can
vouch for names under localhost only):
  curl --cacert %[1]s %[3]s

Ctrl-C drains and ends it. Data stays in %[2]s, the log is %[2]s/postern.log.

`, r.CAFile, dir, r.URLs["public"])
}
