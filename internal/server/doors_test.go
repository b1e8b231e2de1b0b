package server

import (
	"net"
	"net/http"
	"testing"
	"time"

	"postern/internal/proxy"
)

// TestAnHeirTakesNoConnectionTooEarly: until it has taken over, connections
// wait for the old process; from then on none is lost.
func TestAnHeirTakesNoConnectionTooEarly(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := ln.(*net.TCPListener).File() // the old process's
	if err != nil {
		t.Fatal(err)
	}
	old, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	old.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second))
	d := &doors{hold: make(chan struct{})}
	d.main = &door{name: "main", ln: ln, accepted: make(chan struct{}), hold: d.hold}
	d.main.exchange("", proxy.NewServer(proxy.ServeOptions{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}))
	go d.main.accept(make(chan error, 1))
	defer d.close()
	for i := range 20 {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := old.Accept(); err != nil {
			t.Fatalf("a connection does not come to the old process: %v", err)
		}
		if n := d.main.server.Connections(); n != 0 {
			t.Fatalf("of %d connections the heir has %d", i+1, n)
		}
	}
	answer := make(chan error, 1)
	go func() {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + ln.Addr().String())
		if err == nil {
			res.Body.Close()
		}
		answer <- err
	}()
	d.open()
	if err := <-answer; err != nil {
		t.Errorf("after the heir took over: %v", err)
	}
}
