package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/google/uuid"

	"postern/internal/authn"
	"postern/internal/authz"
	"postern/internal/certs"
	"postern/internal/certs/acme"
	"postern/internal/config"
	"postern/internal/exchange"
	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/proxy"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
	"postern/internal/upstream"
)

// generation is everything made from one configuration. It is immutable.
type generation struct {
	number   uint64
	cfg      *config.Config
	compiled *compiled
	isolated []Isolated
	keys     *session.Keys
	proxy    *proxy.Generation
	autocert *acme.Plan
	pool     *upstream.Pool
	authn    *authn.Service
	certs    *certs.Set
	tls      func(*tls.ClientHelloInfo) (*tls.Config, error)
	start    func() // begins what runs in its background, once it is to serve
	stop     func() // ends that; nil before start
	touched  func(*session.Caller)
}

func newID() string { return uuid.NewString() }

// dataDir is where this process keeps things.
func dataDir(cfg *config.Config) string {
	if d := cfg.Store.DataDir; d != "" {
		return d
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		if home, err := os.UserHomeDir(); err == nil {
			base = filepath.Join(home, ".local", "share")
		}
	}
	if base == "" {
		return ""
	}
	return filepath.Join(base, "postern")
}

// ControlPath is where the control socket of a configuration is; "" is off.
func ControlPath(cfg *config.Config) string {
	switch p := cfg.Control.ControlAddress; p {
	case "":
	case "off", "none":
		return ""
	default:
		return strings.TrimPrefix(p, "unix://")
	}
	if d := dataDir(cfg); d != "" {
		return filepath.Join(d, "control.sock")
	}
	return ""
}

// build makes a generation. Nothing of it acts before its start: it may yet be
// refused.
func (s *Server) build(ctx context.Context, cfg *config.Config, previous *generation) (*generation, error) {
	if err := certs.TrustDerived(&cfg.Certs, s.secret.Reveal()); err != nil {
		return nil, err
	}
	var before *compiled
	if previous != nil {
		before = previous.compiled
	}
	c, problems := compile(cfg, before)
	if config.Fatal(problems) {
		return nil, problemList(problems)
	}
	if len(c.later) > 0 {
		return nil, problemList(c.later)
	}
	s.report(problems)
	c.printTo(s.log)
	g := &generation{number: s.number + 1, cfg: cfg, compiled: c}
	var err error
	if previous != nil && reflect.DeepEqual(cfg.Secrets, previous.cfg.Secrets) {
		g.keys = previous.keys
	} else if g.keys, err = s.keys(cfg); err != nil {
		return nil, err
	}
	keys := g.keys

	renderer, err := pages.New(cfg.Pages.Branding())
	if err != nil {
		return nil, fmt.Errorf("branding: %w", err)
	}
	for _, n := range renderer.Notes() {
		s.log.Warn("branding: " + n)
	}
	options := c.certOptions(cfg, s.secret.Reveal(), s.o.LocalCA)
	options.Managed = s.autocert.Certificate
	certificates, err := certs.New(options)
	if err != nil {
		return nil, err
	}
	if g.autocert, err = c.autocertPlan(cfg, certificates.Has); err != nil {
		return nil, err
	}
	for _, n := range g.autocert.Notes() {
		s.log.Warn(n)
	}
	for _, n := range certificates.Notes() {
		s.log.Warn("certificates: " + n)
	}
	g.certs = certificates
	g.tls = certificates.TLSConfig(nextProtos(cfg.Proxy.CodecType)).GetConfigForClient
	settings, err := proxy.NewSettings(cfg.Proxy, c.cookies)
	if err != nil {
		return nil, err
	}
	provider, err := identity.New(c.provider, identity.Deps{Transport: internalTransport(cfg.Certs.ExtraRoots), Now: time.Now, Log: s.log, Accounts: s.store, LocalUsers: c.accounts, Guard: s.passwords})
	if err != nil {
		return nil, err
	}
	log := telemetry.NewAuthorizeLog(s.out, s.level, cfg.Telemetry.AuthorizeLogFields)
	env, err := authz.NewEnv(authz.Options{
		Generation: g.number, Config: cfg.Authz, Keys: keys, Routes: c.table.Routes(),
		Cookies: c.cookies, CookieDomain: cfg.Authn.CookieDomain, AnyAudience: cfg.Authn.HandleAudience == "any",
		CertificateRule: c.certRule, SignInURL: c.signIn, JWTEndpoint: cfg.Flag("pomerium_jwt_endpoint"),
		RouteSets: func(rt *route.Route) []string { return setHeaderNames(c.parts[rt.Slot].from) },
		Log:       log, Previous: previousEnv(previous),
	})
	if err != nil {
		return nil, err
	}
	pool, err := s.buildPool(c, cfg, previousPool(previous))
	if err != nil {
		return nil, err
	}
	g.pool = pool
	targets, err := s.targets(c, cfg, pool)
	if err != nil {
		pool.Close()
		return nil, err
	}
	g.isolated = c.isolated()
	service, err := authn.New(authn.Options{
		Store: s.store, Keys: keys, Providers: []identity.Provider{provider}, Pages: renderer, Config: cfg.Authn,
		SignInURL: c.signIn, SignInHostIsRoute: c.shared, KnownHost: c.table.KnowsHost,
		ApplicationName: func(authority string) string {
			if rt := c.table.Find(authority, "/").Route; rt != nil {
				return rt.Name
			}
			return ""
		},
		AllowAnySignOutRedirect: cfg.Flag("allow_any_sign_out_redirect_uri"),
		RefreshAtIDTokenExpiry:  cfg.Flag("refresh_session_at_id_token_expiration"),
		Used:                    s.used, Log: s.log,
	})
	if err != nil {
		pool.Close()
		return nil, err
	}
	g.authn = service
	g.touched = service.Touch

	access := accessLog(s, cfg)
	g.proxy = &proxy.Generation{
		Table: c.table, Targets: targets, Settings: settings, Endpoints: s.endpoints(cfg, c, service, env, keys, renderer),
		Authorizer: s.engine, Env: env, Streams: s.engine,
		SignInURL: signInURL(service),
		Pages:     renderer, Decorate: s.decorate(c),
		AccessLog: access, Metrics: s.metrics, Log: s.log, Limiter: s.limiter,
	}
	if c.clientCAs {
		g.proxy.ClientCertificate = certificates.VerifyClient
		g.proxy.SameClientPolicy = certificates.SameClientPolicy
		decorate := g.proxy.Decorate
		g.proxy.Decorate = func(p *pages.ErrorPage, v exchange.View, rt *route.Route, d *authz.Decision) {
			if p.Kind == pages.ClientCertificate {
				p.Issuers = certificates.ClientIssuers(rt)
			}
			decorate(p, v, rt, d)
		}
		if cfg.Certs.DownstreamMTLS.Enforcement == certs.EnforceRejectConnection {
			g.proxy.CertificatesEverywhere, g.proxy.RefusesConnection = true, certificates.RefusesConnection
		}
	}

	g.start = func() {
		pool.Start()
		for _, slot := range pool.Unverified() {
			s.log.Warn("tls_skip_verify: any certificate of this upstream is accepted; whoever is on the way there can read and change everything",
				"route", c.parts[slot].from.Match.From, "to", strings.Join(pool.Target(slot).Endpoints(), " "))
		}
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := service.SyncAccounts(run); err != nil && run.Err() == nil {
				s.log.Warn("local accounts could not be brought in line with local_users_file; it is tried again", "error", err)
			}
			_ = service.Run(run)
		}()
		g.stop = func() { cancel(); <-done }
	}
	return g, nil
}

