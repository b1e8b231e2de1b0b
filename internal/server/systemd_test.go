package server

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The watchdog is told that all is well only while that is so: not after an
// error, and not while the check itself hangs.
func TestWatchdogRestsOnTheCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said := make(chan string, 1000)
	go func() {
		b := make([]byte, 256)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			said <- string(b[:n])
		}
	}()
	n := newNotifier([]string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=20000", "WATCHDOG_PID=7"}, 7, false)
	if newNotifier([]string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=20000", "WATCHDOG_PID=8"}, 7, false).every != 0 {
		t.Error("the watchdog of another process is answered")
	}
	var state atomic.Int32 // 0 well, 1 an error, 2 hangs
	release := make(chan struct{})
	failed := make(chan error, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	var background sync.WaitGroup
	n.watchdog(ctx, &background, func() error {
		switch state.Load() {
		case 1:
			return errors.New("an accept loop stands still")
		case 2:
			<-release
		}
		return nil
	}, func(err error) { failed <- err })
	defer func() { close(release); cancel(); background.Wait() }()

	if s := <-said; s != "WATCHDOG=1" {
		t.Error(s)
	}
	for i, words := range []string{"stands still", "does not end"} {
		state.Store(int32(i + 1))
		for err := range failed {
			if strings.Contains(err.Error(), words) {
				break
			}
		}
		for len(said) > 0 { // of before
			<-said
		}
		<-failed
		<-failed
		if len(said) > 0 {
			t.Errorf("%s: all is well, it said", words)
		}
	}
}

// The check sees a loop that accepts no more.
func TestStuckAcceptLoop(t *testing.T) {
	var d doors
	d.main = &door{name: "main"}
	d.main.beat.Store(time.Now().UnixNano())
	if err := d.live(stuckAfter); err != nil {
		t.Error(err)
	}
	d.main.beat.Store(time.Now().Add(-time.Minute).UnixNano())
	if err := d.live(stuckAfter); err == nil || !strings.Contains(err.Error(), "main") {
		t.Error(err)
	}
}

// Sockets that are not what they are called are refused with what to do.
func TestActivationRefuses(t *testing.T) {
	var g given
	for say, env := range map[string][]string{
		"is not a number":     {"LISTEN_PID=7", "LISTEN_FDS=many"},
		"FileDescriptorName=": {"LISTEN_PID=7", "LISTEN_FDS=2", "LISTEN_FDNAMES=unknown:main"},
	} {
		if err := g.activate(env, 7); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("%v: %v", env, err)
		}
	}
	if err := g.activate([]string{"LISTEN_PID=8", "LISTEN_FDS=many"}, 7); err != nil {
		t.Errorf("sockets of another process: %v", err)
	}
}
