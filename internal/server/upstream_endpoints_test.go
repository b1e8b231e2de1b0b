package server_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// Under a hashing policy it is the session that chooses the endpoint, not the
// address: people behind one address are spread, and each stays where they
// are.
func TestSessionsOfOneAddressHashApart(t *testing.T) {
	var to []string
	for i := range 4 {
		to = append(to, servertest.NewApp(t, fmt.Sprint("app", i)).URL)
	}
	p := servertest.Start(t, fmt.Sprintf(`
routes:
  - {from: https://ring.localhost, to: [%[1]s], load_balancing_policy: RING_HASH, allow_any_authenticated_user: true}
  - {from: https://maglev.localhost, to: [%[1]s], load_balancing_policy: MAGLEV, allow_any_authenticated_user: true}
  - {from: https://public.localhost, to: [%[1]s], load_balancing_policy: MAGLEV, allow_public_unauthenticated_access: true}
`, strings.Join(to, ", ")))
	where := func(a *servertest.Agent, host string) string {
		t.Helper()
		seen, err := a.Get("https://" + host + "/").Echo()
		noErr(t, err)
		return seen.App
	}
	const people = 12 // all at one of four endpoints: once in four million
	for _, host := range []string{"ring.localhost", "maglev.localhost"} {
		used := map[string]int{}
		for range people {
			a := p.Agent()
			a.SignIn("https://"+host+"/", servertest.Ada)
			first := where(a, host)
			used[first]++
			for range 4 {
				if again := where(a, host); again != first {
					t.Fatalf("%s: one session was at %s, then at %s", host, first, again)
				}
			}
		}
		if len(used) < 2 {
			t.Errorf("%s: %d sessions of one address are all at %v", host, people, used)
		}
	}
	used := map[string]int{}
	for range people {
		used[where(p.Agent(), "public.localhost")]++
	}
	if len(used) != 1 {
		t.Errorf("without a session one address is at %v", used)
	}
}

// onlyFor gives a certificate for one name, and itself as the CA in base64.
func onlyFor(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	noErr(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	noErr(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Endpoints whose address is no name (a socket, an IP address) are asked for,
// and judged by, the name that tls_upstream_server_name gives.
func TestUpstreamNameOfNamelessEndpoints(t *testing.T) {
	certificate, ca := onlyFor(t, "inside.test")
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "asked for ", r.TLS.ServerName) })
	start := func(ln net.Listener) *httptest.Server {
		s := httptest.NewUnstartedServer(handler)
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // wrong hands are shaken on purpose
		if ln != nil {
			s.Listener.Close()
			s.Listener = ln
		}
		s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s
	}
	dir, err := os.MkdirTemp("", "s") // a socket's path is short
	noErr(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "app")
	ln, err := net.Listen("unix", socket)
	noErr(t, err)
	start(ln)
	byIP := start(nil).URL
	p := servertest.Start(t, fmt.Sprintf(`
routes:
  - {from: https://socket.localhost, to: "https+unix://%[1]s", tls_custom_ca: %[3]s, tls_upstream_server_name: inside.test, allow_public_unauthenticated_access: true}
  - {from: https://ip.localhost, to: "%[2]s", tls_custom_ca: %[3]s, tls_upstream_server_name: inside.test, allow_public_unauthenticated_access: true}
  - {from: https://socket-unnamed.localhost, to: "https+unix://%[1]s", tls_custom_ca: %[3]s, allow_public_unauthenticated_access: true}
  - {from: https://ip-unnamed.localhost, to: "%[2]s", tls_custom_ca: %[3]s, allow_public_unauthenticated_access: true}
  - {from: https://ip-other.localhost, to: "%[2]s", tls_custom_ca: %[3]s, tls_upstream_server_name: other.test, allow_public_unauthenticated_access: true}
`, socket, byIP, ca))
	a := p.Agent()
	for _, host := range []string{"socket", "ip"} {
		if page := a.Get("https://" + host + ".localhost/"); page.StatusCode != 200 || page.Body != "asked for inside.test" {
			t.Errorf("%s: %d %q", host, page.StatusCode, page.Body)
		}
	}
	for _, host := range []string{"socket-unnamed", "ip-unnamed", "ip-other"} {
		if page := a.Get("https://" + host + ".localhost/"); page.StatusCode != 502 && page.StatusCode != 503 {
			t.Errorf("%s: a certificate for another name is taken: %d %q", host, page.StatusCode, page.Body)
		}
	}
}

// A request on a connection that the proxy closes for its idleness in that
// moment is answered whole, or not taken at all.
func TestRequestMeetsIdleTimeout(t *testing.T) {
	var mu sync.Mutex
	bodies := map[string]string{}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		bodies[r.URL.Path] += string(b)
		mu.Unlock()
		w.Write(b)
	}))
	t.Cleanup(app.Close)
	p := servertest.Start(t, "timeout_idle: 300ms\nroutes:\n  - {from: https://app.localhost, to: "+app.URL+", allow_public_unauthenticated_access: true}\n")
	a := p.Agent()
	var served, refused int
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			c, err := a.Dial("app.localhost", "http/1.1")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			r := bufio.NewReader(c)
			ask := func(method, path, body string) (int, string, error) {
				fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
				if _, err := r.Peek(1); err != nil {
					return 0, "", nil // not a byte
				}
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					return 0, "", err
				}
				b, err := io.ReadAll(res.Body)
				return res.StatusCode, string(b), err
			}
			if status, _, err := ask("GET", fmt.Sprint("/first", i), ""); status != 200 || err != nil {
				t.Errorf("the first request: %d %v", status, err)
				return
			}
			time.Sleep(50*time.Millisecond + time.Duration(i)*6*time.Millisecond)
			path := fmt.Sprint("/late", i)
			status, body, err := ask("POST", path, "body of "+path)
			mu.Lock()
			defer mu.Unlock()
			got, taken := bodies[path]
			switch {
			case err != nil:
				t.Errorf("%s: half an answer: %v", path, err)
			case status == 200 && body == "body of "+path && got == body:
				served++
			case status == 0 && !taken:
				refused++
			default:
				t.Errorf("%s: answered %d %q; the application got %q (%v)", path, status, body, got, taken)
			}
		})
	}
	wg.Wait()
	t.Logf("%d served, %d refused", served, refused)
	if refused == 0 || served == 0 {
		t.Errorf("%d served, %d refused: the moment was missed", served, refused)
	}
}
