package keys

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// behindTLS starts applications with our certificate: @TLSAPP@ by address,
// @NAMED@ by a name that the certificate does not have.
func behindTLS(t *testing.T, o *servertest.Options) {
	a := servertest.NewTLSApp(t, "tls", &tls.Config{Certificates: []tls.Certificate{certificate("server")}, ClientAuth: tls.RequestClientCert})
	o.Vars["TLSAPP"] = a.URL
	u, _ := url.Parse(a.URL)
	o.Vars["NAMED"] = "https://127.0.0.2:" + u.Port()
	o.Vars["OTHER"] = servertest.NewApp(t, "other").URL
}

func toTLS(lines ...string) string {
	return strings.Replace(onRoute(lines...), "@APP@", "@TLSAPP@", 1)
}

func reaches(app string) func(w *world) error {
	return func(w *world) error {
		s, err := w.saw(user)
		return errors.Join(err, is(s.App, app))
	}
}

func showsCertificate(w *world) error {
	s, err := w.saw(user)
	return errors.Join(err, is(s.ClientCert, "client"))
}

func sends(name string) func(w *world) error {
	return func(w *world) error {
		s, err := w.saw(user)
		return errors.Join(err, is(s.SNI, name))
	}
}

// Keys about upstreams (§2.2, §3.2, §3.7, §3.11).
var upstreamExamples = []example{
	{keys: "routes[].to", with: behindTLS, config: `
routes:
  - from: https://app.localhost
    to: @OTHER@ # shown
    to: @APP@ # instead
    allow_public_unauthenticated_access: true`, shows: reaches("other")},
	{keys: "certificate_authority", with: behindTLS, config: "certificate_authority: @CA@ # shown" + toTLS(), shows: reaches("tls")},
	{keys: "certificate_authority_file", with: behindTLS, config: "certificate_authority_file: @DIR@/ca.pem # shown" + toTLS(), shows: reaches("tls")},
	{keys: "routes[].tls_skip_verify", with: behindTLS, config: toTLS(`tls_skip_verify: true # shown`), shows: reaches("tls")},
	{keys: "routes[].tls_custom_ca", with: behindTLS, config: toTLS(`tls_custom_ca: @CA@ # shown`), shows: reaches("tls")},
	{keys: "routes[].tls_custom_ca_file", with: behindTLS, config: toTLS(`tls_custom_ca_file: @DIR@/ca.pem # shown`), shows: reaches("tls")},
	{keys: "routes[].tls_upstream_server_name", with: behindTLS, config: toTLS(`tls_custom_ca: @CA@`, `tls_upstream_server_name: upstream.test # shown`), shows: sends("upstream.test")},
	{keys: "routes[].tls_server_name", with: behindTLS, config: toTLS(`tls_custom_ca: @CA@`, `tls_server_name: upstream.test # shown`), shows: sends("upstream.test")},
	{keys: "routes[].tls_client_cert routes[].tls_client_key", with: behindTLS, config: toTLS(`tls_custom_ca: @CA@`,
		`tls_client_cert: @CLIENTCERT@ # shown`, `tls_client_key: @CLIENTKEY@ # shown`), shows: showsCertificate},
	{keys: "routes[].tls_client_cert_file routes[].tls_client_key_file", with: behindTLS, config: toTLS(`tls_custom_ca: @CA@`,
		`tls_client_cert_file: @DIR@/clientcert.pem # shown`, `tls_client_key_file: @DIR@/clientkey.pem # shown`), shows: showsCertificate},
	{keys: "routes[].tls_upstream_allow_renegotiation", with: renegotiates, config: toTLS(`tls_custom_ca: @CA@`,
		`tls_upstream_allow_renegotiation: true # shown`), shows: func(w *world) error { return w.status(200, user) }},
	{keys: "routes[].kubernetes_service_account_token", config: signedInRoute(`kubernetes_service_account_token: a-token # shown`), shows: impersonates},
	{keys: "routes[].kubernetes_service_account_token_file", config: signedInRoute(`kubernetes_service_account_token_file: @DIR@/token # shown`), shows: impersonates,
		with: func(t *testing.T, o *servertest.Options) { o.Files["token"] = "a-token\n" }},
}

// impersonates tells whether the API server is told the user, and nothing of
// what the client says about users.
func impersonates(w *world) error {
	a, _, err := w.signedIn()
	if err != nil {
		return err
	}
	page, err := a.Request("GET", user, "Impersonate-User: root", "Impersonate-Extra-Scopes: all")
	if err != nil {
		return err
	}
	s, err := page.Echo()
	if err != nil {
		return err
	}
	return errors.Join(is(s.Header("Authorization"), "Bearer a-token"),
		is(strings.Join(s.Headers.Values("Impersonate-User"), "|"), servertest.Ada.Email),
		is(s.Header("Impersonate-Extra-Scopes"), ""), holds(strings.Join(s.Headers.Values("Impersonate-Group"), "|"), "astronomy"))
}

// renegotiates starts an upstream that wants another handshake between request
// and answer. Go's TLS cannot, so OpenSSL plays it.
func renegotiates(t *testing.T, o *servertest.Options) {
	dir := t.TempDir()
	for name, value := range map[string]string{"cert.pem": material(t)["CERT"], "key.pem": material(t)["KEY"]} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(decoded(value)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	freePort(t, o)
	o.Vars["TLSAPP"] = "https://127.0.0.1:" + o.Vars["PORT"]
	cmd := exec.Command("openssl", "s_server", "-accept", "127.0.0.1:"+o.Vars["PORT"], "-tls1_2", "-state", "-cert", "cert.pem", "-key", "key.pem")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout // -state goes there
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	listening := make(chan struct{})
	go func() {
		lines, finished := bufio.NewScanner(out), 0
		for lines.Scan() {
			switch line := strings.TrimSpace(lines.Text()); {
			case line == "ACCEPT":
				select {
				case <-listening:
				default:
					close(listening)
				}
			case strings.HasPrefix(line, "X-Request-Id:"): // near the end of the head
				io.WriteString(in, "R\n")
			case strings.Contains(line, "SSL_accept:SSLv3/TLS write finished"):
				if finished++; finished < 2 {
					continue
				}
				io.WriteString(in, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			}
		}
	}()
	<-listening
}
