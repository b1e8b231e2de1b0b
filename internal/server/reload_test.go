package server_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

func noErr(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

const public = `
routes:
  - {from: https://app.localhost, to: @APP@, allow_public_unauthenticated_access: true}
`

// more is public with another route, which changes nothing about the first.
const more = public + `  - {from: https://more.localhost, to: @APP@, allow_public_unauthenticated_access: true}
`

// get asks with an agent and tells whether its connection was there already.
func get(t *testing.T, a *servertest.Agent, target string) (*servertest.Page, bool) {
	t.Helper()
	reused := false
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused },
	}), "GET", target, nil)
	noErr(t, err)
	page, err := a.Do(req)
	noErr(t, err)
	return page, reused
}

// A change that does not concern a route leaves the connections of its clients
// and to its upstream alone.
func TestReloadKeepsConnections(t *testing.T) {
	p := servertest.Start(t, public)
	a := p.Agent()
	if page, _ := get(t, a, "https://app.localhost/"); page.StatusCode != 200 {
		t.Fatal(page.StatusCode)
	}
	before := p.Status()
	p.Change(more)
	page, reused := get(t, a, "https://app.localhost/")
	if page.StatusCode != 200 || !reused {
		t.Errorf("status %d, the client's connection lived on: %v", page.StatusCode, reused)
	}
	if n := p.App.Connections.Load(); n != 1 {
		t.Errorf("%d connections to the upstream", n)
	}
	if page, _ := get(t, a, "https://more.localhost/"); page.StatusCode != 200 {
		t.Errorf("the new route: %d", page.StatusCode)
	}
	after := p.Status()
	if after.Generation != before.Generation+1 || after.Routes != 2 || after.Config.Checksum == before.Config.Checksum || len(after.Config.Problems) > 0 {
		t.Errorf("%+v", after)
	}
	// The same again is no change.
	p.Change(more)
	if again := p.Status(); again.Generation != after.Generation {
		t.Error("a generation for nothing")
	}
}

// Settings of the listener are exchanged on the bound socket: nobody is refused
// meanwhile, and what is under way ends in peace.
func TestListenerSettingsAreExchanged(t *testing.T) {
	p := servertest.Start(t, public)
	slow := make(chan error, 1)
	a := p.Agent()
	go func() {
		page, err := a.Request("GET", "https://app.localhost/?wait=700ms")
		if err == nil && (page.StatusCode != 200 || page.Proto != "HTTP/2.0") {
			err = fmt.Errorf("%d %s", page.StatusCode, page.Proto)
		}
		slow <- err
	}()
	noErr(t, servertest.Eventually(func() error {
		if p.App.Requests.Load() == 0 {
			return fmt.Errorf("the slow request never came")
		}
		return nil
	}))
	p.Change("codec_type: http1\n" + public)
	if now := p.Status().Listeners["main"]; now != p.Main {
		t.Fatalf("the address moved from %s to %s", p.Main, now)
	}
	if page := p.Agent().Get("https://app.localhost/"); page.Proto != "HTTP/1.1" {
		t.Errorf("a new connection speaks %s", page.Proto)
	}
	if err := <-slow; err != nil {
		t.Errorf("the request under way: %v", err)
	}
}

func freeAddress(t *testing.T) string {
	port, err := servertest.Port()
	noErr(t, err)
	return "127.0.0.1:" + port
}

// A new address is bound before the old one closes; one that is taken leaves
// everything as it was.
func TestAddressChange(t *testing.T) {
	first, second := freeAddress(t), freeAddress(t)
	p := servertest.Start(t, "address: "+first+"\n"+public)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	noErr(t, err)
	defer taken.Close()
	p.Write("address: " + taken.Addr().String() + "\n" + public)
	if problems := p.Reload(); len(problems) != 1 || !strings.Contains(problems[0], "address "+taken.Addr().String()) || !strings.Contains(problems[0], "stop the program that listens there") {
		t.Errorf("%q", problems)
	}
	if page := p.Agent().Get("https://app.localhost/"); page.StatusCode != 200 {
		t.Errorf("after the refused change: %d", page.StatusCode)
	}
	p.Change("address: " + second + "\nhttp_redirect_addr: 127.0.0.1:0\n" + public)
	listeners := p.Status().Listeners
	if listeners["main"] != second || listeners["redirect"] == "" {
		t.Errorf("%v", listeners)
	}
	p.Main = second
	if page := p.Agent().Get("https://app.localhost/"); page.StatusCode != 200 {
		t.Errorf("at the new address: %d", page.StatusCode)
	}
	noErr(t, servertest.Eventually(func() error {
		c, err := net.Dial("tcp", first)
		if err == nil {
			c.Close()
			return fmt.Errorf("the old address is still bound")
		}
		return nil
	}))
	p.Change("address: " + second + "\n" + public)
	noErr(t, servertest.Eventually(func() error {
		c, err := net.Dial("tcp", listeners["redirect"])
		if err == nil {
			c.Close()
			return fmt.Errorf("http_redirect_addr is still bound")
		}
		return nil
	}))
}

