// Package server is the one place that wires: it builds a generation from a
// configuration, binds listeners, swaps generations, runs and drains, and
// listens on the control socket.
//
// Every other package is given what it needs; nobody below knows that there
// are generations, and nobody looks anything up.
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/authn"
	"postern/internal/authz"
	"postern/internal/certs"
	"postern/internal/certs/acme"
	"postern/internal/config"
	"postern/internal/identity"
	"postern/internal/proxy"
	"postern/internal/record"
	"postern/internal/session"
	"postern/internal/store"
	"postern/internal/store/handover"
	"postern/internal/telemetry"
)

// Options are what Run needs from outside the configuration.
type Options struct {
	// ConfigFile is the main document; "" for the environment alone.
	ConfigFile string
	// Env is the environment, as os.Environ gives it.
	Env     []string
	Version string
	// Out gets the log; nil is standard output.
	Out io.Writer
	// LocalCA, if not nil, mints certificates for names that no configured
	// certificate serves (the demonstration).
	LocalCA *certs.LocalCA
	// Ready is called once the program serves. It may be nil.
	Ready func()
	// Sighup makes Run read the configuration again. It may be nil.
	Sighup <-chan struct{}
	// Autocert are the moments of certificates by ACME; the zero value is the
	// ordinary one.
	Autocert acme.Timing
	// Upgrade makes Run start the program anew and hand over to it (see
	// upgrade.go). It may be nil.
	Upgrade <-chan struct{}
}

// drainTimeout bounds the end: requests in progress may finish that long.
const drainTimeout = 10 * time.Second

// Server is a running program.
type Server struct {
	o         Options
	startedAt time.Time
	level     *slog.LevelVar
	log       *slog.Logger
	out       *telemetry.Sink
	health    *telemetry.Health
	metrics   *telemetry.Metrics

	store    record.Store // a *handover.Movable
	storage  string       // where records are, in words
	secret   session.Secret
	made     bool // the secret is not from the configuration
	engine   *authz.Engine
	stapler  *certs.Stapler
	autocert *acme.Manager
	replicas []replica
	used     *authn.UsedStates
	// These count on over changes of the configuration.
	limiter   *proxy.Limiter
	passwords *identity.PasswordGuard

	current atomic.Pointer[generation]
	doors   doors
	systemd *notifier

	// Of upgrades in place. heir is nil unless this process took over from
	// another; successor is nil until another takes over from this one.
	heir         *heir
	program      string // what this process was started by
	storeOptions store.Options
	place        [2]string // where the records are (storagePlace)
	upgrading    sync.Mutex
	successor    atomic.Pointer[successor]
	upgraded     chan struct{}   // closed then
	ending       <-chan struct{} // closed when the process is to end

	// One change at a time.
	change  sync.Mutex
	number  uint64
	changes changes
	leaving sync.WaitGroup // generations whose background ends
}

// Run loads the configuration, serves until ctx ends, drains and returns. An
// error before that says what to do.
func Run(ctx context.Context, o Options) error {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	heir, err := newHeir(o.Env)
	if err != nil {
		return err
	}
	s := &Server{o: o, startedAt: time.Now(), level: new(slog.LevelVar), used: authn.NewUsedStates(), limiter: proxy.NewLimiter(), passwords: identity.NewPasswordGuard(0),
		heir: heir, program: invokedAs(), upgraded: make(chan struct{}), ending: ctx.Done()}
	if err = s.inherit(); err == nil {
		err = s.start(ctx)
	}
	heir.fail(err)
	return err
}

// inherit takes what was open before this process began.
func (s *Server) inherit() error {
	if s.heir != nil {
		if err := s.heir.inherit(&s.doors.given); err != nil {
			return err
		}
	} else if err := s.doors.given.activate(s.o.Env, os.Getpid()); err != nil {
		return err
	}
	// The notifier needs what successors must not have, so the rest forgets it.
	s.systemd = newNotifier(s.o.Env, os.Getpid(), s.heir != nil)
	s.o.Env = withoutUpgrade(s.o.Env)
	return nil
}

