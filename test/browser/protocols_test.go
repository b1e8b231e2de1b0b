package browser

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"postern/internal/server/servertest"
)

// application is one with a WebSocket that says everything back.
func application(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/ws":
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, b, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, b) != nil {
				return
			}
		}
	case "/up":
		n := 0
		for b := make([]byte, 32<<10); ; {
			m, err := r.Body.Read(b)
			if n += m; err != nil {
				break
			}
		}
		fmt.Fprint(w, n)
	default:
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>app</title><link rel=icon href="data:,">The application`)
	}
}

// startProtocols starts the program in front of it, on a port of both TCP
// and UDP.
func startProtocols(t *testing.T) (p *servertest.Program, origin string) {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(application))
	t.Cleanup(app.Close)
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	p = servertest.Start(t, `
codec_type: http3
address: 127.0.0.1:@PORT@
routes:
  - {from: "https://app.localhost:@PORT@", to: @PAGE@, allow_any_authenticated_user: true, allow_websockets: true}
`, servertest.Options{Vars: map[string]string{"PORT": port, "PAGE": app.URL}})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the program said:\n%s", p.Log)
		}
	})
	return p, "https://app.localhost:" + port
}

// caFile is the certificate of the CA that the program's names are from.
func caFile(t *testing.T, p *servertest.Program) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.CA.Certificate().Raw})
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// await waits for the promise that a script gives.
func await(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }

const protocol = `performance.getEntriesByType("navigation")[0].nextHopProtocol`

func TestHTTP3(t *testing.T) {
	p, origin := startProtocols(t)
	// Chromium speaks QUIC with private CAs only for keys that it was told.
	conn, err := tls.Dial("tcp", p.Main, &tls.Config{InsecureSkipVerify: true, ServerName: "app.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	conn.Close()
	_, hostPort, _ := strings.Cut(origin, "//")
	b := newTab(t, startBrowser(t, caFile(t, p),
		chromedp.Flag("host-resolver-rules", "MAP *.localhost 127.0.0.1"), chromedp.Flag("enable-quic", true), chromedp.Flag("origin-to-force-quic-on", hostPort),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(sum[:]))))
	b.open(origin + "/x")
	b.signIn(servertest.Ada.Email, servertest.Ada.Password)
	b.at(origin + "/x")
	b.says("The application")
	var over, n string
	b.do(chromedp.Evaluate(protocol, &over))
	if over != "h3" {
		t.Errorf("the page came over %q, want h3", over)
	}
	b.do(chromedp.Evaluate(`fetch("/up", {method: "POST", body: "x".repeat(1 << 20)}).then(r => r.text())`, &n, await))
	if n != fmt.Sprint(1<<20) {
		t.Errorf("the application got %s bytes", n)
	}
	b.quiet()
}

// TestWebSocketOverHTTP2: Chromium opens it as a stream of the connection that
// it has (RFC 8441), and is told why it ends.
func TestWebSocketOverHTTP2(t *testing.T) {
	p, origin := startProtocols(t)
	b := newTab(t, startBrowser(t, caFile(t, p), chromedp.Flag("disable-quic", true)))
	b.open(origin + "/x")
	b.signIn(servertest.Ada.Email, servertest.Ada.Password)
	b.at(origin + "/x")
	var over, said string
	b.do(chromedp.Evaluate(protocol, &over))
	if over != "h2" {
		t.Errorf("the page came over %q, want h2", over)
	}
	b.do(chromedp.Evaluate(`new Promise((ok, bad) => {
		window.socket = new WebSocket("wss://" + location.host + "/ws");
		window.ended = new Promise(done => { socket.onclose = e => done(e.code + " " + e.reason + " " + e.wasClean) });
		socket.onerror = () => bad("error");
		socket.onmessage = e => ok(e.data);
		socket.onopen = () => socket.send("hello " + "x".repeat(100000));
	}).then(s => s.length + s.slice(0, 5))`, &said, await))
	if said != "100006hello" {
		t.Errorf("the WebSocket says %q", said)
	}
	if err := p.Control.Call(t.Context(), "POST", "/v1/sessions/revoke", map[string]any{"user": servertest.Ada.Email}, nil); err != nil {
		t.Fatal(err)
	}
	b.do(chromedp.Evaluate(`ended`, &said, await))
	if !strings.HasPrefix(said, "1008 ") {
		t.Errorf("the WebSocket ended with %q, want 1008", said)
	}
	// A stream is answered 200, an upgraded connection 101.
	if err := p.WaitLog(`"path":"/ws".*"response-code":200`); err != nil {
		t.Error(err)
	}
}
