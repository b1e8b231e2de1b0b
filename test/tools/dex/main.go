// Command dex runs the Dex identity provider for tests, with users read from a
// JSON file at every sign-in and refresh, so that a test can change a group or
// disable a user while the provider runs.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
	"github.com/dexidp/dex/storage/memory"
)

type user struct {
	ID, Email, Name, Password string
	Groups                    []string
	Unverified, Disabled      bool
}

// users is a connector over the file; it is its own configuration.
type users struct{ file string }

func (u *users) Open(string, *slog.Logger) (connector.Connector, error) { return u, nil }
func (u *users) Prompt() string                                         { return "Email" }

func (u *users) find(match func(user) bool) (connector.Identity, bool, error) {
	b, err := os.ReadFile(u.file)
	if err != nil {
		return connector.Identity{}, false, err
	}
	var list []user
	if err := json.Unmarshal(b, &list); err != nil {
		return connector.Identity{}, false, err
	}
	for _, x := range list {
		if match(x) {
			return connector.Identity{UserID: x.ID, Username: x.Name, PreferredUsername: x.Name,
				Email: x.Email, EmailVerified: !x.Unverified, Groups: x.Groups}, !x.Disabled, nil
		}
	}
	return connector.Identity{}, false, nil
}

func (u *users) Login(_ context.Context, _ connector.Scopes, name, password string) (connector.Identity, bool, error) {
	return u.find(func(x user) bool { return x.Email == name && x.Password == password })
}

func (u *users) Refresh(_ context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	got, ok, err := u.find(func(x user) bool { return x.ID == id.UserID })
	if err == nil && !ok {
		err = errors.New("user is disabled")
	}
	return got, err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "loopback address")
	client := flag.String("client", "postern", "client id")
	secret := flag.String("secret", "postern-test-secret", "client secret")
	redirects := flag.String("redirects", "", "redirect URIs, separated by commas")
	file := flag.String("users", "users.json", "users as JSON")
	ttl := flag.Duration("ttl", time.Hour, "lifetime of ID and access tokens")
	flag.Parse()

	lg := slog.New(slog.NewTextHandler(os.Stderr, nil))
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	server.ConnectorsConfig["testusers"] = func() server.ConnectorConfig { return &users{*file} }
	st := storage.WithStaticConnectors(storage.WithStaticClients(memory.New(lg), []storage.Client{{
		ID: *client, Secret: *secret, Name: "Postern", RedirectURIs: strings.Split(*redirects, ",")}}),
		[]storage.Connector{{ID: "users", Type: "testusers", Name: "users", Config: []byte("{}")}})
	policy, err := server.NewRefreshTokenPolicy(lg, false, "", "", "")
	if err != nil {
		log.Fatal(err)
	}
	dir, err := moduleDir()
	if err != nil {
		log.Fatal(err)
	}
	srv, err := server.NewServer(context.Background(), server.Config{
		Issuer: "http://" + ln.Addr().String() + "/dex", Storage: st, Logger: lg, SkipApprovalScreen: true,
		IDTokensValidFor: *ttl, RefreshTokenPolicy: policy, Web: server.WebConfig{Dir: filepath.Join(dir, "web")}})
	if err != nil {
		log.Fatal(err)
	}
	os.Stdout.WriteString("http://" + ln.Addr().String() + "/dex\n")
	log.Fatal(http.Serve(ln, srv))
}

// moduleDir finds Dex's templates: in $DEX_WEB's parent, or in the module cache.
func moduleDir() (string, error) {
	if d := os.Getenv("DEX_DIR"); d != "" {
		return d, nil
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/dexidp/dex").Output()
	return strings.TrimSpace(string(out)), err
}
