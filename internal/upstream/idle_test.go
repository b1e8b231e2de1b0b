package upstream

import (
	"fmt"
	"net/url"
	"runtime"
	"testing"
)

// manySpecs are n routes to two names each, with the certificates of a company.
func manySpecs(t testing.TB, n int, roots []byte) []Spec {
	t.Helper()
	specs := make([]Spec, n)
	for i := range specs {
		for k := range 2 {
			u, err := url.Parse(fmt.Sprintf("https://app-%d-%d.internal.test:8443", i, k))
			if err != nil {
				t.Fatal(err)
			}
			specs[i].Endpoints = append(specs[i].Endpoints, Endpoint{URL: u})
		}
		specs[i].TLS.ExtraRoots = roots
		specs[i].Balancing = RoundRobin
		specs[i].ID = fmt.Sprint("route ", i)
	}
	return specs
}

// TestIdleTargets: a target that rests costs little, and no goroutine.
func TestIdleTargets(t *testing.T) {
	const n = 2000
	specs := manySpecs(t, n, newAuthority(t).PEM)
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before, running := heap(), runtime.NumGoroutine()
	p, failed := Build(specs, nil, nil)
	if failed != nil {
		t.Fatal(failed[0])
	}
	p.Start()
	each := (heap() - before) / n
	t.Logf("%d bytes per target of two names", each)
	if each > 3<<10 {
		t.Errorf("%d bytes per target", each)
	}
	if now := runtime.NumGoroutine(); now > running+5 {
		t.Errorf("%d goroutines for idle targets", now-running)
	}
	again, _ := Build(specs, p, nil)
	if grown := heap() - before; grown > n*(3<<10) {
		t.Errorf("an unchanged reload takes %d bytes", grown)
	}
	for i := range specs {
		if again.Target(i) != p.Target(i) {
			t.Fatal("not shared")
		}
	}
	if p.Target(0).tls != p.Target(1).tls || p.Target(0).resolver != p.Target(1).resolver {
		t.Error("equal settings are not shared")
	}
	p.Close()
	// Equal settings of a new target are found in those of a shared one.
	third, _ := Build(append(manySpecs(t, 1, specs[0].TLS.ExtraRoots), specs[5]), again, nil)
	if third.Target(0).tls != third.Target(1).tls {
		t.Error("settings are not shared over generations")
	}
	again.Close()
	third.Close()
	runtime.KeepAlive(specs)
}

// TestUnverified: routes that trust anybody are told once.
func TestUnverified(t *testing.T) {
	skip := Spec{Endpoints: endpoints(t, "https://a"), TLS: TLS{SkipVerify: true}}
	clear := Spec{Endpoints: endpoints(t, "http://a"), TLS: TLS{SkipVerify: true}}
	one, _ := Build([]Spec{skip, {Endpoints: endpoints(t, "https://a")}, clear, skip}, nil, nil)
	defer one.Close()
	if got := fmt.Sprint(one.Unverified()); got != "[0 3]" {
		t.Errorf("routes %s", got)
	}
	two, _ := Build([]Spec{skip, {Endpoints: endpoints(t, "https://b"), TLS: TLS{SkipVerify: true}}}, one, nil)
	defer two.Close()
	if got := fmt.Sprint(two.Unverified()); got != "[1]" {
		t.Errorf("after a reload, routes %s", got)
	}
}

func BenchmarkRebuild(b *testing.B) {
	specs := manySpecs(b, 10000, nil)
	p, _ := Build(specs, nil, nil)
	defer p.Close()
	b.ReportAllocs()
	for b.Loop() {
		again, _ := Build(specs, p, nil)
		again.Close()
	}
}
