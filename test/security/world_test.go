// Package security attacks the whole program over its real sockets: one server
// with local accounts and an upstream that says what it was sent. Tests are
// named after the rows of docs/security-tests.md.
package security

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/certs"
	"postern/internal/identity"
	"postern/internal/server"
	"postern/internal/server/servertest"
	"postern/internal/session"
)

// world is the running program.
type world struct {
	dir    string
	port   string
	health string
	ca     *certs.LocalCA
	pool   *x509.CertPool
	keys   *session.Keys
	secret []byte
	app    *recorder
	log    lockedBuffer
}

var w world

const password = "correct horse battery"

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "postern-security")
	if err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	if err := start(ctx, dir, done); err != nil {
		fmt.Fprintf(os.Stderr, "the server does not start: %v\n%s\n", err, w.log.String())
		os.Exit(1)
	}
	code := m.Run()
	cancel()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, "the server ended with", err)
		code = 1
	}
	w.app.Close()
	os.RemoveAll(dir)
	os.Exit(code)
}

func start(ctx context.Context, dir string, done chan error) (err error) {
	w.dir, w.port, w.health = dir, freePort(), freePort()
	if w.ca, err = certs.LoadOrCreateLocalCA(filepath.Join(dir, "ca")); err != nil {
		return err
	}
	w.pool = x509.NewCertPool()
	w.pool.AddCert(w.ca.Certificate())
	w.secret = make([]byte, session.KeySize)
	rand.Read(w.secret)
	if w.keys, err = session.NewKeys(session.NewSecret(w.secret), nil, session.Secret{}); err != nil {
		return err
	}
	hash, err := identity.HashPassword(password)
	if err != nil {
		return err
	}
	var users strings.Builder
	for id, groups := range map[string]string{"ada": "[staff]", "eve": "[]"} {
		fmt.Fprintf(&users, "- {id: %s, email: %s@example.com, name: %s, groups: %s, password_hash: '%s'}\n", id, id, id, groups, string(hash))
	}
	w.app = newRecorder()
	conf := fmt.Sprintf(`
address: 127.0.0.1:%[1]s
authenticate_service_url: https://auth.localhost:%[1]s
health_check_addr: 127.0.0.1:%[2]s
shared_secret: %[3]s
data_dir: %[4]s
databroker_storage_type: memory
idp_provider: local
local_users_file: %[4]s/users.yaml
pass_identity_headers: true
jwt_claims_headers: {X-Email: email}
headers_with_underscores_action: allow
routes:
  - {from: "https://app.localhost:%[1]s", to: "%[5]s", policy: [{allow: {and: [{groups: staff}]}}], set_request_headers: {X-Route-User: ours}}
  - {from: "https://other.localhost:%[1]s", to: "%[5]s", allow_any_authenticated_user: true}
  - {from: "https://public.localhost:%[1]s", to: "%[5]s", allow_public_unauthenticated_access: true}
  - from: "https://paths.localhost:%[1]s"
    to: "%[5]s"
    policy:
      - allow: {and: [{http_path: {starts_with: /public/}}]}
      - allow: {and: [{groups: staff}]}
  - {from: "https://local.localhost:%[1]s", to: "%[5]s", policy: [{allow: {and: [{source_ip: 10.0.0.0/8}]}}]}
`, w.port, w.health, base64.StdEncoding.EncodeToString(w.secret), dir, w.app.URL)
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(filepath.Join(dir, "users.yaml"), []byte(users.String()), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return err
	}
	ready := make(chan struct{})
	go func() {
		done <- server.Run(ctx, server.Options{ConfigFile: file, Version: "test", Out: &w.log, LocalCA: w.ca, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
		return nil
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		return fmt.Errorf("not ready within 30 seconds")
	}
}

func freePort() string {
	port, err := servertest.Port()
	if err != nil {
		panic(err)
	}
	return port
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// recorder is the application: it answers "secret of the application" and
// keeps what it was sent.
type recorder struct {
	*httptest.Server
	mu  sync.Mutex
	got []sent
}

type sent struct {
	target string
	host   string
	header http.Header
	body   string
}

const appSecret = "secret of the application"

func newRecorder() *recorder {
	rec := &recorder{}
	rec.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		rec.mu.Lock()
		rec.got = append(rec.got, sent{r.RequestURI, r.Host, r.Header, string(b)})
		rec.mu.Unlock()
		if v := r.URL.Query().Get("set-cookie"); v != "" {
			rw.Header().Set("Set-Cookie", v)
		}
		rw.Header().Set("Content-Type", "text/plain")
		io.WriteString(rw, appSecret+" for "+r.Header.Get("X-Email"))
	}))
	return rec
}

func (r *recorder) count() int { r.mu.Lock(); defer r.mu.Unlock(); return len(r.got) }

func (r *recorder) last() sent {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.got) == 0 {
		return sent{header: http.Header{}}
	}
	return r.got[len(r.got)-1]
}

func at(host, path string) string { return "https://" + host + ".localhost:" + w.port + path }

