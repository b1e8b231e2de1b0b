package certs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"
)

// StaplerOptions are what a Stapler is made from.
type StaplerOptions struct {
	// Dir keeps responses over restarts; "" keeps them in memory only.
	Dir string
	// Client asks the responders; nil is one with a timeout of 10 s.
	Client *http.Client
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Stapler gets OCSP responses (RFC 6960) for configured certificates from the
// responders that they name, so that clients need not. A response is renewed at
// half of its life; while a responder is out, the last one serves until its
// end. One Stapler serves all generations of a process.
type Stapler struct {
	o     StaplerOptions
	wake  chan struct{}
	slots chan struct{}

	mu    sync.Mutex
	jobs  map[*pair]*job
	quiet map[string]time.Time // responders that fail: not before
}

// job is one certificate to staple.
type job struct {
	pair     *pair
	source   string
	due      time.Time
	failures int
	running  bool
	revoked  bool
	loaded   bool // the directory was looked into
}

const (
	maxOCSPResponse = 64 << 10
	ocspTimeout     = 10 * time.Second
	// ocspSkew is by how much a responder's clock may be ahead of ours.
	ocspSkew = 5 * time.Minute
	// ocspLife is the life of a response that names no end.
	ocspLife = 24 * time.Hour
	// maxOCSPLife bounds the belief in a response that claims to be good for
	// longer.
	maxOCSPLife = 14 * 24 * time.Hour
	// ocspRequests is how many responders are asked at once.
	ocspRequests = 4
	// ocspUnused is how long a kept response outlives its certificate's use.
	ocspUnused = 14 * 24 * time.Hour
)

// NewStapler makes a Stapler; it works while Run does.
func NewStapler(o StaplerOptions) *Stapler {
	if o.Client == nil {
		o.Client = &http.Client{Timeout: ocspTimeout, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) >= 3 {
				return errors.New("too many redirects")
			}
			return nil
		}}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dir != "" {
		o.Dir = filepath.Join(o.Dir, "ocsp")
	}
	return &Stapler{o: o, wake: make(chan struct{}, 1), slots: make(chan struct{}, ocspRequests), jobs: map[*pair]*job{}, quiet: map[string]time.Time{}}
}

