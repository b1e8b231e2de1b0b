package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"postern/internal/proxy"
)

// udpDoors is the UDP side of the main listener, there while codec_type is
// http3. As with TCP the socket stays bound over changes, and what serves its
// connections is exchanged. It is used under doors.mu.
//
// What TCP can and UDP cannot is two processes at one socket: each would get
// some of the packets of both. In an upgrade the old process closes it, and the
// new one waits for that: clients of HTTP/3 come again, over TCP meanwhile.
type udpDoors struct {
	now     *udpDoor
	leaving []*udpDoor // no more connections; those that are open go on
}

// udpDoor is one UDP socket.
type udpDoor struct {
	addr string
	// server is read while doors.mu may be held by whoever stops the listener.
	server atomic.Pointer[proxy.Server]

	mu       sync.Mutex
	listener *proxy.QUICListener // nil while it waits for the socket
	gone     bool
}

// plan binds the UDP socket beside the TCP address at if c wants it; with
// patient, the socket may be another's for a while. commit lets server have
// its connections; undo is for the case that something else fails.
func (u *udpDoors) plan(c *proxy.Config, at net.Addr, patient bool, log *slog.Logger) (commit func(server *proxy.Server), undo func(), err error) {
	want := ""
	if at != nil && c.CodecType == "http3" && !c.InsecureServer {
		want = at.String()
	}
	nothing := func() {}
	old := u.now
	switch {
	case old == nil && want == "":
		return func(*proxy.Server) {}, nothing, nil
	case old != nil && old.addr == want:
		return func(server *proxy.Server) { old.server.Store(server) }, nothing, nil
	}
	var next *udpDoor
	wait := false
	if want != "" {
		u.clear(want)
		next = &udpDoor{addr: want}
		if err := next.bind(); err != nil {
			if wait = patient && errors.Is(err, syscall.EADDRINUSE); !wait {
				return nil, nil, err
			}
		}
	}
	undo = func() {
		if next != nil {
			next.close()
		}
	}
	return func(server *proxy.Server) {
		u.now = next
		if next != nil {
			next.server.Store(server)
			if wait {
				go next.await(log)
			} else {
				go next.listener.Serve()
			}
		}
		if old != nil {
			u.leaving = append(u.leaving, old)
			go old.retire(context.Background()) // streams that are allowed may stay
		}
	}, undo, nil
}

// clear forgets sockets that are closed, and closes the one at addr, which is
// wanted again.
func (u *udpDoors) clear(addr string) {
	kept := u.leaving[:0]
	for _, l := range u.leaving {
		if l.addr == addr {
			l.close()
		} else if !l.isGone() {
			kept = append(kept, l)
		}
	}
	u.leaving = kept
}

// bind opens the socket.
func (d *udpDoor) bind() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return net.ErrClosed
	}
	pc, err := net.ListenPacket("udp", d.addr)
	if err == nil {
		if d.listener, err = proxy.ListenQUIC(pc, d.server.Load); err != nil {
			pc.Close()
		}
	}
	if err == nil {
		return nil
	}
	hint := "choose codec_type auto, or another address"
	if errors.Is(err, syscall.EADDRINUSE) {
		hint = "stop the program that uses this UDP port, choose another address, or codec_type auto"
	}
	return fmt.Errorf("codec_type http3: address %s cannot be listened on over UDP: %w; %s", d.addr, err, hint)
}

// await binds the socket once whoever has it lets go.
func (d *udpDoor) await(log *slog.Logger) {
	for tries := 1; ; tries++ {
		err := d.bind()
		if err == nil {
			d.mu.Lock()
			l := d.listener
			d.mu.Unlock()
			if l != nil {
				l.Serve()
			}
			return
		}
		if d.isGone() {
			return
		}
		if tries%600 == 0 {
			log.Warn("HTTP/3 is not served yet", "error", err.Error())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (d *udpDoor) isGone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// retire takes no more connections and closes the socket once all are gone.
func (d *udpDoor) retire(ctx context.Context) {
	d.mu.Lock()
	l := d.listener
	d.mu.Unlock()
	if l != nil {
		l.Retire(ctx)
	}
	d.close()
}

// stop takes no more connections.
func (d *udpDoor) stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener != nil {
		d.listener.Stop()
	}
}

// close ends everything at once.
func (d *udpDoor) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone = true; d.listener != nil {
		d.listener.Close()
		d.listener = nil
	}
}

// stop takes no more connections.
func (u *udpDoors) stop() {
	if u.now != nil {
		u.now.stop()
	}
}

// handOver ends HTTP/3 in this process, politely but soon: another process
// waits for the socket. It is called without doors.mu.
func (d *udpDoor) handOver(ctx context.Context) {
	if d == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	d.stop()
	if s := d.server.Load(); s != nil {
		s.LeaveUDP()
	}
	d.retire(ctx)
}

// close ends everything at once.
func (u *udpDoors) close() {
	for _, l := range append(u.leaving, u.now) {
		if l != nil {
			l.close()
		}
	}
	u.now, u.leaving = nil, nil
}

// altSvc tells clients of TCP where HTTP/3 is; "" is nothing.
func altSvc(c *proxy.Config, at net.Addr) string {
	if c.CodecType != "http3" || c.InsecureServer {
		return ""
	}
	port := int(c.HTTP3AdvertisePort)
	if port == 0 {
		if t, ok := at.(*net.TCPAddr); ok {
			port = t.Port
		}
	}
	if port == 0 {
		return ""
	}
	return `h3=":` + strconv.Itoa(port) + `"; ma=86400`
}
