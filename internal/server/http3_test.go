package server_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

const overHTTP3 = `
codec_type: http3
routes:
  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true, allow_websockets: true}
  - {from: https://open.localhost, to: @APP@, allow_public_unauthenticated_access: true, timeout: 0s}
`

func TestHTTP3(t *testing.T) {
	p := servertest.Start(t, overHTTP3)
	_, port, _ := strings.Cut(p.Main, ":")
	page := p.Agent().Get("https://open.localhost/")
	if got, want := page.Header.Get("Alt-Svc"), `h3=":`+port+`"; ma=86400`; got != want {
		t.Errorf("alt-svc %q, want %q", got, want)
	}

	a := p.AgentOverHTTP3()
	if page := a.Get("https://app.localhost/x"); page.StatusCode != http.StatusFound {
		t.Errorf("without a session: %d", page.StatusCode)
	}
	page = a.SignIn("https://app.localhost/x?y", servertest.Ada)
	seen, err := page.Echo()
	noErr(t, err)
	if page.ProtoMajor != 3 || seen.Path != "/x" || seen.Query != "y" || seen.Header("X-Forwarded-Proto") != "https" {
		t.Errorf("over %s the application saw %+v", page.Proto, seen)
	}
	large := strings.Repeat("0123456789abcdef", 1<<16)
	req, _ := http.NewRequest("POST", "https://app.localhost/up", strings.NewReader(large))
	page, err = a.Do(req)
	noErr(t, err)
	if seen, err = page.Echo(); err != nil || seen.Body != large || len(page.Body) < len(large) {
		t.Errorf("1 MiB up and down: %d of %d bytes, %v", len(seen.Body), len(large), err)
	}
	noErr(t, p.WaitLog(`"path":"/up".*"response-code":200`))
}

// webSocket opens a WebSocket with the agent's cookies as a stream of HTTP/3.
func webSocket(t *testing.T, a *servertest.Agent, target string) (io.Writer, *bufio.Reader) {
	t.Helper()
	out, in := io.Pipe()
	t.Cleanup(func() { in.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "CONNECT", target, out)
	noErr(t, err)
	req.Proto = "websocket"
	req.Header.Set("Sec-WebSocket-Version", "13")
	for _, k := range a.Client.Jar.Cookies(req.URL) {
		req.AddCookie(k)
	}
	res, err := a.Client.Transport.RoundTrip(req)
	noErr(t, err)
	t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 {
		t.Fatalf("WebSocket over HTTP/3: %d", res.StatusCode)
	}
	r := bufio.NewReader(res.Body)
	// The application sends lines back: a text frame that is one.
	io.WriteString(in, "\x81\x06hello\n")
	if b, err := r.ReadString('\n'); err != nil || b != "\x81\x06hello\n" {
		t.Fatalf("echo %q %v", b, err)
	}
	return in, r
}

func closeFrame(r *bufio.Reader, code int) error {
	b, err := io.ReadAll(r)
	if err != nil || len(b) < 4 || b[0] != 0x88 || int(b[2])<<8|int(b[3]) != code {
		return fmt.Errorf("the WebSocket ended with %q, %v; want a close frame %d", b, err, code)
	}
	return nil
}

func TestHTTP3StreamIsCutOnRevocation(t *testing.T) {
	p := servertest.Start(t, overHTTP3)
	a := p.AgentOverHTTP3()
	a.SignIn("https://app.localhost/", servertest.Ada)
	_, r := webSocket(t, a, "https://app.localhost/ws")
	noErr(t, p.Control.Call(t.Context(), "POST", "/v1/sessions/revoke", map[string]any{"user": servertest.Ada.Email}, nil))
	noErr(t, closeFrame(r, 1008))
}

func TestDrainTellsWebSockets(t *testing.T) {
	p := servertest.Start(t, overHTTP3)
	a := p.AgentOverHTTP3()
	a.SignIn("https://app.localhost/", servertest.Ada)
	_, overH3 := webSocket(t, a, "https://app.localhost/ws")
	h1 := p.Agent()
	h1.SignIn("https://app.localhost/", servertest.Ada)
	c, r, _, err := h1.Upgrade("https://app.localhost/ws", "websocket")
	noErr(t, err)
	io.WriteString(c, "\x81\x06hello\n")
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Stop() }()
	noErr(t, closeFrame(overH3, 1001))
	noErr(t, closeFrame(r, 1001))
	noErr(t, <-ended)
}

// TestVanishedRouteTellsWebSockets: nobody was refused, the place is gone.
func TestVanishedRouteTellsWebSockets(t *testing.T) {
	p := servertest.Start(t, overHTTP3)
	a := p.AgentOverHTTP3()
	a.SignIn("https://app.localhost/", servertest.Ada)
	_, r := webSocket(t, a, "https://app.localhost/ws")
	p.Change("codec_type: http3\nauthenticate_service_url: https://sign-in.localhost\nroutes:\n  - {from: https://open.localhost, to: @APP@, allow_public_unauthenticated_access: true}\n")
	noErr(t, closeFrame(r, 1001))
}

