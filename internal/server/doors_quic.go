package server

import (
	"context"
	"errors"
	"fmt"
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
type udpDoors struct {
	now     *udpDoor
	leaving []*udpDoor // no more connections; those that are open go on
}

// udpDoor is one UDP socket.
type udpDoor struct {
	addr     string
	listener *proxy.QUICListener
	// server is read while doors.mu may be held by whoever stops the listener.
	server atomic.Pointer[proxy.Server]
	gone   atomic.Bool
}

// plan binds the UDP socket beside the TCP address at if c wants it. commit
// lets server have its connections; undo is for the case that something else
// fails.
func (u *udpDoors) plan(c *proxy.Config, at net.Addr) (commit func(server *proxy.Server), undo func(), err error) {
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
	if want != "" {
		pc, err := u.bind(want)
		if err != nil {
			return nil, nil, err
		}
		next = &udpDoor{addr: want}
		if next.listener, err = proxy.ListenQUIC(pc, next.server.Load); err != nil {
			pc.Close()
			return nil, nil, fmt.Errorf("codec_type http3: QUIC cannot be spoken on udp %s: %w; choose codec_type auto", want, err)
		}
		undo = func() { next.listener.Close() }
	} else {
		undo = nothing
	}
	return func(server *proxy.Server) {
		u.now = next
		if next != nil {
			next.server.Store(server)
			go next.listener.Serve()
		}
		if old != nil {
			u.leaving = append(u.leaving, old)
			go old.retire()
		}
	}, undo, nil
}

// bind opens a UDP socket.
func (u *udpDoors) bind(addr string) (net.PacketConn, error) {
	kept := u.leaving[:0]
	for _, l := range u.leaving {
		switch {
		case l.gone.Load():
		case l.addr == addr:
			l.listener.Close() // it is wanted again
		default:
			kept = append(kept, l)
		}
	}
	u.leaving = kept
	pc, err := net.ListenPacket("udp", addr)
	if err == nil {
		return pc, nil
	}
	hint := "choose codec_type auto, or another address"
	if errors.Is(err, syscall.EADDRINUSE) {
		hint = "stop the program that uses this UDP port, choose another address, or codec_type auto"
	}
	return nil, fmt.Errorf("codec_type http3: address %s cannot be listened on over UDP: %w; %s", addr, err, hint)
}

// retire takes no more connections and closes the socket once all are gone.
func (d *udpDoor) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	d.listener.Retire(ctx)
	d.gone.Store(true)
}

// stop takes no more connections.
func (u *udpDoors) stop() {
	if u.now != nil {
		u.now.listener.Stop()
	}
}

// close ends everything at once.
func (u *udpDoors) close() {
	var all sync.WaitGroup
	for _, l := range append(u.leaving, u.now) {
		if l != nil {
			all.Go(func() { l.listener.Close() })
		}
	}
	all.Wait()
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
