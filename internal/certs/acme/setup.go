package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// setup is how certificates are got under one set of settings.
type setup struct {
	key     string
	log     *slog.Logger
	config  *certmagic.Config
	staples *certmagic.Config
	issuer  *issuer
	storage certmagic.Storage
	// broken says why there is no storage; every attempt fails with it.
	broken error
}

// kept is a certificate that the storage holds and the cache serves.
type kept struct {
	certmagic.Certificate
	// moment is when the server wants it renewed (RFC 9773); zero: it did not
	// say.
	moment time.Time
}

func (m *Manager) newSetup(p *Plan) *setup {
	s := &setup{key: p.key, log: m.log}
	s.storage, s.broken = p.storage.open(m.o.Records, m.log)
	if s.broken != nil {
		s.broken = &storageError{s.broken}
		s.storage = nowhere{}
	}
	s.storage = checked{s.storage}
	s.issuer = newIssuer(p, s.storage, m)
	s.config = certmagic.New(m.cache, certmagic.Config{
		RenewalWindowRatio: m.o.Timing.RenewRatio,
		MustStaple:         p.config.AutocertMustStaple,
		Issuers:            []certmagic.Issuer{s.issuer},
		KeySource:          certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		// With a proxy function requests to responders have a timeout.
		OCSP:    certmagic.OCSPConfig{HTTPProxy: http.ProxyFromEnvironment},
		Storage: s.storage,
		// The check writes a random file before each order; what it would find
		// fails the order, too.
		DisableStorageCheck: true,
		Logger:              quiet(m.log),
	})
	// The cache looks after OCSP staples under this copy. Marked as on demand,
	// it is left alone by the cache's own renewal: the schedule does that. No
	// handshake ever sees it.
	staples := *s.config
	staples.OnDemand = &certmagic.OnDemandConfig{DecisionFunc: func(context.Context, string) error {
		return errors.New("certificates are never got on demand")
	}}
	s.staples = &staples
	return s
}

// load puts what the storage holds for a name into the cache.
// fs.ErrNotExist: it holds nothing.
func (s *setup) load(ctx context.Context, name string) (kept, error) {
	if s.broken != nil {
		return kept{}, s.broken
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cert, err := s.config.CacheManagedCertificate(ctx, name)
	if err != nil {
		return kept{}, err
	}
	info, _ := s.renewalInfo(ctx, name)
	return kept{cert, info.SelectedTime}, nil
}

// obtainTimeout bounds one attempt, waiting for DNS and for other replicas
// included.
const obtainTimeout = 15 * time.Minute

// obtain makes sure that the storage holds a certificate for a name that is
// not due for renewal, and puts it into the cache. Replicas that do so at once
// wait for each other, and the later ones find the work done.
func (s *setup) obtain(ctx context.Context, name string, had kept) (kept, error) {
	if s.broken != nil {
		return kept{}, s.broken
	}
	ctx, cancel := context.WithTimeout(ctx, obtainTimeout)
	defer cancel()
	if had.Leaf != nil {
		s.refreshRenewalInfo(ctx, name, had)
	}
	// What another replica got meanwhile counts.
	now, err := s.load(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = s.config.ObtainCertSync(ctx, name)
	case err != nil:
		return kept{}, err
	case !now.NeedsRenewal(s.config):
		return now, nil
	default:
		err = s.config.RenewCertSync(ctx, name, false)
	}
	if err != nil {
		return kept{}, err
	}
	after, err := s.load(ctx, name)
	if err == nil && after.Hash() == now.Hash() && time.Now().After(after.Leaf.NotAfter) {
		return kept{}, fmt.Errorf("the storage still holds the expired certificate of %s after a renewal; look at what autocert_dir names", name)
	}
	return after, err
}

// renewalInfo is what the server last said about the moment of renewal.
func (s *setup) renewalInfo(ctx context.Context, name string) (acme.RenewalInfo, error) {
	_, _, info, err := s.meta(ctx, name)
	return info, err
}

func (s *setup) meta(ctx context.Context, name string) (certmagic.CertificateResource, acme.Certificate, acme.RenewalInfo, error) {
	var res certmagic.CertificateResource
	var data acme.Certificate
	b, err := s.storage.Load(ctx, certmagic.StorageKeys.SiteMeta(s.issuer.IssuerKey(), name))
	if err == nil {
		if err = json.Unmarshal(b, &res); err == nil && len(res.IssuerData) > 0 {
			err = json.Unmarshal(res.IssuerData, &data)
		}
	}
	if err != nil || data.RenewalInfo == nil {
		return res, data, acme.RenewalInfo{}, err
	}
	return res, data, *data.RenewalInfo, nil
}

// refreshRenewalInfo asks the server again for the moment of renewal, when it
// wants to be asked. Whatever fails leaves things as they are.
func (s *setup) refreshRenewalInfo(ctx context.Context, name string, had kept) {
	res, data, info, err := s.meta(ctx, name)
	if err != nil || !info.NeedsRefresh() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	fresh, err := s.issuer.renewalInfo(ctx, had.Leaf)
	if err != nil {
		s.log.Debug("autocert: the server did not tell when to renew", "host", name, "error", err)
		return
	}
	if fresh.SameWindow(info) {
		fresh.SelectedTime = info.SelectedTime
	}
	data.RenewalInfo = &fresh
	if res.IssuerData, err = json.Marshal(data); err != nil {
		return
	}
	if b, err := json.MarshalIndent(res, "", "\t"); err == nil {
		_ = s.storage.Store(ctx, certmagic.StorageKeys.SiteMeta(s.issuer.IssuerKey(), name), b)
	}
}
