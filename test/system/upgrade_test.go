package system

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"postern/internal/server"
	"postern/internal/server/servertest"
)

// installed is a program in a directory of its own, where its file can be
// replaced, and a configuration.
type installed struct {
	t         *testing.T
	dir       string
	addr, app string
	health    string
	roots     *x509.CertPool

	cmd   *exec.Cmd
	ended chan struct{} // closed when the first process is gone
	group int           // of all processes
}

const anna, annas = "ada@example.com", "correct-horse-battery"

// install prepares a program with two routes to one application: open.localhost
// for everybody, closed.localhost for whoever is signed in.
func install(t *testing.T, storage, more string) *installed {
	t.Helper()
	dir, err := os.MkdirTemp("", "up-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &installed{t: t, dir: dir, ended: make(chan struct{})}
	app := echo("app")
	t.Cleanup(app.CloseClientConnections)
	p.app = app.Listener.Addr().String()
	port, err := servertest.Port()
	p.check(err)
	health, err := servertest.Port()
	p.check(err)
	p.addr, p.health = "127.0.0.1:"+port, "127.0.0.1:"+health
	p.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem", "-out", "cert.pem",
		"-days", "2", "-subj", "/CN=postern-test", "-addext", "subjectAltName=DNS:open.localhost,DNS:closed.localhost,DNS:auth.localhost")
	cert, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	p.check(err)
	p.roots = x509.NewCertPool()
	p.roots.AppendCertsFromPEM(cert)
	p.putProgram(program)
	add := exec.Command(program, "users", "add", anna, "--name", "Ada", "--password-stdin", "--file", filepath.Join(dir, "users.yaml"))
	add.Stdin = strings.NewReader(annas)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p.configure(storage, more, "allow_public_unauthenticated_access: true")
	return p
}

func (p *installed) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func (p *installed) run(name string, args ...string) {
	p.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// putProgram replaces the program's file, as a package manager does.
func (p *installed) putProgram(from string) {
	p.t.Helper()
	b, err := os.ReadFile(from)
	p.check(err)
	p.putBytes(b)
}

func (p *installed) putBytes(b []byte) {
	p.t.Helper()
	next := filepath.Join(p.dir, "postern.new")
	p.check(os.WriteFile(next, b, 0o755))
	p.check(os.Rename(next, filepath.Join(p.dir, "postern")))
}

// configure writes the configuration; open is the access to open.localhost.
func (p *installed) configure(storage, more, open string) {
	p.t.Helper()
	_, port, _ := net.SplitHostPort(p.addr)
	text := fmt.Sprintf(`address: %s
health_check_addr: %s
certificate_file: cert.pem
certificate_key_file: key.pem
authenticate_service_url: https://auth.localhost:%s
idp_provider: local
local_users_file: users.yaml
databroker_storage_type: %s
data_dir: %s/data
timeout_read: 0s
default_upstream_timeout: 0s
%s
routes:
  - from: https://open.localhost:%[3]s
    to: http://%[7]s
    allow_websockets: true
    %[8]s
  - from: https://closed.localhost:%[3]s
    to: http://%[7]s
    allow_websockets: true
    allow_any_authenticated_user: true
`, p.addr, p.health, port, storage, p.dir, more, p.app, open)
	next := filepath.Join(p.dir, "config.new")
	p.check(os.WriteFile(next, []byte(text), 0o600))
	p.check(os.Rename(next, filepath.Join(p.dir, "config.yaml")))
}

// start runs the program until it is ready.
func (p *installed) start(env ...string) {
	p.t.Helper()
	log, err := os.Create(filepath.Join(p.dir, "log"))
	p.check(err)
	defer log.Close()
	p.cmd = exec.Command(filepath.Join(p.dir, "postern"), "--config", "config.yaml")
	p.cmd.Dir, p.cmd.Env = p.dir, append(os.Environ(), append([]string{"HOME=" + p.dir}, env...)...)
	p.cmd.Stdout, p.cmd.Stderr = log, log // files, so that Wait is about one process
	p.launch(p.cmd)
	p.until(30*time.Second, func() error {
		res, err := http.Get("http://" + p.health + "/readyz")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			return fmt.Errorf("not ready: %s", res.Status)
		}
		return nil
	})
}

// launch starts the first process, in a group that its heirs are in, too: none
// of them outlives the test, however that ends.
func (p *installed) launch(cmd *exec.Cmd) {
	p.t.Helper()
	// The head of the group reads until this process closes the pipe, or dies.
	guard := exec.Command("/bin/sh", "-c", "read -r line; kill -KILL 0")
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := guard.StdinPipe()
	p.check(err)
	p.check(guard.Start())
	p.group = guard.Process.Pid
	p.t.Cleanup(func() { pipe.Close(); guard.Wait() })
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: p.group}
	p.cmd = cmd
	p.check(cmd.Start())
	go func() { cmd.Wait(); close(p.ended) }()
	p.t.Cleanup(p.stop)
}

