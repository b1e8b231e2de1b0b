package security

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/certs"
	"postern/internal/server/servertest"
)

const twoHosts = `
codec_type: http3
routes:
  - {from: https://plain.localhost, to: "@APP@", allow_public_unauthenticated_access: true}
  - {from: https://secret.localhost, to: "@APP@", allow_public_unauthenticated_access: true, tls_downstream_client_ca_file: "@DIR@/clients.pem"}
`

// Row "client certificate reuse": the certificate asked for by the name of the
// handshake is not taken for the one that the host of the request needs, over
// any version of HTTP and on resumed connections.
func TestClientCertificateOfAnotherName(t *testing.T) {
	ca := newClientCA(t, "clients")
	cert, stranger := ca.issue("laptop", nil), newClientCA(t, "strangers").issue("laptop", nil)
	p := servertest.Start(t, twoHosts, servertest.Options{Files: map[string]string{"clients.pem": ca.pem()}})
	const secret = "https://secret.localhost/"
	over := map[string]func(sni string, c *tls.Certificate) (int, error){
		"HTTP/1.1": func(sni string, c *tls.Certificate) (int, error) {
			config := trusting(p, sni, c)
			config.NextProtos = []string{"http/1.1"}
			status, _, _ := dial(t, p, config).get(secret)
			return status, nil
		},
		"HTTP/2": func(sni string, c *tls.Certificate) (int, error) {
			page, err := p.AgentWith(trusting(p, sni, c)).Request("GET", secret)
			if err != nil {
				return 0, err
			}
			if page.Proto != "HTTP/2.0" {
				return 0, fmt.Errorf("spoken: %s", page.Proto)
			}
			return page.StatusCode, nil
		},
		"HTTP/3": func(sni string, c *tls.Certificate) (int, error) {
			return overH3(t, p, trusting(p, sni, c), secret)
		},
	}
	for version, get := range over {
		for _, tc := range []struct {
			name, sni string
			cert      *tls.Certificate
			want      int
		}{
			{"own name, certificate", "secret.localhost", cert, 200},
			{"own name in capitals, certificate", "SECRET.localhost", cert, 200},
			{"own name, none", "secret.localhost", nil, 495},
			{"own name in capitals, none", "Secret.LocalHost", nil, 495},
			{"own name, a stranger's", "secret.localhost", stranger, 495},
			{"another name, certificate that is not asked for", "plain.localhost", cert, 421},
			{"another name, none", "plain.localhost", nil, 421},
		} {
			before := p.App.Requests.Load()
			status, err := get(tc.sni, tc.cert)
			if err != nil || status != tc.want {
				t.Errorf("%s, %s: %d %v, want %d", version, tc.name, status, err, tc.want)
			}
			if reached := p.App.Requests.Load() > before; reached != (tc.want == 200) {
				t.Errorf("%s, %s: reached the application: %v", version, tc.name, reached)
			}
		}
	}
	// A session of the other name, where nobody was asked, is not resumed here.
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := &oneSession{}
		for _, sni := range []string{"plain.localhost", "secret.localhost"} {
			config := trusting(p, sni, cert)
			config.NextProtos, config.MaxVersion, config.ClientSessionCache = []string{"http/1.1"}, version, cache
			l := dial(t, p, config)
			status, _, _ := l.get("https://" + sni + "/")
			if status != 200 || l.c.ConnectionState().DidResume {
				t.Errorf("%x: %s: %d, resumed %v", version, sni, status, l.c.ConnectionState().DidResume)
			}
		}
	}
}

const oneCA = `
downstream_mtls:
  ca_file: "@DIR@/clients.pem"
  crl_file: "@DIR@/revoked.pem"
  enforcement: %s
routes:
  - {from: https://app.localhost, to: "@APP@", allow_public_unauthenticated_access: true, allow_websockets: true}
`