// start loads the configuration and serves it.
func (s *Server) start(ctx context.Context) error {
	o := s.o
	cfg, problems := config.LoadFile(o.ConfigFile, o.Env)
	s.out = telemetry.NewSink(o.Out, 100*time.Millisecond)
	defer s.out.Close()
	s.log = telemetry.NewLogger(s.out, s.level)
	s.metrics = telemetry.NewMetrics(telemetry.BuildInfo{Version: o.Version})
	s.metrics.RateLimitTables(s.limiter.Crowded)
	s.metrics.UpstreamHosts(s.upstreamMembers)
	s.health = telemetry.NewHealth(telemetry.CheckStorage, telemetry.CheckInitialSync, telemetry.CheckConfigBuild,
		telemetry.CheckAuthenticate, telemetry.CheckAuthorize, telemetry.CheckProxy)
	if cfg != nil {
		if err := s.setLevel(cfg); err != nil {
			return err
		}
		problems = append(problems, cfg.StartProblems()...)
		problems = markStart(problems)
	}
	s.report(problems)
	if cfg == nil || config.Fatal(problems) {
		return refused("the configuration has errors, nothing was started", problems)
	}
	return s.run(ctx, cfg)
}

// markStart makes what stops a start weigh like an error.
func markStart(problems []config.Problem) []config.Problem {
	for i := range problems {
		switch problems[i].Kind {
		case config.KindNarrowing, config.KindUnreadable:
			problems[i].Level = config.LevelFatal
		}
	}
	return problems
}

// refused is the error of a configuration with problems.
func refused(what string, problems []config.Problem) error {
	var b strings.Builder
	b.WriteString(what)
	b.WriteString(":")
	for _, p := range problems {
		if p.Level == config.LevelFatal {
			b.WriteString("\n  " + p.String())
		}
	}
	return errors.New(b.String())
}

func (s *Server) setLevel(cfg *config.Config) error {
	level, err := telemetry.ParseLevel(cfg.Telemetry.LogLevel)
	if err == nil {
		s.level.Set(level)
	}
	return err
}

// report logs problems: errors, warnings, and notes about unknown keys (which
// the specification wants at error level, configuration.md §1.6).
func (s *Server) report(problems []config.Problem) {
	for _, p := range problems {
		level := slog.LevelError
		if p.Level == config.LevelWarning || p.Level == config.LevelLogged && p.Kind != config.KindUnknownKey && p.Kind != config.KindMisspelt {
			level = slog.LevelWarn
		}
		s.log.Log(context.Background(), level, "configuration: "+p.String())
	}
}

func (s *Server) run(ctx context.Context, cfg *config.Config) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := s.openStore(ctx, cfg); err != nil {
		return err
	}
	defer s.store.Close()
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()

	if err := s.startEngine(ctx, cfg, &background); err != nil {
		return err
	}
	defer s.engine.Close()
	s.startAutocert()
	defer s.autocert.Close()
	s.stapler = certs.NewStapler(certs.StaplerOptions{Dir: dataDir(cfg), Log: s.log})
	background.Add(1)
	go func() { defer background.Done(); s.stapler.Run(ctx) }()

	if s.heir != nil {
		s.doors.hold = make(chan struct{})
	}
	s.change.Lock()
	err = s.apply(ctx, cfg)
	s.change.Unlock()
	if err != nil {
		s.doors.close()
		return err
	}
	defer func() {
		if g := s.current.Load(); g != nil {
			g.pool.Close() // whoever runs us as a part goes on: nothing is checked for nobody
			g.stop()
		}
		s.leaving.Wait()
	}()
	if err := s.doors.internal(s, cfg); err != nil {
		s.doors.close()
		return err
	}
	if unused := s.doors.given.closeRest(); len(unused) > 0 {
		s.log.Warn("sockets that were handed to this process are not in the configuration and were closed: " + strings.Join(unused, ", "))
	}
	if s.heir != nil {
		if err := s.takeOver(ctx); err != nil {
			s.doors.close()
			return err
		}
	}
	s.watchReadiness(ctx, &background)
	s.log.Info("serving", "addresses", strings.Join(s.doors.addresses(), ", "), "routes", len(cfg.Routes), "version", s.o.Version)
	if cfg.Telemetry.HealthCheckSystemdDisabled {
		s.systemd = nil
	}
	s.systemd.hush(false)
	s.systemd.send("READY=1", s.statusLine())
	s.systemd.watchdog(ctx, &background, s.alive, func(err error) {
		s.log.Error("the watchdog is not told that all is well", "error", err)
	})
	if s.o.Ready != nil {
		s.o.Ready()
	}

	background.Add(1)
	go func() {
		defer background.Done()
		config.NewWatcher(cfg, s.o.ConfigFile, s.o.Env).Run(ctx, s.o.Sighup, func(loaded config.Loaded) {
			s.change.Lock()
			defer s.change.Unlock()
			s.systemd.reloading()
			s.take(ctx, loaded)
			s.systemd.send("READY=1", s.statusLine())
		})
	}()
	background.Add(1)
	go func() { defer background.Done(); s.upgradeOnSignal(ctx) }()

	failed := s.doors.wait(ctx, s.upgraded)
	if s.successor.Load() != nil && ctx.Err() == nil {
		s.drainAfterUpgrade(ctx)
		return nil
	}
	s.health.Terminate()
	s.systemd.send("STOPPING=1")
	s.log.Info("draining", "up_to", drainTimeout.String())
	s.doors.drain(drainTimeout)
	return failed
}

