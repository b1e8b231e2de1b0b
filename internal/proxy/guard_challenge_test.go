package proxy

import (
	"crypto/tls"
	"net"
	"net/http"
	"testing"
	"time"

	"postern/internal/certs"
)

// TestChallengeConnectionsEnd: an ACME server is asked for no client
// certificate, so nothing is served on its connection.
func TestChallengeConnectionsEnd(t *testing.T) {
	set, err := certs.New(certs.Options{Secret: []byte("secret")})
	if err != nil {
		t.Fatal(err)
	}
	config := set.TLSConfig([]string{certs.ALPNChallenge, "http/1.1"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(ServeOptions{TLS: config, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })})
	go s.Serve(ln)
	defer s.Close()
	for protocol, served := range map[string]bool{certs.ALPNChallenge: false, "http/1.1": true} {
		c, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}})
		if err != nil || c.ConnectionState().NegotiatedProtocol != protocol {
			t.Fatalf("%s: %v", protocol, err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		c.Write([]byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
		if n, _ := c.Read(make([]byte, 12)); (n > 0) != served {
			t.Errorf("%s: %d bytes of an answer", protocol, n)
		}
		c.Close()
	}
}