// Row "client certificate reuse": a connection that is open when its CA is
// replaced or its certificate revoked, and a stream over it, are judged anew.
func TestClientCertificateOnLiveConnections(t *testing.T) {
	const app, keys = "https://app.localhost/", "https://app.localhost/.well-known/pomerium/jwks.json"
	for _, enforcement := range []string{certs.EnforcePolicyWithDefaultDeny, certs.EnforceRejectConnection} {
		for _, change := range []string{"revoked", "CA replaced"} {
			t.Run(enforcement+", "+change, func(t *testing.T) {
				ca := newClientCA(t, "clients")
				cert, other := ca.issue("laptop", nil), ca.issue("phone", nil)
				text := fmt.Sprintf(oneCA, enforcement)
				p := servertest.Start(t, text, servertest.Options{Files: map[string]string{"clients.pem": ca.pem(), "revoked.pem": ca.crl(1)}})
				open := func(c *tls.Certificate) *line {
					config := trusting(p, "app.localhost", c)
					config.NextProtos = []string{"http/1.1"}
					return dial(t, p, config)
				}
				live, spared := open(cert), open(other)
				if status, _, _ := live.get(app); status != 200 {
					t.Fatalf("before: %d", status)
				}
				stream, r, _, err := p.AgentWith(trusting(p, "app.localhost", cert)).Upgrade(app, "websocket")
				if err != nil {
					t.Fatal(err)
				}
				put := func(name, text string) {
					if err := os.WriteFile(filepath.Join(p.Dir, name), []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if change == "revoked" {
					put("revoked.pem", ca.crl(2, cert))
				} else {
					next := newClientCA(t, "successor")
					put("clients.pem", next.pem())
					put("revoked.pem", next.crl(1))
				}
				if problems := p.Reload(); len(problems) > 0 {
					t.Fatal(problems)
				}
				before := p.App.Requests.Load()
				status, _, closed := live.get(app)
				if status != 495 || p.App.Requests.Load() != before {
					t.Errorf("a request on the connection: %d", status)
				}
				// The stream ends by itself.
				stream.SetReadDeadline(time.Now().Add(20 * time.Second))
				var late net.Error
				if _, err := io.Copy(io.Discard, r); errors.As(err, &late) && late.Timeout() {
					t.Error("the stream goes on")
				}
				want := 200
				if change != "revoked" {
					want = 495
				}
				if status, _, _ := spared.get(app); status != want {
					t.Errorf("another certificate: %d, want %d", status, want)
				}
				if enforcement != certs.EnforceRejectConnection {
					if status, _, _ := live.get(keys); status != 200 {
						t.Errorf("own pages need no certificate: %d", status)
					}
					return
				}
				if !closed {
					t.Error("the connection goes on")
				}
				// Pages of our own are no exception where nothing is served without.
				again := open(other)
				if change == "revoked" {
					if status, _, _ := again.get(keys); status != 200 {
						t.Errorf("own pages with a certificate: %d", status)
					}
					put("revoked.pem", ca.crl(3, cert, other))
					if problems := p.Reload(); len(problems) > 0 {
						t.Fatal(problems)
					}
					if status, body, closed := again.get(keys); status != 495 || !closed || strings.Contains(body, "kty") {
						t.Errorf("own pages after the revocation: %d, closed %v", status, closed)
					}
				}
			})
		}
	}
}

// reject_connection shows nothing to anybody without a certificate, over TCP
// and QUIC, and tells the operator why.
func TestRejectConnection(t *testing.T) {
	ca, strangers := newClientCA(t, "clients"), newClientCA(t, "strangers")
	cert, revoked, foreign := ca.issue("laptop", nil), ca.issue("lost", nil), strangers.issue("eve", nil)
	p := servertest.Start(t, "codec_type: http3\n"+fmt.Sprintf(oneCA, certs.EnforceRejectConnection),
		servertest.Options{Files: map[string]string{"clients.pem": ca.pem(), "revoked.pem": ca.crl(1, revoked)}})
	for _, target := range []string{"/", "/.well-known/pomerium/jwks.json", "/.pomerium/", "/ping", "/robots.txt"} {
		for name, c := range map[string]*tls.Certificate{"": nil, "lost": revoked, "eve": foreign, "laptop": cert} {
			for _, sni := range []string{"app.localhost", "nowhere.localhost"} {
				page, err := p.AgentWith(trusting(p, sni, c)).Request("GET", "https://"+sni+target)
				_, errQUIC := overH3(t, p, trusting(p, sni, c), "https://"+sni+target)
				if (err == nil) != (c == cert) || (errQUIC == nil) != (c == cert) {
					t.Errorf("%s%s with the certificate %q: %v, over QUIC %v", sni, target, name, err, errQUIC)
				}
				if err == nil && c != cert {
					t.Errorf("%s%s: %d %.80s", sni, target, page.StatusCode, page.Body)
				}
			}
		}
		if t.Failed() {
			break
		}
	}
	for _, pattern := range []string{
		`"level":"info".*"listener connection failure".*"ip":"127.0.0.1".*"tls-sni-hostname":"app.localhost".*unknown CA.*"client-certificate":\{"issuer":"CN=strangers","subject":"CN=eve","subjectAltName":\["DNS:eve.device.test"`,
		`listener connection failure.*revoked.*CN=lost`,
		`listener connection failure.*downstream-transport-failure-reason":"[^"]*certificate`,
	} {
		if err := p.WaitLog(pattern); err != nil {
			t.Error(err)
		}
	}
}

// CVE-2026-27586: a client CA or revocation list that cannot be read stops the
// start, and a change to one leaves the old one in force.
func TestCVE_2026_27586_UnreadableClientCA(t *testing.T) {
	ca := newClientCA(t, "clients")
	cert := ca.issue("laptop", nil)
	withList := fmt.Sprintf(oneCA, certs.EnforcePolicyWithDefaultDeny)
	for _, config := range []string{withList, strings.Replace(withList, "  crl_file: \"@DIR@/revoked.pem\"\n", "", 1), twoHosts} {
		files, host := []string{"clients.pem"}, "app.localhost"
		switch config {
		case withList:
			files = append(files, "revoked.pem")
		case twoHosts:
			host = "secret.localhost"
		}
		good := map[string]string{"clients.pem": ca.pem(), "revoked.pem": ca.crl(1)}
		for _, file := range files {
			for name, text := range map[string]string{"empty": "", "text": "nonsense", "block": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cut": good[file][:len(good[file])/2]} {
				bad := map[string]string{"clients.pem": good["clients.pem"], "revoked.pem": good["revoked.pem"], file: text}
				if q, err := servertest.Try(t, config, servertest.Options{Files: bad}); err == nil {
					t.Errorf("%s: started with %s in %s", host, name, file)
					q.Stop()
				}
				if name != "text" {
					continue
				}
				p := servertest.Start(t, config, servertest.Options{Files: good})
				if err := os.WriteFile(filepath.Join(p.Dir, file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				if problems := p.Reload(); len(problems) == 0 {
					t.Errorf("%s: reloaded with %s in %s", host, name, file)
				}
				for want, c := range map[int]*tls.Certificate{200: cert, 495: nil} {
					if page, err := p.AgentWith(trusting(p, host, c)).Request("GET", "https://"+host+"/"); err != nil || page.StatusCode != want {
						t.Errorf("%s after a bad %s: %v, want %d", host, file, err, want)
					}
				}
			}
		}
	}
}

// With an encrypted hello it is the encrypted name that decides what is asked,
// over TCP and QUIC.
func TestEncryptedHelloAsksForCertificates(t *testing.T) {
	ca := newClientCA(t, "clients")
	cert := ca.issue("laptop", nil)
	key, err := certs.NewECHKey("plain.localhost", nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := certs.NewECHKey("plain.localhost", []certs.ECHKey{*key})
	text, _ := key.PEM()
	p := servertest.Start(t, twoHosts+"ech_keys_file: \"@DIR@/ech.pem\"\n", servertest.Options{Files: map[string]string{"clients.pem": ca.pem(), "ech.pem": string(text)}})
	for want, c := range map[int]*tls.Certificate{200: cert, 495: nil} {
		config := trusting(p, "secret.localhost", c)
		config.EncryptedClientHelloConfigList = key.List
		l := dial(t, p, config)
		status, _, _ := l.get("https://secret.localhost/")
		if status != want || !l.c.ConnectionState().ECHAccepted {
			t.Errorf("%d, want %d; accepted %v", status, want, l.c.ConnectionState().ECHAccepted)
		}
		if status, err := overH3(t, p, config, "https://secret.localhost/"); err != nil || status != want {
			t.Errorf("over QUIC: %d %v, want %d", status, err, want)
		}
	}
	// An outdated key: told the current one, under the public name.
	config := trusting(p, "secret.localhost", cert)
	config.EncryptedClientHelloConfigList = other.List
	_, err = tls.Dial("tcp", p.Main, config)
	var rejected *tls.ECHRejectionError
	if !errors.As(err, &rejected) || string(rejected.RetryConfigList) != string(key.List) {
		t.Fatalf("an outdated key: %v", err)
	}
	config.EncryptedClientHelloConfigList = rejected.RetryConfigList
	if status, _, _ := dial(t, p, config).get("https://secret.localhost/"); status != 200 {
		t.Errorf("the second try: %d", status)
	}
	// A new key is live with the next handshake.
	newText, _ := other.PEM()
	if err := os.WriteFile(filepath.Join(p.Dir, "ech.pem"), append(newText, text...), 0o600); err != nil {
		t.Fatal(err)
	}
	if problems := p.Reload(); len(problems) > 0 {
		t.Fatal(problems)
	}
	for name, k := range map[string]*certs.ECHKey{"new": other, "old": key} {
		config.EncryptedClientHelloConfigList = k.List
		if l := dial(t, p, config); !l.c.ConnectionState().ECHAccepted {
			t.Errorf("the %s key is not accepted", name)
		}
	}
}

// What a certificate says reaches policy and headers, from a valid one only,
// and what comes of a bad one is told by the kind of client.
func TestClientCertificateCriteria(t *testing.T) {
	ca := newClientCA(t, "device makers")
	cert, second, foreign := ca.issue("laptop", nil), ca.issue("phone", nil), newClientCA(t, "strangers").issue("laptop", nil)
	sum := sha256.Sum256(cert.Leaf.Raw)
	spki := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	p := servertest.Start(t, fmt.Sprintf(`
downstream_mtls:
  ca_file: "@DIR@/clients.pem"
  enforcement: policy
routes:
  - {from: https://finger.localhost, to: "@APP@", policy: [{allow: {and: [{client_certificate: {fingerprint: %s}}]}}]}
  - {from: https://spki.localhost, to: "@APP@", policy: [{allow: {and: [{client_certificate: {spki_hash: "%s"}}]}}]}
  - {from: https://named.localhost, to: "@APP@", policy: [{allow: {and: [{client_certificate: {san_email: {ends_with: "@device.test"}}}]}}]}
  - {from: https://valid.localhost, to: "@APP@", policy: [{allow: {and: [{accept: true}]}, deny: {or: [{invalid_client_certificate: true}]}}]}
  - from: https://headers.localhost
    to: "@APP@"
    allow_public_unauthenticated_access: true
    set_request_headers:
      X-Fingerprint: "${pomerium.client_cert_fingerprint}"
      X-Names: "${pomerium.client_cert_san_dns} ${pomerium.client_cert_san_email}"
`, hex.EncodeToString(sum[:]), base64.StdEncoding.EncodeToString(spki[:])), servertest.Options{Files: map[string]string{"clients.pem": ca.pem()}})
	get := func(host string, c *tls.Certificate, headers ...string) *servertest.Page {
		t.Helper()
		page, err := p.AgentWith(trusting(p, host, c)).Request("GET", "https://"+host+"/", headers...)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	// The criterion does not say that the certificate is trusted
	// (policy-language.md §6): in the mode policy, rules do that themselves.
	for host, want := range map[string][4]int{ // own, another's, a stranger's, none
		"finger.localhost": {200, 302, 302, 302}, "spki.localhost": {200, 302, 302, 302}, "named.localhost": {200, 200, 200, 302}, "valid.localhost": {200, 200, 495, 495},
		"headers.localhost": {200, 200, 200, 200},
	} {
		for i, c := range []*tls.Certificate{cert, second, foreign, nil} {
			if got := get(host, c, "Accept: text/html").StatusCode; got != want[i] && (want[i] != 302 || got == 200) {
				t.Errorf("%s, certificate %d: %d, want %d", host, i, got, want[i])
			}
		}
	}
	seen, err := get("headers.localhost", cert).Echo()
	if err != nil || seen.Header("X-Fingerprint") != hex.EncodeToString(sum[:]) || seen.Header("X-Names") != "laptop.device.test laptop@device.test" {
		t.Errorf("headers %q %q: %v", seen.Header("X-Fingerprint"), seen.Header("X-Names"), err)
	}
	for name, c := range map[string]*tls.Certificate{"a stranger's": foreign, "none": nil} {
		if seen, err := get("headers.localhost", c).Echo(); err != nil || strings.TrimSpace(seen.Header("X-Names")) != "" {
			t.Errorf("%s: names %q %v", name, seen.Header("X-Names"), err)
		}
	}
	for kind, tc := range map[string]struct {
		headers []string
		status  int
		holds   string
	}{
		"browser":    {[]string{"Accept: text/html"}, 495, "<html"},
		"program":    {[]string{"Accept: application/json"}, 495, `{`},
		"kubernetes": {[]string{"User-Agent: kubectl/v1 kubernetes/abc", "Accept: application/json"}, 495, `"reason":"Unauthorized"`},
	} {
		for _, c := range []*tls.Certificate{foreign, nil} {
			page := get("valid.localhost", c, tc.headers...)
			if page.StatusCode != tc.status || !strings.Contains(page.Body, tc.holds) {
				t.Errorf("%s: %d %.200s", kind, page.StatusCode, page.Body)
			}
		}
	}
	if page := get("valid.localhost", nil, "Accept: text/html"); !strings.Contains(page.Body, "device makers") {
		t.Errorf("the page does not say whose certificate is asked for: %.2000s", page.Body)
	}
	for _, reason := range []string{"client-certificate-required", "invalid-client-certificate"} {
		if err := p.WaitLog(reason); err != nil {
			t.Error(err)
		}
	}
}
