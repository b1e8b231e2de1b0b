package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"postern/internal/config"
	"postern/internal/store"
	"postern/internal/store/handover"
)

// An upgrade in place: SIGUSR2 starts the program again from its file, which
// may be a new version by then. The old process leads the new one, its heir,
// over a socket that both hold:
//
//	old                         heir
//	GET  /prepared   ->         configuration read and checked
//	     (the store is paused and closed)
//	POST /store      ->         the store is open; served under /records/
//	     (the old process goes on, with the store of the heir)
//	POST /serve      ->         records copied, all sockets bound
//	POST /commit     ->         control socket taken, sockets accepting,
//	                            READY=1 to systemd
//	     (the old process stops accepting and drains)
//
// Whatever fails before the last answer, the heir is killed, the store opened
// again and the old process goes on as if nothing had been.

// upgradeVar carries a bequest to the heir.
const upgradeVar = "POSTERN_UPGRADE"

// bequest is what an heir is given at its start.
type bequest struct {
	// Link is the descriptor of the socket to the old process.
	Link    int             `json:"link"`
	Sockets []bequestSocket `json:"sockets"`
	Control string          `json:"control,omitempty"` // path of the control socket that is to be replaced
	Storage [2]string       `json:"storage"`           // where the records are (storagePlace)
}

type bequestSocket struct {
	Name string `json:"name"`
	Addr string `json:"addr"` // as configured
	FD   int    `json:"fd"`
}

// storagePlace is what two processes must agree on to hand records over: the
// type of storage and its directory, or a hash of the connection string, which
// may hold a password.
func storagePlace(cfg *config.Config) [2]string {
	o := store.Options{Type: cfg.Store.Type, ConnectionString: cfg.Store.ConnectionString, DataDir: dataDir(cfg)}
	switch o.Type {
	case "", "memory":
		return [2]string{"memory"}
	case "file":
		dir, err := o.Dir()
		if err != nil {
			dir = err.Error()
		}
		return [2]string{o.Type, dir}
	}
	sum := sha256.Sum256([]byte(o.ConnectionString))
	return [2]string{o.Type, hex.EncodeToString(sum[:8])}
}

// Times of an upgrade that no setting changes.
const (
	// storeTimeout bounds how long the store may be shut for writes. Decisions
	// rest on copies meanwhile, which are good for max_stale.
	storeTimeout = 8 * time.Second
	// commitTimeout bounds the last step, which does next to nothing.
	commitTimeout = 5 * time.Second
)

// Upgrade starts the program from its file and lets it take over. It returns
// nil once this process only drains; else nothing has changed, and the error
// says why.
func (s *Server) Upgrade(ctx context.Context) error {
	if !s.upgrading.TryLock() {
		return errors.New("an upgrade is under way already; wait for its end")
	}
	defer s.upgrading.Unlock()
	if s.successor.Load() != nil {
		return errors.New("another process has taken over already; signal that one")
	}
	if os.Getpid() == 1 {
		return errors.New("process 1 of a container cannot hand over, since its end is the container's; replace the container")
	}
	g := s.current.Load()
	program, err := programPath(s.program)
	if err != nil {
		return err
	}
	limit := g.cfg.Control.UpgradeTimeout
	s.log.Info("upgrading in place", "program", program, "up_to", limit.String())
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the new program was not ready within %s (upgrade_timeout)", limit))
	defer cancel()
	h, err := s.startSuccessor(ctx, program)
	if err != nil {
		return err
	}
	err = s.handOver(ctx, h, g.cfg)
	if err == nil {
		return nil
	}
	h.kill()
	if h.status != "" && h.gone() {
		err = fmt.Errorf("%w (the new program: %s)", err, h.status)
	}
	return err
}

// successor is the heir as the old process sees it.
type successor struct {
	pid    int
	conn   net.Conn
	http   *http.ClientConn
	ended  chan struct{}
	status string // how it ended; read after ended is closed
}

// programPath is the file to start: the one that this process was started by,
// looked up again, so that a replaced file or a link that points elsewhere
// counts.
func programPath(invoked string) (string, error) {
	if invoked == "" {
		p, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("the program's own file is not known: %w; restart instead", err)
		}
		invoked = p
	}
	if fi, err := os.Stat(invoked); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
		return "", fmt.Errorf("there is no program to start at %s; put the new one there", invoked)
	}
	return invoked, nil
}

