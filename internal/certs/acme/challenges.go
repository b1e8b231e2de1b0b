package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"postern/internal/certs"
)

// challenges are those that this process has put up and the server may ask
// about at any moment. What other replicas have put up is read from the
// storage.
type challenges struct {
	mu   sync.Mutex
	open map[string]acme.Challenge // by type and name
	// Looking into the storage for others is bounded, because strangers can
	// make us do it: at most lookupsPerSecond, at most lookupsAtOnce.
	slots  chan struct{}
	second int64
	spent  int
}

const (
	lookupsPerSecond = 50
	lookupsAtOnce    = 8
	lookupTimeout    = 5 * time.Second
)

func newChallenges() *challenges {
	return &challenges{open: map[string]acme.Challenge{}, slots: make(chan struct{}, lookupsAtOnce)}
}

func challengeKey(typ, name string) string { return typ + " " + name }

func (c *challenges) find(typ, name string) (acme.Challenge, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	chal, ok := c.open[challengeKey(typ, name)]
	return chal, ok
}

// mayLook takes one of the lookups of this second.
func (c *challenges) mayLook() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now().Unix(); now != c.second {
		c.second, c.spent = now, 0
	}
	c.spent++
	return c.spent <= lookupsPerSecond
}

// tokenSolver puts http-01 and tls-alpn-01 challenges where every replica
// finds them.
type tokenSolver struct {
	storage certmagic.Storage
	prefix  string
	own     *challenges
}

var _ acmez.Solver = (*tokenSolver)(nil)

func tokenKey(prefix, typ, name string) string {
	return path.Join(prefix, typ, certmagic.StorageKeys.Safe(name)+".json")
}

// Present implements acmez.Solver.
func (s *tokenSolver) Present(ctx context.Context, chal acme.Challenge) error {
	b, err := json.Marshal(chal)
	if err != nil {
		return err
	}
	name := canonicalName(chal.Identifier.Value)
	if err := s.storage.Store(ctx, tokenKey(s.prefix, chal.Type, name), b); err != nil {
		return err
	}
	s.own.mu.Lock()
	defer s.own.mu.Unlock()
	s.own.open[challengeKey(chal.Type, name)] = chal
	return nil
}

// CleanUp implements acmez.Solver.
func (s *tokenSolver) CleanUp(ctx context.Context, chal acme.Challenge) error {
	name := canonicalName(chal.Identifier.Value)
	s.own.mu.Lock()
	delete(s.own.open, challengeKey(chal.Type, name))
	s.own.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return s.storage.Delete(ctx, tokenKey(s.prefix, chal.Type, name))
}

// challenge finds an open challenge for a host of ours, put up by this process
// or another.
// waits, if not nil, is called before the storage is asked.
func (m *Manager) challenge(ctx context.Context, typ, name string, waits func()) (acme.Challenge, bool) {
	if chal, ok := m.challenges.find(typ, name); ok {
		return chal, true
	}
	m.mu.RLock()
	s := m.setup
	known := m.hosts[name] != nil // not by a wildcard, which only dns-01 proves
	m.mu.RUnlock()
	if s == nil || s.broken != nil || !slices.Contains(s.issuer.challenges, typ) || !known || !m.challenges.mayLook() {
		return acme.Challenge{}, false
	}
	select {
	case m.challenges.slots <- struct{}{}:
		defer func() { <-m.challenges.slots }()
	default:
		return acme.Challenge{}, false
	}
	if waits != nil {
		waits()
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	b, err := s.storage.Load(ctx, tokenKey(s.issuer.tokenPrefix(), typ, name))
	if err != nil {
		return acme.Challenge{}, false
	}
	var chal acme.Challenge
	if json.Unmarshal(b, &chal) != nil || chal.Type != typ || canonicalName(chal.Identifier.Value) != name {
		return acme.Challenge{}, false
	}
	return chal, true
}

// ChallengePath is where HTTP-01 asks (RFC 8555 §8.3).
const ChallengePath = "/.well-known/acme-challenge/"

// ChallengeHTTP answers HTTP-01 for tokens that are open now; all else goes to
// next.
func (m *Manager) ChallengeHTTP(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, ok := strings.CutPrefix(r.URL.Path, ChallengePath)
		if !ok || r.Method != http.MethodGet || !isToken(token) {
			next.ServeHTTP(w, r)
			return
		}
		name := r.Host
		if h, _, err := net.SplitHostPort(name); err == nil {
			name = h
		}
		chal, ok := m.challenge(r.Context(), acme.ChallengeTypeHTTP01, canonicalName(name), nil)
		if !ok || chal.Token != token {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Connection", "close")
		_, _ = w.Write([]byte(chal.KeyAuthorization))
	})
}

// isToken: base64url of at least 128 bits (RFC 8555 §8.3).
func isToken(s string) bool {
	if len(s) < 22 || len(s) > 512 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// challengeCertificate answers a TLS-ALPN-01 validation (RFC 8737 §3) on the
// ordinary listener.
func (m *Manager) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	chal, ok := m.challenge(contextOf(hello), acme.ChallengeTypeTLSALPN01, canonicalName(hello.ServerName), func() { certs.HandshakeWaits(hello) })
	if !ok {
		return nil, errors.New("no ACME challenge is open for this name")
	}
	return acmez.TLSALPN01ChallengeCert(chal)
}

// contextOf is the handshake's; a hello that no handshake made has none.
func contextOf(hello *tls.ClientHelloInfo) context.Context {
	if ctx := hello.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}