// openStore decides on the secret and opens the records (decision 11).
func (s *Server) openStore(ctx context.Context, cfg *config.Config) error {
	o := store.Options{Type: cfg.Store.Type, ConnectionString: cfg.Store.ConnectionString, DataDir: dataDir(cfg), Logger: s.log}
	secret := cfg.Secrets.SharedSecret
	if secret == nil && cfg.Store.Type == "file" {
		dir, err := o.Dir()
		if err != nil {
			return err
		}
		if secret, err = store.LoadOrCreateSecret(dir); err != nil {
			return err
		}
		s.made = true
	}
	if secret == nil {
		secret = make([]byte, session.KeySize)
		rand.Read(secret)
		s.made = true
		s.log.Warn("shared_secret is not set: sessions end with this process; set shared_secret_file to keep them")
	}
	var carried io.Reader
	if s.heir != nil {
		theirs, rest, err := s.heir.prepare(ctx, cfg)
		if err != nil {
			return err
		}
		if cfg.Secrets.SharedSecret == nil {
			secret = theirs // sessions go on
		}
		carried = rest
	}
	s.secret = session.NewSecret(secret)
	o.Secrets = [][]byte{secret}
	if p := cfg.Secrets.SharedSecretPrevious; p != nil {
		o.Secrets = append(o.Secrets, p)
	}
	s.storeOptions = o
	o.Carried = carried
	inner, err := store.Open(ctx, o)
	if err != nil {
		return err
	}
	st := handover.NewMovable(inner)
	versions, err := st.ServerVersion(ctx)
	if err == nil {
		err = versions.CheckClock(time.Now())
	}
	if err == nil {
		for typ, opts := range session.TypeOptions() {
			if err = st.SetOptions(ctx, typ, opts); err != nil {
				break
			}
		}
	}
	if err != nil {
		st.Close()
		return err
	}
	s.store = st
	s.storage, s.place = cfg.Store.Type, storagePlace(cfg)
	s.heir.serveRecords(st)
	s.health.Report(telemetry.CheckStorage, telemetry.StatusRunning, nil)
	return nil
}

// keys derives the keys of a configuration. The secret itself cannot change
// while the program runs, because the records are sealed with it.
func (s *Server) keys(cfg *config.Config) (*session.Keys, error) {
	if c := cfg.Secrets.SharedSecret; c != nil && string(c) != string(s.secret.Reveal()) {
		return nil, errors.New("shared_secret differs from the one that this process started with: restart it, and name the old one in shared_secret_previous so that sessions and records stay readable")
	}
	var previous []session.Secret
	if p := cfg.Secrets.SharedSecretPrevious; p != nil {
		previous = append(previous, session.NewSecret(p))
	}
	var cookie session.Secret
	if c := cfg.Secrets.CookieSecret; c != nil {
		cookie = session.NewSecret(c)
	}
	return session.NewKeys(s.secret, previous, cookie)
}

// replica is what the server needs of a record.Replica of any type.
type replica interface {
	Run(ctx context.Context) error
	WaitSynced(ctx context.Context) error
	Ready() error
}

