package authz

import (
	"testing"

	"postern/internal/telemetry"
)

// BenchmarkDecideAllowed is an allowed request with a session cookie and a
// cached assertion, as almost all are.
func BenchmarkDecideAllowed(b *testing.B) {
	h := newHouse(b, app, passing)
	token := h.person("a", "a@corp.test", "app.corp.test", "g1", "g2")
	h.env.log = nil
	h.engine.metrics = telemetry.NewMetrics(telemetry.BuildInfo{})
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", "a=b; "+cookie(token), "User-Agent", "x", "Accept", "*/*"))
	if d := h.engine.Decide(b.Context(), req); d.Outcome != Allow || d.field(HeaderAssertion) == "" {
		b.Fatal(d.Outcome)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		h.engine.Decide(b.Context(), req)
	}
}

// BenchmarkDecideLogged adds the authorize log.
func BenchmarkDecideLogged(b *testing.B) {
	h := newHouse(b, app, passing)
	token := h.person("a", "a@corp.test", "app.corp.test")
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
	b.ReportAllocs()
	for range b.N {
		h.log.Reset()
		h.engine.Decide(b.Context(), req)
	}
}

// BenchmarkDecideSigned signs every request afresh (assertion_reuse 0s).
func BenchmarkDecideSigned(b *testing.B) {
	h := newHouse(b, app, passing, func(o *Options) { o.Config.AssertionReuse = 0 })
	token := h.person("a", "a@corp.test", "app.corp.test")
	h.env.log = nil
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
	b.ReportAllocs()
	for range b.N {
		h.engine.Decide(b.Context(), req)
	}
}

// TestDecideAllocations promises that the common case costs no garbage beyond
// the view's own iterators over Cookie and Authorization.
func TestDecideAllocations(t *testing.T) {
	h := newHouse(t, app, passing)
	token := h.person("a", "a@corp.test", "app.corp.test", "g1")
	h.env.log = nil
	req := h.request(request("GET", "https://app.corp.test/x", "Cookie", cookie(token)))
	ctx := t.Context()
	h.engine.Decide(ctx, req)
	if n := testing.AllocsPerRun(200, func() { h.engine.Decide(ctx, req) }); n > allocationsPromised {
		t.Errorf("%.0f allocations for an allowed request, promised at most %d", n, allocationsPromised)
	}
}
