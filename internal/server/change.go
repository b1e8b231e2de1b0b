package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"postern/internal/config"
	"postern/internal/telemetry"
)

// Health checks that tell, and on which readiness does not rest: what serves
// goes on serving.
const (
	checkReload = "config.reload" // the last change was refused
	checkRoutes = "config.routes" // routes are isolated
)

// outcome is what became of the changes so far. Who wants to know reads it
// without waiting for a change under way.
type outcome struct {
	adoptedAt time.Time
	isolated  []Isolated
	// refused is nil if the last change was adopted.
	refused *Refused
}

// Refused is a configuration that was offered and not taken.
type Refused struct {
	Checksum string    `json:"checksum"`
	At       time.Time `json:"at"`
	Problems []string  `json:"problems"`
}

// changes is the history of a server, of which only the end is kept.
type changes struct{ last atomic.Pointer[outcome] }

func (c *changes) now() outcome {
	if o := c.last.Load(); o != nil {
		return *o
	}
	return outcome{}
}

// problems are those of the last change, if it was refused.
func (c *changes) problems() []string {
	if r := c.now().refused; r != nil {
		return r.Problems
	}
	return nil
}

func checksumText(sum uint64) string { return fmt.Sprintf("%016x", sum) }

// take applies a loaded configuration, or says why the old one stays.
func (s *Server) take(ctx context.Context, loaded config.Loaded) {
	cfg, problems := loaded.Config, loaded.Problems
	if cfg != nil {
		problems = markStart(append(problems, cfg.StartProblems()...))
	}
	if cfg == nil || config.Fatal(problems) {
		s.report(problems)
		s.refuseChange(loaded.Checksum, problems)
		s.superseded(ctx)
		return
	}
	before := s.current.Load()
	if before != nil && before.cfg.Checksum() == cfg.Checksum() {
		if s.changes.now().refused != nil {
			s.log.Info("the configuration is again the one that serves", "checksum", checksumText(cfg.Checksum()))
			s.adopted(before, s.changes.now().adoptedAt)
		}
		return
	}
	s.report(problems)
	if err := s.apply(ctx, cfg); err != nil {
		var list problemList
		if !errors.As(err, &list) {
			list = problemList{{File: s.o.ConfigFile, Message: err.Error()}}
		}
		s.report(list)
		s.refuseChange(cfg.Checksum(), list)
		s.superseded(ctx)
		return
	}
	if before != nil {
		s.tellRestart(before.cfg, cfg)
	}
	s.log.Info("configuration applied", "generation", s.number, "routes", len(cfg.Routes),
		"isolated", len(s.changes.now().isolated), "source", s.o.ConfigFile, "checksum", checksumText(cfg.Checksum()))
}

// refuseChange makes a refusal known.
func (s *Server) refuseChange(sum uint64, problems []config.Problem) {
	r := &Refused{Checksum: checksumText(sum), At: time.Now()}
	for _, p := range problems {
		if p.Level == config.LevelFatal {
			r.Problems = append(r.Problems, p.String())
		}
	}
	now := s.changes.now()
	now.refused = r
	s.changes.last.Store(&now)
	s.log.Error("the new configuration was refused, the old one goes on serving", "problems", len(r.Problems), "checksum", r.Checksum)
	s.metrics.ConfigLoaded(false, r.At, s.o.ConfigFile, sum, 0)
	s.health.Report(checkReload, telemetry.StatusRunning, errors.New("the last change was refused; see postern status"),
		telemetry.HealthAttribute{Key: "checksum", Value: r.Checksum}, telemetry.HealthAttribute{Key: "at", Value: r.At.UTC().Format(time.RFC3339)})
}

// adopted makes known what serves since when, and that nothing is refused.
func (s *Server) adopted(g *generation, at time.Time) {
	o := &outcome{adoptedAt: at, isolated: g.isolated}
	s.changes.last.Store(o)
	sum := checksumText(g.cfg.Checksum())
	s.metrics.ConfigLoaded(true, at, s.o.ConfigFile, g.cfg.Checksum(), len(g.cfg.Routes))
	s.metrics.RoutesIsolated(len(o.isolated))
	s.health.Report(telemetry.CheckConfigBuild, telemetry.StatusRunning, nil,
		telemetry.HealthAttribute{Key: "checksum", Value: sum}, telemetry.HealthAttribute{Key: "adopted", Value: at.UTC().Format(time.RFC3339)},
		telemetry.HealthAttribute{Key: "source", Value: s.source()})
	s.health.Report(checkReload, telemetry.StatusRunning, nil)
	var broken error
	var attributes []telemetry.HealthAttribute
	for i, r := range o.isolated {
		if i == 20 {
			break // the rest is in the log
		}
		// Where and what is for those who may read the log: anybody on the
		// machine may ask for health.
		attributes = append(attributes, telemetry.HealthAttribute{Key: r.Path, Value: "answers 503"})
	}
	if n := len(o.isolated); n > 0 {
		broken = fmt.Errorf("%d of %d routes answer 503 because of mistakes in them; see postern status", n, len(g.cfg.Routes))
	}
	s.health.Report(checkRoutes, telemetry.StatusRunning, broken, attributes...)
}

// source is where the configuration is from, without telling a path.
func (s *Server) source() string {
	if s.o.ConfigFile == "" {
		return "environment"
	}
	return "file"
}

// apply builds a generation, binds what it listens on and swaps. Until the
// swap nothing that serves is touched.
func (s *Server) apply(ctx context.Context, cfg *config.Config) error {
	previous := s.current.Load()
	g, err := s.build(ctx, cfg, previous)
	if err != nil {
		return err
	}
	commit, err := s.doors.prepare(s, g)
	if err != nil {
		g.pool.Close()
		return err
	}
	if s.successor.Load() == nil {
		g.start()
	} else { // its background is the successor's
		g.stop = func() {}
	}
	s.current.Store(g)
	s.stapler.Follow(g.certs)
	s.applyAutocert(ctx, g.autocert, previous == nil)
	commit()
	s.number = g.number
	_ = s.setLevel(cfg)
	s.engine.Swapped()
	if previous != nil {
		s.leave(previous)
	}
	s.adopted(g, time.Now())
	return nil
}

// leave ends the background of a generation that serves no more. A refresh of
// a session that is under way is waited for elsewhere: whoever refreshes next
// needs the lease that it holds until then.
func (s *Server) leave(g *generation) {
	g.pool.Close()
	s.leaving.Go(g.stop)
}

// Reload reads the configuration now and gives the problems that made it be
// refused; none means that it serves.
func (s *Server) Reload(ctx context.Context) []string {
	s.change.Lock()
	defer s.change.Unlock()
	var before *config.Config
	if g := s.current.Load(); g != nil {
		before = g.cfg
	}
	s.take(context.WithoutCancel(ctx), config.Reload(before, s.o.ConfigFile, s.o.Env))
	return s.changes.problems()
}
