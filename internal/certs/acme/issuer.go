package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// issuer gets one certificate at a time from an ACME server. It is a
// certmagic.Issuer that, unlike the one that comes with certmagic, opens no
// port for challenges, offers what each name allows, and tells when the server
// wants to be asked again. Accounts and certificates lie in the storage where
// certmagic's own issuer has them.
type issuer struct {
	directory  string
	key        string
	email      string
	profile    string
	eab        *acme.EAB
	challenges []string
	dns        acmez.Solver // nil: none
	storage    certmagic.Storage
	tokens     *challenges
	transport  http.RoundTripper
	pace       *certmagic.RingBufferRateLimiter
	log        *slog.Logger

	mu    sync.Mutex
	until time.Time // the server wants to hear nothing before
}

// At most paceOrders are placed within paceWindow.
const (
	paceOrders = 10
	paceWindow = 10 * time.Second
)

func newIssuer(p *Plan, storage certmagic.Storage, m *Manager) *issuer {
	log := m.log
	i := &issuer{
		directory: p.directory, email: strings.TrimSpace(p.config.AutocertEmail), profile: p.config.AutocertProfile,
		challenges: p.challenges, dns: newDNS(p.config, log), storage: storage, tokens: m.challenges, pace: m.pace, log: log,
		key: (&certmagic.ACMEIssuer{CA: p.directory}).IssuerKey(),
		transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: 30 * time.Second, IdleConnTimeout: time.Minute,
			ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: p.roots, MinVersion: tls.VersionTLS12},
		},
	}
	if p.config.AutocertEABKeyID != "" {
		i.eab = &acme.EAB{KeyID: p.config.AutocertEABKeyID, MACKey: p.config.AutocertEABMACKey}
	}
	return i
}

// IssuerKey names the server in the storage.
func (i *issuer) IssuerKey() string { return i.key }

// laterError says that the server refuses until a moment.
type laterError struct {
	until time.Time
	cause error
}

func (e *laterError) Error() string { return e.cause.Error() }
func (e *laterError) Unwrap() error { return e.cause }

// longestWait bounds what a server can make us wait.
const longestWait = 7 * 24 * time.Hour

// hints are requests of one attempt; they remember what the server says about
// coming again (Retry-After with 429 and 503, RFC 8555 §6.6).
type hints struct {
	next  http.RoundTripper
	mu    sync.Mutex
	until time.Time
}

func (h *hints) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := h.next.RoundTrip(r)
	if err != nil || res.StatusCode != http.StatusTooManyRequests && res.StatusCode != http.StatusServiceUnavailable {
		return res, err
	}
	if until, ok := retryAfter(res.Header.Get("Retry-After"), time.Now()); ok {
		h.mu.Lock()
		h.until = until
		h.mu.Unlock()
	}
	return res, nil
}

func retryAfter(value string, now time.Time) (time.Time, bool) {
	if n, err := strconv.ParseUint(value, 10, 32); err == nil {
		return now.Add(min(time.Duration(n)*time.Second, longestWait)), true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return time.Time{}, false
	}
	if at.Sub(now) > longestWait {
		at = now.Add(longestWait)
	}
	return at, true
}

func (i *issuer) client(h *hints) *acme.Client {
	return &acme.Client{
		Directory: i.directory, UserAgent: "Postern", PollTimeout: 5 * time.Minute,
		HTTPClient: &http.Client{Transport: h, Timeout: time.Minute},
	}
}

// Issue implements certmagic.Issuer: one order, one attempt.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	i.mu.Lock()
	until := i.until
	i.mu.Unlock()
	if time.Now().Before(until) {
		return nil, &laterError{until, fmt.Errorf("the ACME server limits how often it is asked; nothing is asked before %s", until.UTC().Format(time.RFC3339))}
	}
	if err := i.pace.Wait(ctx); err != nil {
		return nil, err
	}
	h := &hints{next: i.transport}
	cert, err := i.order(ctx, h, csr)
	if err == nil {
		return cert, nil
	}
	h.mu.Lock()
	until = h.until
	h.mu.Unlock()
	var problem acme.Problem
	isProblem := errors.As(err, &problem)
	if isProblem && problem.Type == acme.ProblemTypeRateLimited && until.IsZero() {
		until = time.Now().Add(time.Hour)
	}
	if until.IsZero() || isProblem && problem.Status != http.StatusTooManyRequests && problem.Status != http.StatusServiceUnavailable && problem.Type != acme.ProblemTypeRateLimited {
		return nil, err
	}
	// The limit may be this name's alone, so others pause for a moment only.
	i.mu.Lock()
	i.until = time.Now().Add(min(time.Until(until), time.Minute))
	i.mu.Unlock()
	return nil, &laterError{until, err}
}

