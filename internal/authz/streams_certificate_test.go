package authz

import (
	"crypto/x509"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/exchange"
	"postern/internal/route"
)

// TestStreamsOutliveNoClientCA: what the client certificate of an open stream
// is worth is asked again with each generation, and each minute for its end.
func TestStreamsOutliveNoClientCA(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(s *street, worth *atomic.Uint32)
		want   string
	}{
		{"another CA", func(s *street, worth *atomic.Uint32) {
			worth.Store(uint32(exchange.CertificateInvalid))
			s.engine.Swapped()
		}, CutRefused},
		{"a CA at last", func(s *street, worth *atomic.Uint32) {
			worth.Store(uint32(exchange.CertificateMissing))
			s.engine.Swapped()
		}, CutRefused},
		{"expired", func(s *street, worth *atomic.Uint32) {
			worth.Store(uint32(exchange.CertificateInvalid))
			time.Sleep(sweepEvery + 2*time.Second)
		}, CutRefused},
		{"the same CA", func(s *street, worth *atomic.Uint32) { s.engine.Swapped() }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newStreet(t, chat)
				s.options.CertificateRule = true
				s.swap(chat)
				var worth atomic.Uint32
				worth.Store(uint32(exchange.CertificateValid))
				leaf := &x509.Certificate{}
				c := *s.gen.Load()
				c.ClientCertificate = func(chain []*x509.Certificate, rt *route.Route) exchange.CertificateState {
					if len(chain) != 1 || chain[0] != leaf || rt == nil {
						t.Errorf("asked about %v on %v", chain, rt)
					}
					return exchange.CertificateState(worth.Load())
				}
				s.gen.Store(&c)
				go s.engine.Run(t.Context())
				req := s.live("a", "a@corp.test", "chat.corp.test")
				peer := req.View.Peer()
				peer.Certificates, peer.CertificateState = []*x509.Certificate{leaf}, exchange.CertificateValid
				var cut cutter
				st, d := s.engine.Open(t.Context(), req, cut.cut)
				if d.Outcome != Allow {
					t.Fatal(d.Outcome)
				}
				tt.change(s, &worth)
				synctest.Wait()
				if cut.was() != tt.want {
					t.Errorf("cut %q, want %q", cut.was(), tt.want)
				}
				s.engine.CloseStream(st)
			})
		})
	}
}
