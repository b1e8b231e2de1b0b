package server

import (
	"context"
	"net/http"
	"time"

	"postern/internal/certs/acme"
	"postern/internal/config"
	"postern/internal/proxy"
	"postern/internal/telemetry"
)

// checkAutocert is the health check of certificates by ACME. It is not among
// those that readiness needs: what has a certificate is served.
const checkAutocert = "autocert"

// autocertLoad bounds how long a start waits for the storage of certificates.
const autocertLoad = 3 * time.Second

// autocertPlan says which hosts get certificates by ACME (configuration.md
// §2.3).
func (c *compiled) autocertPlan(cfg *config.Config, configured func(string) bool) (*acme.Plan, error) {
	w := acme.Wanted{Config: cfg.Certs, PlainListener: cfg.Proxy.HTTPRedirectAddr, Insecure: cfg.Proxy.InsecureServer, Configured: configured}
	if cfg.Certs.Autocert {
		for _, rt := range c.table.Routes() {
			if rt.From.Scheme == "https" {
				w.Hosts = append(w.Hosts, rt.From.Host)
			}
		}
		if c.signIn != nil && c.signIn.Scheme == "https" && len(cfg.Routes) > 0 {
			w.Hosts = append(w.Hosts, c.signIn.Hostname())
		}
	}
	return acme.Prepare(w)
}

// startAutocert makes what keeps certificates by ACME. Its storage may be the
// record store, so it ends before that.
func (s *Server) startAutocert() {
	s.autocert = acme.New(acme.Options{Records: s.store, Log: s.log, Timing: s.o.Autocert, Changed: s.autocertChanged})
	s.metrics.ObserveAutocert(func() telemetry.AutocertCounts {
		c := s.autocert.Counts()
		return telemetry.AutocertCounts{Certificates: c.Certificates, Renewals: c.Renewals, NextExpiry: c.NextExpiry,
			States: map[string]int{acme.StateValid: c.Valid, acme.StatePending: c.Pending, acme.StateFailing: c.Failing}}
	})
}

// applyAutocert brings hosts in line with a generation. The first one also
// waits for certificates that are there already, never for new ones.
func (s *Server) applyAutocert(ctx context.Context, p *acme.Plan, first bool) {
	s.autocert.Apply(p)
	if first {
		ctx, cancel := context.WithTimeout(ctx, autocertLoad)
		defer cancel()
		s.autocert.WaitLoaded(ctx)
	}
}

func (s *Server) autocertChanged() {
	on := false
	if g := s.current.Load(); g != nil {
		on = g.cfg.Certs.Autocert
	}
	if _, told := s.health.Statuses()[checkAutocert]; !on && !told {
		return
	}
	s.health.Report(checkAutocert, telemetry.StatusRunning, s.autocert.Problem())
}

// plainHandler answers on http_redirect_addr: ACME HTTP-01 for tokens that are
// open, and redirects.
func (s *Server) plainHandler() http.Handler {
	return s.autocert.ChallengeHTTP(proxy.RedirectHandler())
}
