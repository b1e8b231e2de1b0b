package system

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/coder/websocket"
)

// echo is an upstream that says what it was sent, as JSON. It speaks HTTP/1.1
// and, without TLS, HTTP/2; it has a WebSocket at /ws, server-sent events at
// /events, a gRPC conversation at /echo.Echo/Say, and counts bodies at /count.
func echo(name string) *httptest.Server {
	mux := http.NewServeMux()
	next := make(chan struct{}, 64)
	mux.HandleFunc("/events/next", func(http.ResponseWriter, *http.Request) { next <- struct{}{} })
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-next:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	})
	mux.HandleFunc("/echo.Echo/Say", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			http.Error(w, "gRPC needs HTTP/2, this is "+r.Proto, http.StatusUpgradeRequired)
			return
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		rc := http.NewResponseController(w)
		rc.Flush()
		b := make([]byte, 4096)
		for {
			n, err := r.Body.Read(b)
			w.Write(b[:n])
			rc.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set("Grpc-Status", "0")
	})
	mux.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "counted %d bytes, error %v\n", n, err)
	})
	say := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		for k, v := range r.URL.Query() {
			if h, ok := strings.CutPrefix(k, "respond-"); ok {
				w.Header().Set(h, v[0])
			}
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.Encode(map[string]any{"upstream": name, "protocol": r.Proto, "method": r.Method, "path": r.URL.EscapedPath(), "query": r.URL.RawQuery,
			"host": r.Host, "headers": r.Header, "body": string(b)})
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux alone would redirect paths that it finds untidy.
		if _, pattern := mux.Handler(r); pattern != "" && pattern == r.URL.Path {
			mux.ServeHTTP(w, r)
			return
		}
		say(w, r)
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	return srv
}