func newReplica[T any](s *Server, cfg *config.Config, typ string, decode record.Decode[T]) *record.Replica[T] {
	r := record.NewReplica(s.store, typ, decode, record.ReplicaOptions{
		MaxStale: cfg.Store.MaxStale,
		OnError:  func(err error) { s.log.Warn("a copy of records was interrupted", "type", typ, "error", err) },
	})
	s.replicas = append(s.replicas, r)
	return r
}

// syncTimeout bounds how long the start waits for the first copy of records.
const syncTimeout = 60 * time.Second

func (s *Server) startEngine(ctx context.Context, cfg *config.Config, background *sync.WaitGroup) error {
	src := authz.Sources{
		Sessions:        newReplica(s, cfg, session.SessionType, session.DecodeSession),
		ServiceAccounts: newReplica(s, cfg, session.ServiceAccountType, session.DecodeServiceAccount),
		Users:           newReplica(s, cfg, session.UserType, session.DecodeUser),
		DirectoryUsers:  newReplica(s, cfg, session.DirectoryUserType, session.DecodeDirectoryUser),
		DirectoryGroups: newReplica(s, cfg, session.DirectoryGroupType, session.DecodeDirectoryGroup),
		Store:           s.store, Logger: s.log, Metrics: s.metrics,
		Touched: func(c *session.Caller) {
			if g := s.current.Load(); g != nil {
				g.touched(c)
			}
		},
	}
	engine, err := authz.New(src)
	if err != nil {
		return err
	}
	s.engine = engine
	engine.SetCurrent(func() authz.Current {
		g := s.current.Load()
		return authz.Current{Env: g.proxy.Env, Match: g.proxy.Table.Match, ClientCertificate: g.certs.VerifyClient}
	})
	for _, r := range s.replicas {
		background.Add(1)
		go func() { defer background.Done(); _ = r.Run(ctx) }()
	}
	background.Add(1)
	go func() { defer background.Done(); _ = engine.Run(ctx) }()
	wait, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	for _, r := range s.replicas {
		if err := r.WaitSynced(wait); err != nil {
			return fmt.Errorf("the records could not be read within %s: %w; check the databroker storage", syncTimeout, err)
		}
	}
	s.health.Report(telemetry.CheckInitialSync, telemetry.StatusRunning, nil)
	return nil
}

// watchReadiness keeps the health checks true to what decisions rest on.
func (s *Server) watchReadiness(ctx context.Context, background *sync.WaitGroup) {
	s.health.Report(telemetry.CheckAuthenticate, telemetry.StatusRunning, nil)
	s.health.Report(telemetry.CheckProxy, telemetry.StatusRunning, nil)
	s.health.Report(telemetry.CheckAuthorize, telemetry.StatusRunning, s.engine.Ready())
	background.Add(1)
	go func() {
		defer background.Done()
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := s.engine.Ready()
			if err == nil {
				if v, verr := s.store.ServerVersion(ctx); verr != nil {
					err = verr
				} else {
					err = v.CheckClock(time.Now())
				}
			}
			if ctx.Err() == nil {
				s.health.Report(telemetry.CheckAuthorize, telemetry.StatusRunning, err)
			}
		}
	}()
}

// Status tells how the server is.
func (s *Server) Status() Status {
	g := s.current.Load()
	st := Status{
		Version: s.o.Version, StartedAt: s.startedAt, Generation: g.number, Routes: len(g.cfg.Routes), Storage: s.storage,
		Listeners: s.doors.listening(), Checks: map[string]string{},
	}
	now := s.changes.now()
	st.Config = ConfigStatus{File: s.o.ConfigFile, Checksum: checksumText(g.cfg.Checksum()), LoadedAt: now.adoptedAt,
		Problems: s.changes.problems(), Refused: now.refused, Isolated: now.isolated}
	for name, c := range s.health.Statuses() {
		st.Checks[name] = strings.TrimSpace(string(c.Status) + " " + c.Error)
	}
	st.Upstreams, st.UpstreamsOut = g.troubles()
	st.Certificates = s.autocert.Status()
	return st
}

// handler is the door: it serves each request from the generation of the
// moment.
func (s *Server) handler() func() *proxy.Generation {
	return func() *proxy.Generation {
		if g := s.current.Load(); g != nil {
			return g.proxy
		}
		return nil
	}
}
