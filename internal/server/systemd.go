package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifier tells systemd how the service is (sd_notify(3)): READY=1 once it
// serves, RELOADING=1 while it takes a change in, MAINPID= when another process
// takes over, STOPPING=1 when it drains, WATCHDOG=1 in between as often as
// asked. A nil notifier says nothing.
type notifier struct {
	socket string
	every  time.Duration // 0: no watchdog
	mu     sync.Mutex
	silent bool // another process speaks for the service
}

// newNotifier reads NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; nil where no
// service manager listens. A successor speaks only once it has taken over.
func newNotifier(env []string, pid int, successor bool) *notifier {
	vars := environ(env)
	socket := vars["NOTIFY_SOCKET"]
	if socket == "" {
		return nil
	}
	n := &notifier{socket: socket, silent: successor}
	if strings.HasPrefix(socket, "@") { // abstract
		n.socket = "\x00" + socket[1:]
	}
	if p := vars["WATCHDOG_PID"]; p == "" || p == strconv.Itoa(pid) {
		if usec, err := strconv.ParseInt(vars["WATCHDOG_USEC"], 10, 64); err == nil && usec > 0 {
			n.every = time.Duration(usec) * time.Microsecond / 2
		}
	}
	return n
}

func environ(env []string) map[string]string {
	vars := map[string]string{}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		vars[name] = value
	}
	return vars
}

// send writes one message. It is a courtesy: failing changes nothing.
func (n *notifier) send(state ...string) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte(strings.Join(state, "\n")))
}

// reloading says that a change is being taken in; ready must follow.
func (n *notifier) reloading() {
	var ts unix.Timespec
	if n == nil || unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return
	}
	n.send("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", ts.Nano()/1000))
}

// hush ends what this process says (or, with false, begins it): another one
// speaks for the service.
func (n *notifier) hush(silent bool) {
	if n == nil {
		return
	}
	n.mu.Lock()
	n.silent = silent
	n.mu.Unlock()
}

// watchdog reports as often as the service manager asks, as long as alive
// returns in time and gives no error. Otherwise the manager restarts the
// service.
func (n *notifier) watchdog(ctx context.Context, background *sync.WaitGroup, alive func() error, failed func(error)) {
	if n == nil || n.every <= 0 {
		return
	}
	background.Go(func() {
		tick := time.NewTicker(n.every)
		defer tick.Stop()
		answer := make(chan error, 1)
		asked := false
		for {
			if !asked {
				asked = true
				go func() { answer <- alive() }()
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			select {
			case err := <-answer:
				asked = false
				if err == nil {
					n.send("WATCHDOG=1")
				} else {
					failed(err)
				}
			default:
				failed(errors.New("the check of the program's own parts does not end"))
			}
		}
	})
}

// stuckAfter is how long an accept loop may stand still. It goes round once in
// beatEvery.
const stuckAfter = 5 * time.Second

// alive is what the watchdog rests on: every accept loop goes round, and the
// locks that each request, stream and change of the listeners takes are free.
// It is about this process only: that an upstream, a provider or the records
// do not answer is no reason to start anew, and shows in readiness instead.
func (s *Server) alive() error {
	if err := s.doors.live(stuckAfter); err != nil {
		return err
	}
	if s.current.Load() == nil {
		return errors.New("nothing is configured")
	}
	_ = s.engine.Streams()
	_ = s.health.Statuses()
	return nil
}

// given are listening sockets that were open before this process began: from
// systemd (socket activation), or from the process that this one follows.
type given struct {
	mu   sync.Mutex
	list []*givenSocket
}

type givenSocket struct {
	name string // main, redirect, health, metrics
	addr string // as configured where it was bound; "" fits any
	ln   net.Listener
}

// givenNames are the names that sockets may have.
var givenNames = []string{"main", "redirect", "health", "metrics"}

// take gives the socket of this name, once.
func (g *given) take(name, addr string) net.Listener {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, x := range g.list {
		if x.name == name && (x.addr == "" || x.addr == addr) {
			g.list = slices.Delete(g.list, i, i+1)
			return x.ln
		}
	}
	return nil
}

// closeRest closes what nobody took and names it.
func (g *given) closeRest() (names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, x := range g.list {
		names = append(names, x.name)
		x.ln.Close()
	}
	g.list = nil
	return names
}

// add makes a listener of an inherited descriptor.
func (g *given) add(name, addr string, fd int) error {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return fmt.Errorf("the socket %s (descriptor %d) is not open", name, fd)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return fmt.Errorf("the socket %s (descriptor %d) is not a listening one: %w; use ListenStream= in its unit", name, fd, err)
	}
	if _, ok := ln.(*net.TCPListener); !ok {
		ln.Close()
		return fmt.Errorf("the socket %s (descriptor %d) is not TCP; give a port to ListenStream= in its unit", name, fd)
	}
	g.list = append(g.list, &givenSocket{name, addr, ln})
	return nil
}

// activate reads the sockets that systemd opened (sd_listen_fds(3)). They are
// told apart by FileDescriptorName=; a single one without a known name is the
// main listener.
func (g *given) activate(env []string, pid int) error {
	vars := environ(env)
	if vars["LISTEN_PID"] != strconv.Itoa(pid) {
		return nil
	}
	n, err := strconv.Atoi(vars["LISTEN_FDS"])
	if err != nil || n < 0 || n > 64 {
		return fmt.Errorf("LISTEN_FDS=%q is not a number of sockets; leave it to the service manager", vars["LISTEN_FDS"])
	}
	var names []string
	if list := vars["LISTEN_FDNAMES"]; list != "" {
		names = strings.Split(list, ":")
	}
	const first = 3 // SD_LISTEN_FDS_START
	for i := range n {
		name := ""
		if i < len(names) {
			name = names[i]
		}
		if !slices.Contains(givenNames, name) {
			if n > 1 {
				return fmt.Errorf("socket %d of %d from the service manager is called %q; set FileDescriptorName= in its unit to %s", i+1, n, name, strings.Join(givenNames, ", "))
			}
			name = "main"
		}
		if err := g.add(name, "", first+i); err != nil {
			return err
		}
	}
	return nil
}