// processes are those of the group that still run, but for its head.
func (p *installed) processes() (pids []int) {
	list, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range list {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// After the name in brackets: state, parent, group.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 2 && fields[0] != "Z" && fields[2] == strconv.Itoa(p.group) {
			if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name))); pid != p.group {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// log is what the processes said, but for lines of requests.
func (p *installed) log() string {
	b, _ := os.ReadFile(filepath.Join(p.dir, "log"))
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, `"request-id"`) {
			out.WriteString(line)
		}
	}
	return out.String()
}

func (p *installed) until(limit time.Duration, f func() error) {
	p.t.Helper()
	if err := eventually(limit, f); err != nil {
		p.t.Fatalf("%v\n%s", err, p.log())
	}
}

func (p *installed) logged(words string) func() error {
	return func() error {
		if !regexp.MustCompile(words).MatchString(p.log()) {
			return fmt.Errorf("the log says nothing of %q", words)
		}
		return nil
	}
}

var heirPID = regexp.MustCompile(`"pid":(\d+)`)

// heirs are the processes that took over, in order.
func (p *installed) heirs() (pids []int) {
	for _, m := range heirPID.FindAllStringSubmatch(p.log(), -1) {
		n, _ := strconv.Atoi(m[1])
		pids = append(pids, n)
	}
	return pids
}

// stop ends all processes.
func (p *installed) stop() {
	for _, pid := range p.processes() {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	if err := eventually(20*time.Second, func() error {
		if left := p.processes(); len(left) > 0 {
			return fmt.Errorf("processes %v do not end", left)
		}
		return nil
	}); err != nil {
		p.t.Error(err)
	}
	if p.t.Failed() {
		p.t.Logf("log:\n%s", p.log())
	}
}

func (p *installed) control() *server.Client {
	return server.Dial(filepath.Join(p.dir, "data", "control.sock"))
}

func (p *installed) status() (server.Status, error) {
	var s server.Status
	err := p.control().Call(p.t.Context(), "GET", "/v1/status", nil, &s)
	return s, err
}

// upgrade signals and waits until another process answers at the control socket.
func (p *installed) upgrade(pid int) {
	p.t.Helper()
	before, err := p.status()
	p.check(err)
	known := len(p.heirs())
	p.check(syscall.Kill(pid, syscall.SIGUSR2))
	p.until(30*time.Second, func() error {
		if len(p.heirs()) == known {
			return fmt.Errorf("the log names no new process")
		}
		after, err := p.status()
		if err == nil && after.StartedAt.Equal(before.StartedAt) {
			err = fmt.Errorf("the old process still answers")
		}
		return err
	})
}

// transport leads every host to the program.
func (p *installed) transport(protocol string) *http.Transport {
	return &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: p.roots, NextProtos: []string{protocol}},
		ForceAttemptHTTP2: protocol == "h2",
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, p.addr)
		},
	}
}

func (p *installed) url(host, path string) string {
	_, port, _ := net.SplitHostPort(p.addr)
	return "https://" + host + ".localhost:" + port + path
}