// browser keeps cookies and follows redirects by hand.
type browser struct {
	t      testing.TB
	client *http.Client
	jar    http.CookieJar
	hops   []string
}

func newBrowser(t testing.TB) *browser {
	jar, _ := cookiejar.New(nil)
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.pool}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, "127.0.0.1:"+w.port)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &browser{t: t, jar: jar, client: &http.Client{Transport: tr, Jar: jar, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// stranger is a browser that keeps nothing.
func stranger(t testing.TB) *browser {
	b := newBrowser(t)
	b.client.Jar = nil
	return b
}

type page struct {
	*http.Response
	body string
}

// do sends one request; headers are name, value pairs.
func (b *browser) do(method, target, body string, headers ...string) page {
	b.t.Helper()
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if body == "" {
		req.Body, req.ContentLength = nil, 0
	}
	req.Header.Set("Accept", "text/html,*/*;q=0.8")
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := b.client.Do(req)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, target, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, target, err)
	}
	b.hops = append(b.hops, res.Request.URL.String(), res.Header.Get("Location"))
	return page{res, string(text)}
}

func (b *browser) get(target string, headers ...string) page {
	b.t.Helper()
	return b.do("GET", target, "", headers...)
}

var (
	formAction = regexp.MustCompile(`(?s)<form[^>]*action="([^"]*)"`)
	hidden     = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
	attribute  = func(name string) *regexp.Regexp { return regexp.MustCompile(name + `="([^"]*)"`) }
	nameOf     = attribute("name")
	valueOf    = attribute("value")
)

// follow goes on from p through redirects and the sign-in form, which it fills
// for who, until something else answers.
func (b *browser) follow(p page, who string) page {
	b.t.Helper()
	filled := false
	for range 20 {
		switch {
		case p.StatusCode/100 == 3 && p.Header.Get("Location") != "":
			next, err := p.Request.URL.Parse(p.Header.Get("Location"))
			if err != nil {
				b.t.Fatal(err)
			}
			p = b.get(next.String())
		case !filled && who != "" && strings.Contains(p.body, `type="password"`):
			filled = true
			form := url.Values{"email": {who + "@example.com"}, "password": {password}}
			for _, in := range hidden.FindAllString(p.body, -1) {
				if n, v := nameOf.FindStringSubmatch(in), valueOf.FindStringSubmatch(in); n != nil && v != nil {
					form.Set(unescape(n[1]), unescape(v[1]))
				}
			}
			to := p.Request.URL
			if m := formAction.FindStringSubmatch(p.body); m != nil && m[1] != "" {
				var err error
				if to, err = p.Request.URL.Parse(unescape(m[1])); err != nil {
					b.t.Fatal(err)
				}
			}
			p = b.do("POST", to.String(), form.Encode(), "Content-Type", "application/x-www-form-urlencoded",
				"Origin", to.Scheme+"://"+to.Host, "Sec-Fetch-Site", "same-origin")
		default:
			return p
		}
	}
	b.t.Fatalf("no end of redirects:\n%s", strings.Join(b.hops, "\n"))
	return p
}

func unescape(s string) string {
	return strings.NewReplacer("&amp;", "&", "&#43;", "+", "&#34;", `"`, "&#39;", "'", "&lt;", "<", "&gt;", ">").Replace(s)
}

// signIn signs who in at a host and checks that it worked.
func (b *browser) signIn(host, who string) {
	b.t.Helper()
	p := b.follow(b.get(at(host, "/")), who)
	if p.StatusCode != 200 || !strings.Contains(p.body, appSecret+" for "+who) {
		b.t.Fatalf("%s at %s: %d %.300s\n%s", who, host, p.StatusCode, p.body, strings.Join(b.hops, "\n"))
	}
}

const (
	routeCookie  = "__Host-_pomerium"
	signInCookie = "__Host-_pomerium_authenticate"
)

// cookie gives a cookie's value at a host, "" if there is none.
func (b *browser) cookie(host, name string) string {
	u, _ := url.Parse(at(host, "/"))
	for _, c := range b.jar.Cookies(u) {
		if c.Name == name {
			return c.Value
		}
	}
	return ""
}

// raw sends bytes over TLS with HTTP/1.1 and reads one answer; status 0 is a
// closed connection.
func raw(t testing.TB, host, request string) (status int, head http.Header, body string) {
	t.Helper()
	c, err := tls.Dial("tcp", "127.0.0.1:"+w.port, &tls.Config{RootCAs: w.pool, ServerName: host + ".localhost", NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, res.Header, string(b)
}

// target sends a GET with a raw request target and header lines.
func target(t testing.TB, host, target string, lines ...string) (int, http.Header, string) {
	t.Helper()
	return raw(t, host, "GET "+target+" HTTP/1.1\r\nHost: "+host+".localhost:"+w.port+"\r\nConnection: close\r\n"+strings.Join(append(lines, ""), "\r\n")+"\r\n")
}

func decodeJSON(t testing.TB, text string) map[string]any {
	t.Helper()
	out := map[string]any{}
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%v in %.200s", err, text)
	}
	return out
}