// Follow makes the certificates of a generation those to staple.
func (s *Stapler) Follow(set *Set) {
	s.mu.Lock()
	jobs := map[*pair]*job{}
	for _, p := range set.all {
		switch old := s.jobs[p]; {
		case !p.stapled():
			p.attempted()
		case old != nil:
			jobs[p] = old
		default:
			jobs[p] = &job{pair: p, source: strings.Join(p.names, ", ")}
		}
	}
	s.jobs = jobs
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run staples until ctx ends.
func (s *Stapler) Run(ctx context.Context) {
	s.tidy()
	var working sync.WaitGroup
	defer working.Wait()
	for {
		now := s.o.Now()
		ready, next := s.due(now)
		for _, j := range ready {
			select {
			case s.slots <- struct{}{}:
			case <-ctx.Done():
				return
			}
			working.Add(1)
			go func() {
				defer working.Done()
				s.work(ctx, j)
				<-s.slots
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}()
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = min(wait, max(next.Sub(now), 10*time.Millisecond))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-s.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// due gives the jobs to do now, those that serve nothing without first, and
// when the next one is.
func (s *Stapler) due(now time.Time) (ready []*job, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		switch {
		case j.running:
		case !now.Before(j.due):
			j.running = true
			ready = append(ready, j)
		case next.IsZero() || j.due.Before(next):
			next = j.due
		}
	}
	slices.SortStableFunc(ready, func(a, b *job) int {
		rank := func(j *job) int {
			if j.pair.mustStaple && j.pair.serve(now) == nil {
				return 0
			}
			return 1
		}
		return cmp.Or(rank(a)-rank(b), strings.Compare(a.source, b.source))
	})
	return ready, next
}

// work gets one response.
func (s *Stapler) work(ctx context.Context, j *job) {
	p := j.pair
	if !j.loaded {
		j.loaded = true
		if p.staple.Load() == nil {
			s.load(p)
		}
	}
	now := s.o.Now()
	due, err := p.renewAt(now), error(nil)
	if !now.Before(due) {
		if err = s.fetch(ctx, p); err == nil {
			due = p.renewAt(s.o.Now())
		}
	}
	if ctx.Err() != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now = s.o.Now()
	j.running = false
	var quiet quietError
	switch {
	case errors.As(err, &quiet):
		j.due = quiet.until
	case err != nil:
		j.failures++
		j.due = now.Add(min(time.Minute<<min(j.failures-1, 6), time.Hour))
		if revoked := errors.Is(err, errRevoked); j.failures == 1 || revoked != j.revoked {
			j.revoked = revoked
			s.complain(p, err, now)
		}
	default:
		if j.failures > 0 {
			s.o.Log.Info("certificates: the OCSP responder answers again", "certificate", j.source, "responder", p.responder)
		}
		j.failures, j.revoked = 0, false
		// Not below a second apart, whatever a responder says.
		j.due = due
		if least := now.Add(time.Second); due.Before(least) {
			j.due = least
		}
	}
	p.attempted()
}

func (s *Stapler) complain(p *pair, err error, now time.Time) {
	name := strings.Join(p.names, ", ")
	what := "goes on without a staple"
	switch st := p.staple.Load(); {
	case st != nil && now.Before(st.until):
		what = "goes on with the staple that is good until " + st.until.UTC().Format(time.RFC3339)
	case p.mustStaple:
		what = "is not served, because it says must-staple"
	}
	s.o.Log.Warn("certificates: no OCSP response: the certificate "+what, "certificate", name, "responder", p.responder, "error", err.Error())
}

// renewAt is when a new response is wanted: at once without one, else at half
// of its life.
func (p *pair) renewAt(now time.Time) time.Time {
	st := p.staple.Load()
	if st == nil || !now.Before(st.until) {
		return now
	}
	return st.from.Add(st.until.Sub(st.from) / 2)
}

// attempted says that waiting for a first staple is over.
func (p *pair) attempted() { p.triedOnce.Do(func() { close(p.tried) }) }

// quietError says that a responder failed for another certificate just now.
type quietError struct{ until time.Time }

func (quietError) Error() string { return "the responder did not answer just now" }

// fetch asks the responder.
func (s *Stapler) fetch(ctx context.Context, p *pair) (err error) {
	host := p.responder
	if u, err := url.Parse(p.responder); err == nil {
		host = u.Host
	}
	now := s.o.Now()
	s.mu.Lock()
	until, silent := s.quiet[host]
	s.mu.Unlock()
	if silent && now.Before(until) {
		return quietError{until}
	}
	question, err := ocsp.CreateRequest(p.leaf, p.issuer, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, ocspTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.responder, bytes.NewReader(question))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	req.Header.Set("Accept", "application/ocsp-response")
	res, err := s.o.Client.Do(req)
	if err != nil {
		// Its other certificates need not wait for the same.
		s.mu.Lock()
		s.quiet[host] = now.Add(30 * time.Second)
		s.mu.Unlock()
		return fmt.Errorf("the responder does not answer: %w", err)
	}
	defer res.Body.Close()
	s.mu.Lock()
	delete(s.quiet, host)
	s.mu.Unlock()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the responder answers %s", res.Status)
	}
	der, err := io.ReadAll(io.LimitReader(res.Body, maxOCSPResponse+1))
	if err != nil {
		return err
	}
	if len(der) > maxOCSPResponse {
		return fmt.Errorf("the response has more than %d bytes", maxOCSPResponse)
	}
	if err := p.adopt(der, s.o.Now()); err != nil {
		return err
	}
	s.keep(p, der)
	return nil
}

// errRevoked is the answer nobody wants.
var errRevoked = errors.New("the certificate is revoked: have a new one issued and replace it at once")

// adopt takes a response over if it is genuine, current and good.
func (p *pair) adopt(der []byte, now time.Time) error {
	r, err := ocsp.ParseResponseForCert(der, p.leaf, p.issuer)
	if err != nil {
		return fmt.Errorf("the response does not verify: %w", err)
	}
	if c := r.Certificate; c != nil && !bytes.Equal(c.Raw, p.issuer.Raw) {
		// Any certificate of the CA verifies so far; only one made for it may
		// speak for the CA (RFC 6960 §4.2.2.2).
		if !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) {
			return errors.New("the response is signed by a certificate that may not sign OCSP responses")
		}
		if now.Before(c.NotBefore.Add(-ocspSkew)) || now.After(c.NotAfter) {
			return errors.New("the response is signed by a certificate that is out of date")
		}
	}
	until := r.NextUpdate
	if until.IsZero() {
		until = r.ThisUpdate.Add(ocspLife)
	}
	if latest := r.ThisUpdate.Add(maxOCSPLife); until.After(latest) {
		until = latest
	}
	switch {
	case now.Before(r.ThisUpdate.Add(-ocspSkew)):
		return fmt.Errorf("the response is from the future (%s); check this machine's clock", r.ThisUpdate.UTC().Format(time.RFC3339))
	case !now.Before(until):
		return fmt.Errorf("the response is out of date since %s", until.UTC().Format(time.RFC3339))
	case r.Status == ocsp.Revoked:
		p.staple.Store(nil) // clients are not to be told otherwise
		return errRevoked
	case r.Status != ocsp.Good:
		return errors.New("the responder does not know the certificate")
	}
	cert := p.cert
	cert.OCSPStaple = der
	p.staple.Store(&staple{cert: &cert, from: r.ThisUpdate, until: until})
	return nil
}

func (s *Stapler) file(p *pair) string {
	sum := sha256.Sum256(p.leaf.Raw)
	return filepath.Join(s.o.Dir, hex.EncodeToString(sum[:])+".der")
}

// load takes over what an earlier process kept; it is verified like any other.
func (s *Stapler) load(p *pair) {
	if s.o.Dir == "" {
		return
	}
	f, err := os.Open(s.file(p))
	if err != nil {
		return
	}
	defer f.Close()
	if der, err := io.ReadAll(io.LimitReader(f, maxOCSPResponse+1)); err == nil {
		_ = p.adopt(der, s.o.Now()) // else a new one is asked for
	}
}

func (s *Stapler) keep(p *pair, der []byte) {
	if s.o.Dir == "" {
		return
	}
	err := os.MkdirAll(s.o.Dir, 0o700)
	if err == nil {
		err = writeAside(s.file(p), der)
	}
	if err != nil {
		s.o.Log.Debug("certificates: an OCSP response could not be kept", "error", err.Error())
	}
}

// tidy drops kept responses that nobody renewed for long.
func (s *Stapler) tidy() {
	if s.o.Dir == "" {
		return
	}
	list, err := os.ReadDir(s.o.Dir)
	if err != nil {
		return
	}
	for _, e := range list {
		if info, err := e.Info(); err == nil && s.o.Now().Sub(info.ModTime()) > ocspUnused && strings.HasSuffix(e.Name(), ".der") {
			os.Remove(filepath.Join(s.o.Dir, e.Name()))
		}
	}
}