// invokedAs is the absolute path that this process was started by, symbolic
// links and all; "" if its file cannot be found that way.
func invokedAs() string {
	if len(os.Args) == 0 {
		return ""
	}
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		return ""
	}
	if path, err = filepath.Abs(path); err != nil {
		return ""
	}
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	a, errA := os.Stat(path)
	b, errB := os.Stat(self)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return ""
	}
	return path
}

func (s *Server) startSuccessor(ctx context.Context, program string) (*successor, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("no socket to the new program: %w; try again", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "successor")
	defer ours.Close()
	defer unix.Close(pair[1])
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}

	// The descriptors are passed by number: os/exec would make them blocking,
	// and with them the sockets that this process accepts on.
	files := []uintptr{0, 1, 2, uintptr(pair[1])}
	b := bequest{Link: 3, Storage: s.place}
	s.doors.mu.Lock()
	if c := s.doors.control; c != nil {
		b.Control = c.path
	}
	sockets := s.doors.sockets()
	s.doors.mu.Unlock()
	for _, x := range sockets {
		fd, err := duplicate(x.ln)
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("the socket %s cannot be handed over: %w", x.name, err)
		}
		defer unix.Close(fd)
		b.Sockets = append(b.Sockets, bequestSocket{x.name, x.addr, len(files)})
		files = append(files, uintptr(fd))
	}
	text, err := json.Marshal(b)
	if err != nil {
		conn.Close()
		return nil, err
	}
	env := append(withoutUpgrade(s.o.Env), upgradeVar+"="+string(text))
	pid, err := syscall.ForkExec(program, os.Args, &syscall.ProcAttr{Env: env, Files: files})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s cannot be started: %w; put a program for this machine there", program, err)
	}
	h := &successor{pid: pid, conn: conn, ended: make(chan struct{})}
	go func() {
		defer close(h.ended)
		p, err := os.FindProcess(pid)
		if err == nil {
			var st *os.ProcessState
			if st, err = p.Wait(); err == nil {
				h.status = st.String()
			}
		}
		conn.Close()
	}()
	if h.http, err = handover.Dial(ctx, conn); err != nil {
		if h.kill(); h.status != "" {
			err = fmt.Errorf("%w (the new program: %s)", err, h.status)
		}
		return nil, fmt.Errorf("the new program ended before it spoke: %w", err)
	}
	return h, nil
}

// withoutUpgrade leaves out what is only true of this process.
func withoutUpgrade(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		switch name {
		case upgradeVar, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID":
			return true
		}
		return false
	})
}

func duplicate(ln net.Listener) (fd int, err error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return 0, errors.New("it has no descriptor")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return 0, cerr
	}
	return fd, err
}

// sockets are the bound ones; d.mu is held.
func (d *doors) sockets() (out []*innerDoor) {
	for _, x := range []*door{d.main, d.plain} {
		if x != nil {
			out = append(out, &innerDoor{name: x.name, addr: x.addr, ln: x.ln})
		}
	}
	return append(out, d.others...)
}