func TestHTTP3OverReloads(t *testing.T) {
	p := servertest.Start(t, overHTTP3)
	a := p.AgentOverHTTP3()
	open := func(path string) chan error {
		begun, answer := make(chan error, 1), make(chan error, 1)
		go func() {
			res, err := a.Client.Get("https://open.localhost" + path)
			begun <- err
			if err != nil {
				answer <- err
				return
			}
			b, err := io.ReadAll(res.Body)
			if err == nil && !strings.Contains(string(b), `"headers"`) && !strings.HasSuffix(string(b), "}") {
				err = fmt.Errorf("half an answer: %q", b)
			}
			answer <- err
		}()
		noErr(t, <-begun)
		return answer
	}
	for i, change := range []string{
		overHTTP3 + "  - {from: https://more.localhost, to: @APP@, allow_public_unauthenticated_access: true}\n", // routes
		"timeout_idle: 4m\n" + overHTTP3,               // the server behind the socket is exchanged
		"http3_advertise_port: 8443\n" + overHTTP3,     // again
		strings.Replace(overHTTP3, "http3", "auto", 1), // the socket is to go
		overHTTP3, // and to come
	} {
		answer := open("/?pause=300ms")
		p.Change(change)
		if i < 4 { // taking the socket again ends what was still on its way out
			if err := <-answer; err != nil {
				t.Errorf("change %d: the open request: %v", i, err)
			}
		}
		fresh := p.AgentOverHTTP3()
		if i == 3 {
			if page := p.Agent().Get("https://open.localhost/"); page.StatusCode != 200 || page.Header.Get("Alt-Svc") != "" {
				t.Errorf("without http3: %d, alt-svc %q", page.StatusCode, page.Header.Get("Alt-Svc"))
			}
			continue
		}
		page := fresh.Get("https://open.localhost/")
		if page.StatusCode != 200 || page.ProtoMajor != 3 {
			t.Errorf("change %d: a new client is answered %d over %s", i, page.StatusCode, page.Proto)
		}
		if i == 2 {
			if got := p.Agent().Get("https://open.localhost/").Header.Get("Alt-Svc"); got != `h3=":8443"; ma=86400` {
				t.Errorf("alt-svc %q", got)
			}
		}
		a = fresh
	}
}

// clientCA makes a CA and gives its certificate and one of a client.
func clientCA(t *testing.T) (ca string, client tls.Certificate) {
	t.Helper()
	make := func(name string, isCA bool, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		noErr(t, err)
		c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, IsCA: isCA, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if parent == nil {
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
		noErr(t, err)
		c, err = x509.ParseCertificate(der)
		noErr(t, err)
		return c, key
	}
	root, rootKey := make("client CA", true, nil, nil)
	leaf, leafKey := make("ada", false, root, rootKey)
	pemCA := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	return base64.StdEncoding.EncodeToString(pemCA), tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: leafKey, Leaf: leaf}
}

// TestCVE_2026_53622_HTTP3AsksForCertificates: what TCP asks, QUIC asks, in
// every spelling of the server name.
func TestCVE_2026_53622_HTTP3AsksForCertificates(t *testing.T) {
	ca, good := clientCA(t)
	_, stranger := clientCA(t)
	p := servertest.Start(t, `
codec_type: http3
routes:
  - {from: https://locked.localhost, to: @APP@, allow_public_unauthenticated_access: true, tls_downstream_client_ca: `+ca+`}
  - {from: https://open.localhost, to: @APP@, allow_public_unauthenticated_access: true}
`)
	status := func(a *servertest.Agent, target string) int {
		page, err := a.Request("GET", target)
		if err != nil {
			return 0
		}
		return page.StatusCode
	}
	for _, tc := range []struct {
		name         string
		certificates []tls.Certificate
		sni          string
		target       string
		want         int
	}{
		{"none", nil, "", "https://locked.localhost/", 495},
		{"good", []tls.Certificate{good}, "", "https://locked.localhost/", 200},
		{"a stranger's", []tls.Certificate{stranger}, "", "https://locked.localhost/", 495},
		{"none, upper case", nil, "LOCKED.localhost", "https://locked.localhost/", 495},
		{"good, upper case", []tls.Certificate{good}, "LOCKED.localhost", "https://locked.localhost/", 200},
		{"none, of the open host", nil, "open.localhost", "https://locked.localhost/", 421},
		{"none, open", nil, "", "https://open.localhost/", 200},
	} {
		for _, a := range []*servertest.Agent{p.AgentOverHTTP3(tc.certificates...), p.Agent()} {
			if len(a.TLS.Certificates) == 0 {
				a.TLS.Certificates = tc.certificates
			}
			if tc.sni != "" {
				a.TLS.ServerName = tc.sni
			}
			if got := status(a, tc.target); got != tc.want {
				t.Errorf("%s: %d, want %d (HTTP/3: %T)", tc.name, got, tc.want, a.Client.Transport)
			}
		}
	}
}

func TestHTTP3RejectConnection(t *testing.T) {
	ca, good := clientCA(t)
	_, stranger := clientCA(t)
	p := servertest.Start(t, overHTTP3+`
downstream_mtls:
  enforcement: reject_connection
  ca: `+ca+"\n")
	for name, certificates := range map[string][]tls.Certificate{"none": nil, "stranger": {stranger}} {
		if page, err := p.AgentOverHTTP3(certificates...).Request("GET", "https://open.localhost/.well-known/pomerium/jwks.json"); err == nil {
			t.Errorf("%s: answered %d", name, page.StatusCode)
		}
	}
	if page := p.AgentOverHTTP3(good).Get("https://open.localhost/"); page.StatusCode != 200 {
		t.Errorf("good: %d", page.StatusCode)
	}
	noErr(t, p.WaitLog(`"info".*listener connection failure.*open\.localhost`))
}

func TestProtocolMixtures(t *testing.T) {
	for text, want := range map[string]string{
		"codec_type: http3\ninsecure_server: true\n": "insecure_server",
		"engine: fast\n": "use reference",
		"codec_type: http3\nhttp3_advertise_port: 70000\n": "65535",
	} {
		if _, err := servertest.Try(t, text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error that names %q", text, err, want)
		}
	}
	p := servertest.Start(t, "engine: reference\n")
	if page := p.Agent().Get("https://app.localhost/"); page.StatusCode != 200 {
		t.Error(errors.New(page.Status))
	}
}
