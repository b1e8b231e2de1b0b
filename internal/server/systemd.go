package server

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// notifier tells systemd how the service is (sd_notify(3)): READY=1 once it
// serves, STOPPING=1 when it drains, WATCHDOG=1 in between as often as asked.
// A nil notifier says nothing.
type notifier struct {
	socket string
	every  time.Duration // 0: no watchdog
}

// newNotifier reads NOTIFY_SOCKET and WATCHDOG_USEC; nil where no service
// manager listens.
func newNotifier(env []string) *notifier {
	vars := map[string]string{}
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		vars[name] = value
	}
	socket := vars["NOTIFY_SOCKET"]
	if socket == "" {
		return nil
	}
	n := &notifier{socket: socket}
	if strings.HasPrefix(socket, "@") { // abstract
		n.socket = "\x00" + socket[1:]
	}
	if usec, err := strconv.ParseInt(vars["WATCHDOG_USEC"], 10, 64); err == nil && usec > 0 {
		n.every = time.Duration(usec) * time.Microsecond / 2
	}
	return n
}

// send writes one message. It is a courtesy: failing changes nothing.
func (n *notifier) send(state string) {
	if n == nil {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.Write([]byte(state))
}

// watchdog reports as often as the service manager asks, as long as well
// gives no error; then the manager restarts the service.
func (n *notifier) watchdog(ctx context.Context, background *sync.WaitGroup, well func() error) {
	if n == nil || n.every <= 0 {
		return
	}
	background.Add(1)
	go func() {
		defer background.Done()
		tick := time.NewTicker(n.every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if well() == nil {
					n.send("WATCHDOG=1")
				}
			}
		}
	}()
}
