package certs

import (
	"crypto/tls"
	"net"
	"testing"

	"postern/internal/route"
)

// CVE-2026-32305 and CVE-2026-53622: a client certificate is asked for whatever
// the letter case of the server name and however the hello is cut up.
func TestCVE_2026_32305_FragmentedHello(t *testing.T) {
	ca := newIssuer(t, "clients", nil)
	_, server := ca.issue(t, nil, nil, "app.test", "other.test")
	cert, _ := ca.issue(t, nil, nil)
	rt := &route.Route{From: route.From{Host: "app.test"}}
	s := newSet(t, Options{Config: Config{Pairs: []KeyPair{server}}, RouteCAs: map[*route.Route][]byte{rt: ca.PEM}})
	for _, name := range []string{"app.test", "APP.test", "App.Test", "other.test"} {
		for _, piece := range []int{0, 1, 7, 100} {
			client := anyServer(name)
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
			state, err := shakeInPieces(s.TLSConfig(nil), client, piece)
			if err != nil {
				t.Errorf("%s in pieces of %d: %v", name, piece, err)
				continue
			}
			if asked := len(state.PeerCertificates) > 0; asked != (name != "other.test") {
				t.Errorf("%s in pieces of %d: asked for a certificate: %v", name, piece, asked)
			}
		}
	}
}

// shakeInPieces is a handshake whose hello comes as many TLS records of piece
// bytes each, and byte by byte; 0 leaves it whole.
func shakeInPieces(server, client *tls.Config, piece int) (tls.ConnectionState, error) {
	near, far := net.Pipe()
	defer near.Close()
	go func() {
		c := tls.Client(&cutting{Conn: near, piece: piece}, client)
		c.Handshake()
		c.Read(make([]byte, 1))
	}()
	c := tls.Server(far, server)
	defer far.Close()
	err := c.Handshake()
	return c.ConnectionState(), err
}

type cutting struct {
	net.Conn
	piece int
	begun bool
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.begun || c.piece == 0 || len(p) < 5 || p[0] != 22 {
		return c.Conn.Write(p)
	}
	c.begun = true
	for rest := p[5:]; len(rest) > 0; {
		n := min(c.piece, len(rest))
		for _, b := range append([]byte{22, p[1], p[2], byte(n >> 8), byte(n)}, rest[:n]...) {
			if _, err := c.Conn.Write([]byte{b}); err != nil {
				return 0, err
			}
		}
		rest = rest[n:]
	}
	return len(p), nil
}
