package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"
)

// places are where an upstream listens.
type places struct{ HTTP, GRPC string }

// upstream is the application: HTTP with WebSockets that echo, and the gRPC
// project's own test service.
func upstream(ctx context.Context) error {
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	rpc, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	answer := []byte("a small answer, as most are\n")
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			echo(w, r)
			return
		}
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/plain")
		w.Write(answer)
	})}
	go srv.Serve(web)
	g := grpc.NewServer()
	grpc_testing.RegisterTestServiceServer(g, interop.NewTestServer())
	go g.Serve(rpc)
	if err := json.NewEncoder(os.Stdout).Encode(places{web.Addr().String(), rpc.Addr().String()}); err != nil {
		return err
	}
	// It ends with whoever started it.
	gone := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(gone) }()
	select {
	case <-ctx.Done():
	case <-gone:
	}
	return nil
}

// echo sends every WebSocket frame of up to 125 bytes back.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	go func() {
		defer conn.Close()
		conn.SetDeadline(time.Time{})
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			acceptKey(r.Header.Get("Sec-WebSocket-Key")))
		var b [2 + 4 + 125]byte
		for {
			op, text, err := readFrame(conn, &b)
			if err != nil || op == 8 {
				return
			}
			if writeFrame(conn, op, text, false) != nil {
				return
			}
		}
	}()
}
