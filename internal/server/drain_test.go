package server

import (
	"log/slog"
	"net"
	"testing"
	"time"

	"postern/internal/proxy"
)

// TestNobodyVouchesForADrainingProcess: a process that drains after an upgrade
// and cannot read the configuration ends its streams, also where its successor
// is gone and cannot be asked.
func TestNobodyVouchesForADrainingProcess(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ours, theirs := net.Pipe()
	theirs.Close()
	gone := &successor{conn: ours, ended: make(chan struct{})}
	close(gone.ended)
	s := &Server{log: slog.New(slog.DiscardHandler)}
	s.doors.main = &door{name: "main", ln: ln, server: proxy.NewServer(proxy.ServeOptions{})}
	s.superseded(t.Context()) // nobody has taken over
	if err := ln.(*net.TCPListener).SetDeadline(time.Now()); err != nil {
		t.Fatalf("without an upgrade the process ends what it serves: %v", err)
	}
	s.successor.Store(gone)
	s.superseded(t.Context())
	if err := ln.(*net.TCPListener).SetDeadline(time.Now()); err == nil {
		t.Error("what is open goes on, and nobody knows under which rules")
	}
}
