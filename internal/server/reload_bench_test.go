package server_test

import (
	"fmt"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// BenchmarkReload is the curve of a one-route change over the number of
// routes, on one core, in a running program:
//
//	go test ./internal/server -run - -bench Reload -benchtime 20x
//
// edit changes a route in the middle; insert puts one in front of all others,
// or takes it away, so that every other route moves. live-ms is from the write
// of the file until the change answers, cpu-ms what the process computed
// meanwhile, start-ms the first load; kept-B is by how much the live heap grew
// per change, heap-MB the live heap, and peak-MB how much more there was at
// most during a change.
func BenchmarkReload(b *testing.B) {
	for _, kind := range []string{"edit", "insert"} {
		for _, routes := range []int{100, 1000, 10000, 50000} {
			b.Run(fmt.Sprintf("%s/%d", kind, routes), func(b *testing.B) { benchmarkReload(b, kind, routes) })
		}
	}
}

func benchmarkReload(b *testing.B, kind string, routes int) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var head, tail strings.Builder
	for i := range routes {
		to := &tail
		if i < routes/2 {
			to = &head
		}
		fmt.Fprintf(to, "  - name: app %d\n    from: https://app-%d.localhost\n    to: http://10.0.%d.%d:8080\n    prefix: /api\n    set_request_headers:\n      X-App: app-%d\n    policy:\n      - allow:\n          and:\n            - domain:\n                is: team-%d.example.com\n            - http_path:\n                starts_with: /api\n", i, i, i/250%250, i%250, i, i)
	}
	text := func(n int) string {
		probe := fmt.Sprintf("  - from: https://probe.localhost\n    response: {status: 200, body: version %d}\n    allow_public_unauthenticated_access: true\n", n)
		if kind == "edit" {
			return "routes:\n" + head.String() + probe + tail.String()
		}
		if n%2 == 1 {
			probe = "  - from: https://new.localhost\n    to: http://10.1.1.1:80\n" + probe
		}
		return "routes:\n" + probe + head.String() + tail.String()
	}
	started := time.Now()
	p := servertest.Start(b, text(0))
	start := time.Since(started)
	written, err := os.ReadFile(p.Config)
	if err != nil {
		b.Fatal(err)
	}
	global, _, _ := strings.Cut(string(written), "routes:\n")
	agent := p.Agent()
	probe := func(n int) bool {
		page := agent.Get("https://probe.localhost/")
		return page != nil && page.Body == fmt.Sprintf("version %d", n)
	}
	change := func(n int) (live, cpu time.Duration, peak uint64) {
		// Making the text is not what is measured.
		if err := os.WriteFile(p.Config+".new", []byte(global+text(n)), 0o600); err != nil {
			b.Fatal(err)
		}
		before, at := processTime(), time.Now()
		if err := os.Rename(p.Config+".new", p.Config); err != nil {
			b.Fatal(err)
		}
		for !probe(n) {
			if time.Since(at) > time.Minute {
				b.Fatalf("change %d is not live\n%s", n, p.Log)
			}
			peak = max(peak, heapNow())
			time.Sleep(4 * time.Millisecond)
		}
		return time.Since(at), processTime() - before, max(peak, heapNow())
	}
	n := 0
	for range 4 { // warm
		n++
		change(n)
	}
	base := liveHeap()
	var live, cpu, worst time.Duration
	var peak uint64
	b.ResetTimer()
	for b.Loop() {
		n++
		l, c, most := change(n)
		live, cpu, worst = live+l, cpu+c, max(worst, l)
		peak = max(peak, most)
	}
	b.StopTimer()
	kept := float64(liveHeap()) - float64(base)
	per := float64(b.N)
	b.ReportMetric(live.Seconds()*1000/per, "live-ms")
	b.ReportMetric(worst.Seconds()*1000, "worst-ms")
	b.ReportMetric(cpu.Seconds()*1000/per, "cpu-ms")
	b.ReportMetric(start.Seconds()*1000, "start-ms")
	b.ReportMetric(kept/per, "kept-B")
	b.ReportMetric(float64(base)/(1<<20), "heap-MB")
	b.ReportMetric((float64(peak)-float64(base))/(1<<20), "peak-MB")
	b.ReportMetric(0, "ns/op")
}

// processTime is the processor time that this process used.
func processTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heapNow() uint64 {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// liveHeap is what is still held once all garbage is gone.
func liveHeap() uint64 {
	for range 3 {
		runtime.GC()
	}
	return heapNow()
}
