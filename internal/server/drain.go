package server

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"postern/internal/record"
	"postern/internal/store/handover"
)

// serveRecords lets the old process read and write what it has given away.
func (h *heir) serveRecords(s record.Store) {
	if h == nil {
		return
	}
	handler := http.StripPrefix("/records", handover.Handler(s))
	h.mu.Lock()
	h.records = handler
	h.mu.Unlock()
	h.opened.answer(nil)
}

// takeOver is the heir's end of an upgrade: it serves, says so, and takes the
// place of the old process when that tells it to.
func (s *Server) takeOver(ctx context.Context) error {
	h := s.heir
	h.mu.Lock()
	h.reload = func() []string { return s.Reload(ctx) }
	h.mu.Unlock()
	if err := h.await(ctx, h.serving); err != nil {
		return err
	}
	h.serving.answer(nil)
	if err := h.await(ctx, h.committed); err != nil {
		return err
	}
	s.doors.mu.Lock()
	err := s.doors.control.take()
	s.doors.mu.Unlock()
	if err != nil {
		return err
	}
	h.committed.answer(nil)
	s.doors.open()
	return nil
}

// upgradeOnSignal hands over when asked to.
func (s *Server) upgradeOnSignal(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.o.Upgrade:
		}
		if err := s.Upgrade(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("the upgrade failed, this process goes on serving", "error", err)
		}
	}
}

// drainAfterUpgrade lets open requests and streams finish while another process
// serves, as long as upgrade_drain_timeout and ctx allow. They are decided again
// meanwhile, by the same records and by configurations that this process takes
// in, too.
func (s *Server) drainAfterUpgrade(ctx context.Context) {
	limit := s.current.Load().cfg.Control.UpgradeDrainTimeout
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	s.doors.retire(ctx)
	s.log.Info("handed over and drained", "after", time.Since(began).Round(time.Millisecond).String())
}

// superseded ends a draining process that cannot take in a configuration which
// its successor serves: its streams could not be judged by the rules in force.
// A successor that is gone can vouch for nothing.
func (s *Server) superseded(ctx context.Context) {
	h := s.successor.Load()
	if h == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if h.gone() || h.supersedes(ctx) {
		s.log.Warn("the configuration of the process that took over cannot be read by this one: open streams end")
		s.doors.close()
	}
}

// statusLine is what systemctl status shows.
func (s *Server) statusLine() string {
	g := s.current.Load()
	if g == nil {
		return "STATUS=starting"
	}
	line := fmt.Sprintf("STATUS=serving %d routes, generation %d", len(g.cfg.Routes), g.number)
	if s.changes.now().refused != nil {
		line += "; the last change was refused, see postern status"
	}
	return line
}
