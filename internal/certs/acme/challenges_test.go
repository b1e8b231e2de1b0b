package acme

import (
	"context"
	"crypto/tls"
	"io/fs"
	"net"
	"testing"

	"github.com/mholt/acmez/v3/acme"

	"postern/internal/certs"
)

// slowStorage counts what it is asked, and whether whoever asks has let go.
type slowStorage struct {
	nowhere
	conn         *waitingConn
	loads, early int
}

func (s *slowStorage) Load(context.Context, string) ([]byte, error) {
	s.loads++
	if !s.conn.waits {
		s.early++
	}
	return nil, fs.ErrNotExist
}

type waitingConn struct {
	net.Conn
	waits bool
}

func (c *waitingConn) HandshakeWaits() { c.waits = true }

// A stranger's hello may make the storage be asked; it holds nothing that
// other handshakes need while the answer is on its way. For a wildcard, whose
// proof is in DNS, nothing is asked.
func TestChallengeLookupsHoldNothing(t *testing.T) {
	m := New(Options{})
	defer m.Close()
	storage := &slowStorage{conn: &waitingConn{}}
	m.mu.Lock()
	m.setup = &setup{storage: storage, issuer: &issuer{challenges: []string{acme.ChallengeTypeTLSALPN01}}}
	for _, name := range []string{"a.zt.test", "*.wild.test"} {
		m.hosts[name] = &host{name: name, busy: true}
	}
	m.mu.Unlock()
	ask := func(name string) {
		hello := &tls.ClientHelloInfo{ServerName: name, SupportedProtos: []string{certs.ALPNChallenge}, Conn: storage.conn}
		if _, err := m.Certificate(hello); err == nil {
			t.Fatalf("%s is answered", name)
		}
	}
	ask("x.wild.test")
	if storage.loads != 0 {
		t.Error("for a name below a wildcard the storage is asked")
	}
	ask("a.zt.test")
	if storage.loads != 1 || storage.early != 0 {
		t.Errorf("asked %d times, %d of them before others might go on", storage.loads, storage.early)
	}
}