func previousEnv(g *generation) *authz.Env {
	if g == nil {
		return nil
	}
	return g.proxy.Env
}

func previousPool(g *generation) *upstream.Pool {
	if g == nil {
		return nil
	}
	return g.pool
}

// setHeaderNames are the request headers that a route sets itself: nobody
// else may set them.
func setHeaderNames(r *config.Route) []string {
	names := make([]string, 0, len(r.Proxy.SetRequestHeaders))
	for n := range r.Proxy.SetRequestHeaders {
		names = append(names, n)
	}
	return names
}

func claimHeaderNames(cfg *config.Config) []string {
	names := make([]string, 0, len(cfg.Authz.JWTClaimsHeaders))
	for n := range cfg.Authz.JWTClaimsHeaders {
		names = append(names, n)
	}
	return names
}

func signInURL(service *authn.Service) func(exchange.View, *route.Route) (string, []cookie, error) {
	return func(v exchange.View, rt *route.Route) (string, []cookie, error) {
		idp, hosts := "", []string(nil)
		if rt != nil {
			idp, hosts = rt.IDPID, rt.DependsOn
		}
		r := service.SignInRedirect(v, idp, hosts)
		return r.URL, r.Cookies, nil
	}
}

// accessLog writes requests unless proxy_log_level is above info.
func accessLog(s *Server, cfg *config.Config) func(*telemetry.AccessEntry) {
	level := s.level.Level()
	if name := cfg.Telemetry.ProxyLogLevel; name != "" {
		if l, err := telemetry.ParseLevel(name); err == nil {
			level = l
		}
	} else if l, err := telemetry.ParseLevel(cfg.Telemetry.LogLevel); err == nil {
		level = l
	}
	log := telemetry.NewAccessLog(s.out, level, cfg.Telemetry.AccessLogFields)
	return log.Write
}
