package servertest

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Seen is what the application saw of a request; it answers with this.
type Seen struct {
	App, Method, Host, Path, Query, Proto, Body, SNI, ClientCert string
	Headers                                                      http.Header
}

// Header gives the first value that the application saw.
func (s Seen) Header(name string) string { return s.Headers.Get(name) }

// App is an application that echoes. Parameters of the query command it:
// status=N, header=Name:Value (any number), wait=DURATION before it answers,
// pause=DURATION in the middle of the body.
type App struct {
	*httptest.Server
	Name        string
	Connections atomic.Int64 // ever accepted
	Requests    atomic.Int64
}

// NewApp starts an application over HTTP; it ends with the test.
func NewApp(t testing.TB, name string) *App {
	a := newApp(name)
	a.Server.Start()
	t.Cleanup(a.end)
	return a
}

// NewTLSApp starts one over HTTPS.
func NewTLSApp(t testing.TB, name string, c *tls.Config) *App {
	a := newApp(name)
	a.Server.TLS = c
	a.Server.EnableHTTP2 = true
	a.Server.StartTLS()
	t.Cleanup(a.end)
	return a
}

func (a *App) end() {
	a.CloseClientConnections()
	a.Close()
}

func newApp(name string) *App {
	a := &App{Name: name}
	a.Server = httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	a.Server.Config.ErrorLog = log.New(io.Discard, "", 0) // tests shake wrong hands on purpose
	a.Server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			a.Connections.Add(1)
		}
	}
	return a
}

func (a *App) serve(w http.ResponseWriter, r *http.Request) {
	a.Requests.Add(1)
	if up := r.Header.Get("Upgrade"); up != "" {
		upgrade(w, up, r.Header.Get("Sec-Websocket-Key"))
		return
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	s := Seen{App: a.Name, Method: r.Method, Host: r.Host, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Proto: r.Proto,
		Body: string(body), Headers: r.Header}
	if r.TLS != nil {
		s.SNI = r.TLS.ServerName
		if len(r.TLS.PeerCertificates) > 0 {
			s.ClientCert = r.TLS.PeerCertificates[0].Subject.CommonName
		}
	}
	q := r.URL.Query()
	wait := func(key string) bool {
		d, err := time.ParseDuration(q.Get(key))
		if err != nil {
			return true
		}
		select {
		case <-time.After(d):
			return true
		case <-r.Context().Done():
			return false
		}
	}
	if !wait("wait") {
		return
	}
	for _, h := range q["header"] {
		k, v, _ := strings.Cut(h, ":")
		w.Header().Add(k, v)
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	if n, err := strconv.Atoi(q.Get("status")); err == nil {
		w.WriteHeader(n)
	}
	b, _ := json.Marshal(s)
	if q.Get("pause") != "" {
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		if !wait("pause") {
			return
		}
		b = b[len(b)/2:]
	}
	w.Write(b)
}

// upgrade agrees to every protocol and sends lines back.
func upgrade(w http.ResponseWriter, protocol, key string) {
	c, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+
		"\r\nSec-WebSocket-Accept: "+base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n")
	for in := bufio.NewReader(rw); ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, line); err != nil {
			return
		}
	}
}
