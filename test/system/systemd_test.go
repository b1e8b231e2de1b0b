package system

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is what systemd is to a service: a notify socket.
type manager struct {
	t    *testing.T
	path string
	said chan string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "sd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &manager{t: t, path: filepath.Join(dir, "notify"), said: make(chan string, 1000)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	// The kernel says who sent a message, and systemd believes only that.
	raw, err := conn.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		b, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, on, _, _, err := conn.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			pid := int32(0)
			if list, err := unix.ParseSocketControlMessage(oob[:on]); err == nil {
				for _, c := range list {
					if cred, err := unix.ParseUnixCredentials(&c); err == nil {
						pid = cred.Pid
					}
				}
			}
			m.said <- fmt.Sprintf("%d: %s", pid, strings.ReplaceAll(string(b[:n]), "\n", " "))
		}
	}()
	return m
}

// hears waits for a message of a process with these words, past others, and
// fails at one with a word that must not come before.
func (m *manager) hears(pid int, words, never string) string {
	m.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case s := <-m.said:
			if strings.HasPrefix(s, strconv.Itoa(pid)+": ") && strings.Contains(s, words) {
				return s
			}
			if never != "" && strings.Contains(s, never) {
				m.t.Fatalf("heard %q while waiting for %q of process %d", s, words, pid)
			}
		case <-limit:
			m.t.Fatalf("process %d did not say %q", pid, words)
		}
	}
}

// systemd hears when the service is ready, reloads, is taken over by another
// process and stops; and the watchdog's ping, but not from a process whose
// accept loop is stopped.
func TestNotify(t *testing.T) {
	t.Parallel()
	m := newManager(t)
	p := install(t, "file", "")
	p.start("NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=400000")
	pid := p.cmd.Process.Pid
	if s := m.hears(pid, "READY=1", "STOPPING"); !strings.Contains(s, "STATUS=serving 2 routes") {
		t.Error(s)
	}
	m.hears(pid, "WATCHDOG=1", "")
	// A change, and a SIGHUP that changes nothing.
	p.configure("file", "timeout_idle: 4m", "allow_public_unauthenticated_access: true")
	usec := m.hears(pid, "RELOADING=1", "STOPPING")
	if _, after, ok := strings.Cut(usec, "MONOTONIC_USEC="); !ok || len(after) < 4 {
		t.Error(usec)
	}
	m.hears(pid, "READY=1", "STOPPING")
	p.check(p.cmd.Process.Signal(syscall.SIGHUP))
	m.hears(pid, "RELOADING=1", "STOPPING")
	m.hears(pid, "READY=1", "STOPPING")

	// The main process changes: first the old one says so, then the new one
	// speaks, and the old one is silent to its end.
	p.upgrade(pid)
	m.hears(pid, "MAINPID=", "STOPPING")
	heir := p.heirs()[0]
	m.hears(heir, "READY=1", "STOPPING")
	m.hears(heir, "WATCHDOG=1", "STOPPING")
	<-p.ended
	m.hears(heir, "WATCHDOG=1", fmt.Sprintf("%d: ", pid))
	p.check(syscall.Kill(heir, syscall.SIGTERM))
	m.hears(heir, "STOPPING=1", "")
}

// Sockets that the service manager opened are used by name, whatever the
// configuration says of addresses, survive an upgrade, and one that cannot be
// used stops the start.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	p := install(t, "file", "http_redirect_addr: 127.0.0.1:1")
	listen := func() *os.File {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		p.check(err)
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		p.check(err)
		t.Cleanup(func() { f.Close() })
		p.addr = ln.Addr().String()
		return f
	}
	redirect := listen()
	plain := p.addr
	// The shell becomes the program, so that LISTEN_PID can be its own.
	activate := func(names string, files ...*os.File) (*exec.Cmd, *os.File) {
		log, err := os.Create(filepath.Join(p.dir, "log"))
		p.check(err)
		cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec ./postern --config config.yaml`)
		cmd.Dir = p.dir
		cmd.Env = append(os.Environ(), "HOME="+p.dir, "LISTEN_FDS="+strconv.Itoa(len(files)), "LISTEN_FDNAMES="+names)
		cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = files, log, log
		return cmd, log
	}
	// One that the program has no use for under that name.
	cmd, log := activate("main:smtp", redirect, redirect)
	err := cmd.Run()
	log.Close()
	if err == nil || !strings.Contains(p.log(), "FileDescriptorName=") {
		t.Errorf("a socket called smtp: %v\n%s", err, p.log())
	}

	config, err := os.ReadFile(filepath.Join(p.dir, "config.yaml"))
	p.check(err)
	main := listen()
	_, port, _ := net.SplitHostPort(p.addr)
	old := strings.TrimPrefix(strings.SplitN(string(config), "\n", 2)[0], "address: 127.0.0.1:")
	text := strings.ReplaceAll(string(config), ".localhost:"+old, ".localhost:"+port)
	text = strings.Replace(text, "address: 127.0.0.1:"+old, "address: 127.0.0.1:2", 1) // neither can be bound by chance
	p.check(os.WriteFile(filepath.Join(p.dir, "config.yaml"), []byte(text), 0o600))
	cmd, log = activate("redirect:main", redirect, main)
	defer log.Close()
	p.launch(cmd)
	check := func() {
		t.Helper()
		p.until(20*time.Second, func() error {
			tr := p.transport("h2")
			defer tr.CloseIdleConnections()
			res, err := (&http.Client{Transport: tr}).Get(p.url("open", "/"))
			if err != nil {
				return err
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				err = fmt.Errorf("status %s", res.Status)
			}
			return err
		})
		c, err := net.DialTimeout("tcp", plain, 5*time.Second)
		p.check(err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: open.localhost\r\n\r\n")
		b := make([]byte, 64)
		n, err := c.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), "HTTP/1.1 30") {
			t.Errorf("the redirecting listener: %q, %v", b[:n], err)
		}
	}
	check()
	p.upgrade(cmd.Process.Pid)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		t.Error("the old process stays")
	}
	check()
}

var unitBlock = regexp.MustCompile("(?s)```ini\n# /etc/systemd/system/(\\S+)\n(.*?)```")

// The units of the operator's page are ones that systemd takes.
func TestDocumentedUnits(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(top, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := []string{"verify"}
	for _, m := range unitBlock.FindAllStringSubmatch(string(page), -1) {
		// It looks for the program, too.
		text := strings.ReplaceAll(m[2], "/usr/local/bin/postern", program)
		file := filepath.Join(dir, m[1])
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	if len(files) != 3 {
		t.Fatalf("%d units on the page", len(files)-1)
	}
	out, err := exec.Command("systemd-analyze", files...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