func (h *successor) gone() bool {
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

// kill ends an heir that will not take over, and waits until it is gone, so
// that nothing it holds is held any more.
func (h *successor) kill() {
	if !h.gone() {
		syscall.Kill(h.pid, syscall.SIGKILL)
	}
	<-h.ended
	if h.http != nil {
		h.http.Close()
	}
}

// ask makes one step. What the heir answers other than 200 is its reason.
func (h *successor) ask(ctx context.Context, method, path string, body io.Reader) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-h.ended:
			cancel(errors.New("the new program ended"))
		case <-stop:
		}
	}()
	req, err := http.NewRequestWithContext(ctx, method, "http://successor"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := h.http.RoundTrip(req)
	if err != nil {
		// The end of the process is the better reason, and may be told of a
		// moment after its connection.
		select {
		case <-h.ended:
			return nil, errors.New("the new program ended")
		case <-time.After(200 * time.Millisecond):
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, fmt.Errorf("the new program does not answer: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("the new program does not answer: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the new program refuses: %s", strings.TrimSpace(string(text)))
	}
	return text, nil
}

// handOver leads the heir through its steps.
func (s *Server) handOver(ctx context.Context, h *successor, cfg *config.Config) error {
	if _, err := h.ask(ctx, http.MethodGet, "/prepared", nil); err != nil {
		return err
	}
	back, settle, err := s.moveStore(ctx, h)
	if err != nil {
		return err
	}
	if _, err := h.ask(ctx, http.MethodPost, "/serve", nil); err != nil {
		back()
		return err
	}
	last, cancel := context.WithTimeoutCause(ctx, commitTimeout, errors.New("the new program does not take over"))
	defer cancel()
	s.systemd.send(fmt.Sprintf("MAINPID=%d", h.pid))
	if _, err := h.ask(last, http.MethodPost, "/commit", nil); err != nil {
		back()
		s.systemd.send(fmt.Sprintf("MAINPID=%d", os.Getpid()), "READY=1")
		s.doors.reclaimControl(s)
		return err
	}
	settle()
	s.systemd.hush(true)
	s.change.Lock()
	s.successor.Store(h)
	if g := s.current.Load(); g != nil {
		g.stop() // what runs in the background runs over there now
	}
	s.change.Unlock()
	s.log.Info("another process has taken over; open streams may finish", "pid", h.pid, "up_to", cfg.Control.UpgradeDrainTimeout.String())
	close(s.upgraded)
	return nil
}

// moveStore gives the records to the heir and goes on with them over there:
// settle does what is left of that once the heir has taken over. back kills the
// heir and takes them again, after a failure.
func (s *Server) moveStore(ctx context.Context, h *successor) (back, settle func(), err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, storeTimeout, fmt.Errorf("the records did not change hands within %s", storeTimeout))
	defer cancel()
	m := s.store.(*handover.Movable)
	inner, err := m.Pause(ctx)
	if err != nil {
		return nil, nil, err
	}
	memory := s.storage != "file" // postgres: nothing to move, and nothing is
	again := func() {
		h.kill()
		if memory {
			m.Resume(inner)
			return
		}
		s.reopenStore(m)
	}
	var will bytes.Buffer
	fmt.Fprintf(&will, "%x\n", s.secret.Reveal())
	if memory {
		err = store.Carry(inner, &will)
	} else {
		err = inner.Close()
	}
	if err == nil {
		_, err = h.ask(ctx, http.MethodPost, "/store", &will)
	}
	if err != nil {
		again()
		return nil, nil, err
	}
	remote := handover.NewRemote(h.http, "http://successor/records")
	if memory {
		// What the heir writes from here on would be lost with it, so this
		// process waits for the end of the upgrade before it writes on.
		return again, func() {
			inner.Close()
			m.Resume(remote)
		}, nil
	}
	m.Resume(remote)
	return func() {
		h.kill()
		pause, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		if _, err := m.Pause(pause); err != nil { // calls to a dead heir end at once
			s.log.Error("the records cannot be taken back", "error", err)
			return
		}
		remote.Close()
		s.reopenStore(m)
	}, func() {}, nil
}

// reopenStore opens the records of this process again, after an heir that
// failed is gone. Until that works, calls wait and then are refused.
func (s *Server) reopenStore(m *handover.Movable) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		st, err := store.Open(context.Background(), s.storeOptions)
		if err == nil {
			m.Resume(st)
			return
		}
		s.log.Error("the records cannot be opened again after an upgrade that failed; trying on", "error", err)
		select {
		case <-s.ending:
			return
		case <-time.After(wait):
		}
	}
}

// reclaimControl puts the control socket back where an heir has replaced it.
func (d *doors) reclaimControl(s *Server) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.control
	if c == nil {
		return
	}
	if fi, err := os.Lstat(c.path); err == nil && os.SameFile(fi, c.file) {
		return
	}
	c.http.Close()
	next, err := startControl(s, c.path, false)
	if err != nil {
		s.log.Error("the control socket is lost", "error", err)
		return
	}
	d.control = next
}

// supersedes asks the heir whether a configuration that this process refuses
// serves there.
func (h *successor) supersedes(ctx context.Context) bool {
	_, err := h.ask(ctx, http.MethodPost, "/reload", nil)
	return err == nil
}