// load sends requests of several kinds without pause, until stop, which gives
// how many there were and what went wrong.
func (p *installed) load() (stop func() (int64, []string)) {
	var count atomic.Int64
	var mu sync.Mutex
	var failed []string
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	run := func(name, protocol string, fresh bool) {
		all.Go(func() {
			tr := p.transport(protocol)
			defer tr.CloseIdleConnections()
			tr.DisableKeepAlives = fresh
			client := &http.Client{Transport: tr}
			for i := 0; ctx.Err() == nil; i++ {
				method, body, path := "GET", io.Reader(nil), "/x"
				if i%2 == 1 {
					method, body = "POST", strings.NewReader("some text")
				}
				req, _ := http.NewRequest(method, p.url("open", path), body)
				res, err := client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, res.Body)
					res.Body.Close()
					if err == nil && res.StatusCode != 200 {
						err = fmt.Errorf("status %s", res.Status)
					}
				}
				count.Add(1)
				if err != nil {
					mu.Lock()
					failed = append(failed, fmt.Sprintf("%s, request %d: %v", name, i, err))
					mu.Unlock()
				}
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	for range 2 {
		run("HTTP/2", "h2", false)
		run("HTTP/1.1", "http/1.1", false)
		run("a connection each", "http/1.1", true)
	}
	return func() (int64, []string) {
		cancel()
		all.Wait()
		return count.Load(), failed
	}
}

// line is an open WebSocket that is used all the time.
type line struct {
	conn  *websocket.Conn
	count atomic.Int64
	over  chan struct{}
	err   error
}

func (p *installed) line(host string, jar http.CookieJar) *line {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, p.url(host, "/ws"), &websocket.DialOptions{HTTPClient: &http.Client{Transport: p.transport("http/1.1"), Jar: jar}})
	p.check(err)
	l := &line{conn: conn, over: make(chan struct{})}
	p.t.Cleanup(func() { conn.CloseNow() })
	go func() {
		defer close(l.over)
		for {
			text := fmt.Sprint(l.count.Load())
			if l.err = conn.Write(context.Background(), websocket.MessageText, []byte(text)); l.err != nil {
				return
			}
			_, b, err := conn.Read(context.Background())
			if err == nil && string(b) != text {
				err = fmt.Errorf("said %s, heard %s", text, b)
			}
			if l.err = err; err != nil {
				return
			}
			l.count.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return l
}

// goesOn checks that a line still works.
func (l *line) goesOn() error {
	n := l.count.Load()
	return eventually(10*time.Second, func() error {
		select {
		case <-l.over:
			return fmt.Errorf("the WebSocket was closed: %v", l.err)
		default:
		}
		if l.count.Load() < n+3 {
			return fmt.Errorf("the WebSocket is silent")
		}
		return nil
	})
}

func (l *line) ends() error {
	select {
	case <-l.over:
		return nil
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the WebSocket goes on")
	}
}

func (p *installed) signIn() *agent {
	p.t.Helper()
	a, err := newAgent(filepath.Join(p.dir, "cert.pem"))
	p.check(err)
	page, err := a.visit(p.url("closed", "/"), anna, annas)
	p.check(err)
	if page.StatusCode != 200 || !strings.Contains(page.body, `"upstream"`) {
		p.t.Fatalf("signing in: %s\n%s", page.Status, page.body)
	}
	return a
}

// SIGUSR2 puts a new process in the place of the old one: under load no request
// fails, no stream is closed, nobody is signed out. The old process's streams
// are still judged: by sessions that end and by policies that change in the new
// one. Then the old process goes.
func TestUpgrade(t *testing.T) {
	for _, storage := range []string{"file", "memory"} {
		t.Run(storage, func(t *testing.T) {
			t.Parallel()
			p := install(t, storage, "")
			p.start()
			ada := p.signIn()
			private, public := p.line("closed", ada.client.Jar), p.line("open", nil)
			stop := p.load()
			p.check(private.goesOn())
			p.upgrade(p.cmd.Process.Pid)
			overlap := time.After(6 * time.Second) // until idle connections of the old one are closed, too
			p.check(private.goesOn())
			p.check(public.goesOn())
			p.until(20*time.Second, func() error { // the listeners of the old one are closed
				select {
				case <-p.ended:
					t.Fatalf("the old process left its streams\n%s", p.log())
				default:
				}
				return p.logged("another process has taken over")()
			})
			// Whoever was signed in is, and the load sees the new process only.
			page, err := ada.visit(p.url("closed", "/"), "", "")
			p.check(err)
			if page.StatusCode != 200 {
				t.Errorf("signed in before, now %s", page.Status)
			}
			p.signIn()
			<-overlap
			p.check(public.goesOn())
			n, failed := stop()
			if len(failed) > 0 {
				t.Errorf("%d of %d requests failed:\n%s", len(failed), n, strings.Join(failed[:min(5, len(failed))], "\n"))
			}
			t.Logf("%d requests, %d and %d messages", n, private.count.Load(), public.count.Load())

			// Sessions end in both processes.
			var revoked map[string]int
			p.check(p.control().Call(t.Context(), "POST", "/v1/sessions/revoke", map[string]string{"user": anna}, &revoked))
			if revoked["revoked"] == 0 {
				t.Error("the session made before the upgrade is not known")
			}
			if err := private.ends(); err != nil {
				t.Errorf("after the session was revoked: %v", err)
			}
			p.check(public.goesOn())
			// Policies count in both.
			p.configure(storage, "", "policy: {deny: {and: [{accept: true}]}}")
			if err := public.ends(); err != nil {
				t.Errorf("after the policy denies it: %v", err)
			}
			select {
			case <-p.ended:
			case <-time.After(20 * time.Second):
				t.Error("the old process stays without streams")
			}
			if !p.cmd.ProcessState.Success() {
				t.Errorf("the old process ended with %s", p.cmd.ProcessState)
			}
			// And again, from the heir.
			pids := p.heirs()
			p.upgrade(pids[len(pids)-1])
		})
	}
}

// What is not ready in time, ends or cannot serve leaves the old process as it
// was, with its records and its sockets, and the log says why.
func TestUpgradeRefused(t *testing.T) {
	t.Parallel()
	p := install(t, "file", "upgrade_timeout: 3s")
	p.start()
	ada := p.signIn()
	l := p.line("closed", ada.client.Jar)
	stop := p.load()
	good, err := os.ReadFile(program)
	p.check(err)
	before, err := p.status()
	p.check(err)
	for _, x := range []struct{ name, script, say string }{
		{"ends at once", "#!/bin/sh\nexit 3\n", "the new program ended.*exit status 3"},
		{"says nothing", "#!/bin/sh\nexec sleep 60\n", "not ready within 3s"},
		{"is no program", "nonsense", "cannot be started"},
	} {
		p.putBytes([]byte(x.script))
		p.check(p.cmd.Process.Signal(syscall.SIGUSR2))
		p.until(20*time.Second, p.logged("the upgrade failed.*"+x.say))
	}
	p.check(os.Remove(filepath.Join(p.dir, "postern")))
	p.check(p.cmd.Process.Signal(syscall.SIGUSR2))
	p.until(10*time.Second, p.logged("there is no program to start at"))
	// A good program that cannot serve: its configuration is broken, or wants
	// records elsewhere.
	p.putBytes(good)
	whole, err := os.ReadFile(filepath.Join(p.dir, "config.yaml"))
	p.check(err)
	for _, x := range []struct{ change, say string }{
		{"timeout_idle: soon\n", "the new program refuses.*timeout_idle"},
		{"databroker_storage_connection_string: file://" + p.dir + "/elsewhere\n", "needs a restart"},
		{"health_check_addr: 203.0.113.7:80\n", "health_check_addr"}, // only after the records changed hands
	} {
		name, _, _ := strings.Cut(x.change, ":")
		text := regexp.MustCompile(`(?m)^`+name+`:.*\n`).ReplaceAllString(string(whole), "")
		p.check(os.WriteFile(filepath.Join(p.dir, "config.yaml"), []byte(x.change+text), 0o600))
		p.check(p.cmd.Process.Signal(syscall.SIGUSR2))
		p.until(20*time.Second, p.logged("the upgrade failed.*"+x.say))
	}
	p.check(os.WriteFile(filepath.Join(p.dir, "config.yaml"), whole, 0o600))

	p.check(l.goesOn())
	p.signIn() // records are written
	if after, err := p.status(); err != nil || !after.StartedAt.Equal(before.StartedAt) {
		t.Errorf("%v, %v", after, err)
	}
	n, failed := stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d requests failed: %s", len(failed), n, failed[0])
	}
	// And then it works.
	p.upgrade(p.cmd.Process.Pid)
	p.check(l.goesOn())
}

// After upgrade_drain_timeout the old process ends what is still open.
func TestUpgradeDrainTimeout(t *testing.T) {
	t.Parallel()
	p := install(t, "file", "upgrade_drain_timeout: 1s")
	p.start()
	l := p.line("open", nil)
	p.upgrade(p.cmd.Process.Pid)
	if err := l.ends(); err != nil {
		t.Error(err)
	}
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		t.Error("the old process stays")
	}
}

// A successor that dies takes the records with it. The old process, which still
// has streams, cannot hear of revocations any more: it ends the streams of
// people within max_stale, and lets go of nothing that another process needs.
func TestUpgradeSuccessorDies(t *testing.T) {
	t.Parallel()
	p := install(t, "file", "max_stale: 2s")
	p.start()
	ada := p.signIn()
	private, public := p.line("closed", ada.client.Jar), p.line("open", nil)
	p.upgrade(p.cmd.Process.Pid)
	p.check(private.goesOn())
	p.check(syscall.Kill(p.heirs()[0], syscall.SIGKILL))
	if err := private.ends(); err != nil {
		t.Errorf("nobody can say any more whether the session still is: %v", err)
	}
	p.check(public.goesOn())
	// What starts in its place has the records for itself, the session among
	// them; and the old process reads no configuration that nobody vouches for.
	other := exec.Command(filepath.Join(p.dir, "postern"), "--config", "config.yaml")
	other.Dir, other.Env = p.dir, p.cmd.Env
	other.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: p.group}
	p.check(other.Start())
	go other.Wait()
	p.until(20*time.Second, func() error {
		page, err := ada.visit(p.url("closed", "/"), "", "")
		if err == nil && page.StatusCode != 200 {
			err = fmt.Errorf("signed in before, now %s", page.Status)
		}
		return err
	})
	p.check(public.goesOn())
	p.configure("file", "max_stale: 2s\ntimeout_idle: soon", "allow_public_unauthenticated_access: true")
	if err := public.ends(); err != nil {
		t.Errorf("under a configuration that the old process cannot read: %v", err)
	}
}