// A bad change is told with all its problems and changes nothing.
func TestBadChangeKeepsTheOld(t *testing.T) {
	p := servertest.Start(t, public)
	for name, x := range map[string]struct{ text, say string }{
		"malformed":       {"routes: [\n", "config.yaml"},
		"a wrong value":   {"timeout_idle: soon\n" + public, "timeout_idle"},
		"a bad policy":    {strings.Replace(public, "allow_public_unauthenticated_access: true", "policy: {permit: {}}", 1), "policy"},
		"narrowing":       {"idp_access_token_allowed_audiences: [x]\n" + public, "idp_access_token_allowed_audiences"},
		"another secret":  {"shared_secret: UAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n" + public, "shared_secret_previous"},
		"no such file":    {"certificate_file: /nowhere/c.pem\ncertificate_key_file: /nowhere/k.pem\n" + public, "/nowhere/c.pem"},
		"an unknown kind": {"idp_provider: pigeons\n" + public, "idp_provider"},
	} {
		before := p.Status()
		p.Write(x.text)
		problems := strings.Join(p.Reload(), "\n")
		if !strings.Contains(problems, x.say) {
			t.Errorf("%s: %q does not speak of %s", name, problems, x.say)
		}
		if strings.Contains(problems, "UAECAw") {
			t.Errorf("%s: the secret is told", name)
		}
		after := p.Status()
		if after.Generation != before.Generation || after.Config.Checksum != before.Config.Checksum || len(after.Config.Problems) == 0 {
			t.Errorf("%s: %+v", name, after)
		}
		if page := p.Agent().Get("https://app.localhost/"); page.StatusCode != 200 {
			t.Errorf("%s: %d", name, page.StatusCode)
		}
	}
	if err := p.WaitLog("the old one goes on serving"); err != nil {
		t.Error(err)
	}
	p.Change(public)
	if st := p.Status(); len(st.Config.Problems) > 0 {
		t.Errorf("old problems are still told: %v", st.Config.Problems)
	}
}

// SIGHUP and a changed file bring a change in by themselves.
func TestChangesAreSeen(t *testing.T) {
	p := servertest.Start(t, "runtime_flags: {config_hot_reload: false}\n"+public)
	seen := func(routes int) error {
		return servertest.Eventually(func() error {
			if n := p.Status().Routes; n != routes {
				return fmt.Errorf("%d routes, want %d", n, routes)
			}
			return nil
		})
	}
	p.Write(more)
	p.Sighup <- struct{}{}
	noErr(t, seen(2))
	p.Write(public) // hot reload is on by now
	noErr(t, seen(1))
}

// What was opened once for the process waits for its next start, and says so.
func TestSettingsThatNeedARestart(t *testing.T) {
	p := servertest.Start(t, public)
	p.Change("timeout_idle: 4m\n" + public)
	if strings.Contains(p.Log.String(), "next start") {
		t.Error("a setting that counts at once is told")
	}
	p.Change("control_address: @DIR@/other.sock\nmax_stale: 5s\n" + public)
	if err := p.WaitLog("count from the next start: control_address, max_stale\""); err != nil {
		t.Error(err)
	}
}

const sockets = `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_any_authenticated_user: true
    allow_websockets: true
`

// An open WebSocket lives through a change that still allows it and ends with
// one that does not.
func TestOpenWebSocket(t *testing.T) {
	p := servertest.Start(t, sockets)
	a := p.Agent()
	a.SignIn("https://app.localhost/", servertest.Ada)
	c, r, _, err := a.Upgrade("https://app.localhost/ws", "websocket")
	noErr(t, err)
	defer c.Close()
	talks := func() error {
		if _, err := io.WriteString(c, "hello\n"); err != nil {
			return err
		}
		line, err := r.ReadString('\n')
		if err == nil && line != "hello\n" {
			err = fmt.Errorf("%q", line)
		}
		return err
	}
	noErr(t, talks())
	p.Change("timeout_idle: 3m\n" + sockets)
	if err := talks(); err != nil {
		t.Errorf("a change that allows it: %v", err)
	}
	p.Change(strings.Replace(sockets, "allow_any_authenticated_user: true", "policy: {allow: {or: [{email: {is: bob@example.org}}]}}", 1))
	if _, err := io.ReadAll(r); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("a change that no longer allows it leaves it open")
	}
	if err := talks(); err == nil {
		t.Error("it still talks")
	}
}

// The end: what is under way may finish, nobody new is served.
func TestDrain(t *testing.T) {
	p := servertest.Start(t, public)
	slow := make(chan error, 1)
	a := p.Agent()
	go func() {
		page, err := a.Request("GET", "https://app.localhost/?wait=500ms")
		if err == nil && page.StatusCode != 200 {
			err = fmt.Errorf("%d", page.StatusCode)
		}
		slow <- err
	}()
	noErr(t, servertest.Eventually(func() error {
		if p.App.Requests.Load() == 0 {
			return fmt.Errorf("the slow request never came")
		}
		return nil
	}))
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if err := <-slow; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if c, err := net.Dial("tcp", p.Main); err == nil {
		c.Close()
		t.Error("the address is still bound")
	}
}

// Many changes leave nothing behind.
func TestManyReloadsLeakNothing(t *testing.T) {
	p := servertest.Start(t, public)
	a := p.Agent()
	texts := []string{
		more, public, "timeout_idle: 4m\n" + public, strings.Replace(public, "@APP@", "@APP@/sub", 1), "codec_type: http1\n" + more,
	}
	settle := func() int {
		a.Client.CloseIdleConnections()
		p.App.CloseClientConnections()
		runtime.GC()
		return runtime.NumGoroutine()
	}
	for _, text := range texts {
		p.Change(text)
		a.Get("https://app.localhost/")
	}
	base := settle()
	for i := range manyReloads {
		p.Change(texts[i%len(texts)])
		if i%10 == 0 {
			a.Get("https://app.localhost/")
		}
	}
	if err := servertest.Eventually(func() error {
		if n := settle(); n > base+10 {
			return fmt.Errorf("%d goroutines, %d before", n, base)
		}
		return nil
	}); err != nil {
		buf := make([]byte, 1<<20)
		t.Errorf("%v\n%.20000s", err, buf[:runtime.Stack(buf, true)])
	}
}