func (i *issuer) order(ctx context.Context, h *hints, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	client := &acmez.Client{Client: i.client(h), ChallengeSolvers: i.solvers(csr.DNSNames)}
	if len(client.ChallengeSolvers) == 0 {
		return nil, fmt.Errorf("no challenge is left for %s: set autocert_dns_provider, or other autocert_challenges", strings.Join(csr.DNSNames, ", "))
	}
	for again := false; ; again = true {
		account, err := i.account(ctx, client.Client)
		if err != nil {
			return nil, err
		}
		params, err := acmez.OrderParametersFromCSR(account, csr)
		if err != nil {
			return nil, err
		}
		params.Profile = i.profile
		chains, err := client.ObtainCertificate(ctx, params)
		var problem acme.Problem
		if errors.As(err, &problem) && problem.Type == acme.ProblemTypeAccountDoesNotExist && !again {
			i.log.Warn("autocert: the ACME server has forgotten the account; a new one is made", "server", i.directory)
			if err := i.forget(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(chains) == 0 {
			return nil, errors.New("the ACME server sent no certificate")
		}
		return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
	}
}

// solvers are the challenges that a name allows: a wildcard only dns-01.
func (i *issuer) solvers(names []string) map[string]acmez.Solver {
	wild := slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, "*.") })
	out := map[string]acmez.Solver{}
	for _, typ := range i.challenges {
		switch {
		case typ == acme.ChallengeTypeDNS01 && i.dns != nil:
			out[typ] = i.dns
		case !wild:
			out[typ] = &tokenSolver{storage: i.storage, prefix: i.tokenPrefix(), own: i.tokens}
		}
	}
	if wild && i.dns != nil {
		out[acme.ChallengeTypeDNS01] = i.dns
	}
	return out
}

func (i *issuer) renewalInfo(ctx context.Context, leaf *x509.Certificate) (acme.RenewalInfo, error) {
	return i.client(&hints{next: i.transport}).GetRenewalInfo(ctx, leaf)
}

func (i *issuer) prefix() string { return path.Join("acme", certmagic.StorageKeys.Safe(i.key)) }

func (i *issuer) tokenPrefix() string { return path.Join(i.prefix(), "challenge_tokens") }

// accountKeys are where registration and key of the account lie.
func (i *issuer) accountKeys() (registration, key string) {
	email := strings.ToLower(i.email)
	if email == "" {
		email = "default"
	}
	name, _, _ := strings.Cut(email, "@")
	if email == "default" {
		name = "default"
	}
	safe := certmagic.StorageKeys.Safe
	base := path.Join(i.prefix(), "users", safe(email), safe(name))
	return base + ".json", base + ".key"
}

// account loads the account, or makes one. All replicas share it.
func (i *issuer) account(ctx context.Context, client *acme.Client) (acme.Account, error) {
	a, err := i.loadAccount(ctx)
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	lock := "register_" + certmagic.StorageKeys.Safe(i.key+"_"+i.email)
	if err := i.storage.Lock(ctx, lock); err != nil {
		return a, err
	}
	defer func() { _ = i.storage.Unlock(context.WithoutCancel(ctx), lock) }()
	if a, err = i.loadAccount(ctx); !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return a, err
	}
	a = acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if i.email != "" {
		a.Contact = []string{"mailto:" + i.email}
	}
	if i.eab != nil {
		if err := a.SetExternalAccountBinding(ctx, client, *i.eab); err != nil {
			return a, fmt.Errorf("autocert_eab_mac_key cannot be used: %w", err)
		}
	}
	if a, err = client.NewAccount(ctx, a); err != nil {
		return a, fmt.Errorf("no account at the ACME server: %w", err)
	}
	i.log.Info("autocert: account registered", "server", i.directory, "contact", strings.Join(a.Contact, ","))
	return a, i.saveAccount(ctx, a)
}

func (i *issuer) loadAccount(ctx context.Context) (a acme.Account, err error) {
	registration, key := i.accountKeys()
	b, err := i.storage.Load(ctx, registration)
	if err != nil {
		return a, err
	}
	k, err := i.storage.Load(ctx, key)
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("the ACME account in %s cannot be read: %w; delete it to register a new one", registration, err)
	}
	a.PrivateKey, err = certmagic.PEMDecodePrivateKey(k)
	return a, err
}

func (i *issuer) saveAccount(ctx context.Context, a acme.Account) error {
	registration, key := i.accountKeys()
	b, err := json.MarshalIndent(a, "", "\t")
	if err != nil {
		return err
	}
	k, err := certmagic.PEMEncodePrivateKey(a.PrivateKey)
	if err != nil {
		return err
	}
	// The key first: a registration without its key would be taken for broken.
	if err := i.storage.Store(ctx, key, k); err != nil {
		return err
	}
	return i.storage.Store(ctx, registration, b)
}

func (i *issuer) forget(ctx context.Context) error {
	registration, key := i.accountKeys()
	return errors.Join(i.storage.Delete(ctx, registration), i.storage.Delete(ctx, key))
}
