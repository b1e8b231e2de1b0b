package upstream

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// watched makes a detector over n hosts. Without change one of them may
// always be ejected, or all of them.
func watched(t *testing.T, n int, change func(*Outlier)) (*outlierDetector, []*host, *Target) {
	t.Helper()
	o := &Outlier{MaxEjectionPercent: ptr(uint32(100))}
	if change != nil {
		change(o)
	}
	target := &Target{}
	m, err := newOutlierDetector(target, o)
	if err != nil {
		t.Fatal(err)
	}
	d := m.(*outlierDetector)
	var hosts []*host
	for i := range n {
		hosts = append(hosts, aHost(fmt.Sprintf("192.0.2.%d:80", i+1)))
	}
	d.hostsChanged(hosts)
	return d, hosts, target
}

var (
	fine        = outcome{status: 200}
	broken      = outcome{status: 500}
	gateway     = outcome{status: 503, gateway: true}
	unconnected = outcome{local: true}
)

// feed observes outcomes: f fine, b 500, g 503, u unconnected.
func feed(d *outlierDetector, h *host, s string) {
	for _, c := range s {
		d.observe(h, map[rune]outcome{'f': fine, 'b': broken, 'g': gateway, 'u': unconnected}[c])
	}
}

func TestConsecutiveFailures(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	never := func(o *Outlier) { o.EnforcingConsecutive5xx = n(0) }
	for _, tc := range []struct {
		name   string
		change func(*Outlier)
		seen   string
		want   bool
	}{
		{"consecutive_5xx is 5", nil, "bbbb", false},
		{"consecutive_5xx is 5", nil, "bbbbb", true},
		{"a success begins anew", nil, "bbbbfbbbb", false},
		{"gateway failures are 5xx too", nil, "bgbgb", true},
		{"so are failures of connecting", nil, "ububu", true},
		{"consecutive_5xx", func(o *Outlier) { o.Consecutive5xx = n(2) }, "bb", true},
		{"enforcing_consecutive_5xx", never, "bbbbbbbbbbbb", false},
		{"gateway failures alone do not eject", never, "gggggggg", false},
		{"enforcing_consecutive_gateway_failure", func(o *Outlier) { never(o); o.EnforcingConsecutiveGatewayFailure = n(100) }, "ggggg", true},
		{"a 500 is no gateway failure", func(o *Outlier) { never(o); o.EnforcingConsecutiveGatewayFailure = n(100) }, "ggggbgggg", false},
		{"consecutive_gateway_failure", func(o *Outlier) {
			never(o)
			o.EnforcingConsecutiveGatewayFailure, o.ConsecutiveGatewayFailure = n(100), n(2)
		}, "gu", true},
		{"split_external_local_origin_errors: apart", func(o *Outlier) { o.SplitExternalLocalOriginErrors = ptr(true) }, "ubububub", false},
		{"split_external_local_origin_errors: in a row", func(o *Outlier) { o.SplitExternalLocalOriginErrors = ptr(true) }, "uuuuu", true},
		{"an answer is a connection", func(o *Outlier) { o.SplitExternalLocalOriginErrors = ptr(true) }, "uuuubuuuu", false},
		{"consecutive_local_origin_failure", func(o *Outlier) {
			o.SplitExternalLocalOriginErrors, o.ConsecutiveLocalOriginFailure = ptr(true), n(2)
		}, "uu", true},
		{"enforcing_consecutive_local_origin_failure", func(o *Outlier) {
			o.SplitExternalLocalOriginErrors, o.EnforcingConsecutiveLocalOriginFailure = ptr(true), n(0)
		}, "uuuuuuu", false},
	} {
		d, hosts, target := watched(t, 1, tc.change)
		feed(d, hosts[0], tc.seen)
		if got := hosts[0].ejected.Load(); got != tc.want {
			t.Errorf("%s: after %s ejected is %v", tc.name, tc.seen, got)
		}
		if tc.want != (target.version.Load() == 1) {
			t.Errorf("%s: %d changes told", tc.name, target.version.Load())
		}
		d.close()
	}
}

// max_ejection_percent and always_eject_one_host: by default nothing is
// ejected below ten hosts.
func TestHowManyMayBeEjected(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	for _, tc := range []struct {
		hosts  int
		change func(*Outlier)
		want   int
	}{
		{1, func(o *Outlier) { o.MaxEjectionPercent = nil }, 0},
		{9, func(o *Outlier) { o.MaxEjectionPercent = nil }, 0},
		{10, func(o *Outlier) { o.MaxEjectionPercent = nil }, 1},
		{20, func(o *Outlier) { o.MaxEjectionPercent = nil }, 2},
		{1, func(o *Outlier) { o.MaxEjectionPercent, o.AlwaysEjectOneHost = nil, ptr(true) }, 1},
		{9, func(o *Outlier) { o.MaxEjectionPercent, o.AlwaysEjectOneHost = nil, ptr(true) }, 1},
		{4, func(o *Outlier) { o.MaxEjectionPercent = n(50) }, 2},
		{5, func(o *Outlier) { o.MaxEjectionPercent = n(50) }, 2},
		{5, func(o *Outlier) { o.MaxEjectionPercent = n(100) }, 5},
		{5, func(o *Outlier) { o.MaxEjectionPercent = n(0) }, 0},
		{5, func(o *Outlier) { o.MaxEjectionPercent, o.AlwaysEjectOneHost = n(0), ptr(true) }, 1},
	} {
		d, hosts, _ := watched(t, tc.hosts, tc.change)
		got := 0
		for _, h := range hosts {
			feed(d, h, "bbbbb")
			if h.ejected.Load() {
				got++
			}
		}
		if got != tc.want {
			t.Errorf("%d of %d hosts ejected, want %d", got, tc.hosts, tc.want)
		}
		d.close()
	}
}

// enforcing_* between 0 and 100 are chances.
func TestEnforcingIsAChance(t *testing.T) {
	out := 0
	for range 400 {
		d, hosts, _ := watched(t, 1, func(o *Outlier) { o.EnforcingConsecutive5xx = ptr(uint32(50)) })
		feed(d, hosts[0], "bbbbb")
		if hosts[0].ejected.Load() {
			out++
		}
		d.close()
	}
	if out < 120 || out > 280 { // 8 standard deviations
		t.Errorf("ejected %d of 400 times by a chance of 50 %%", out)
	}
}

// An ejection lasts base_ejection_time times its count, at most
// max_ejection_time, and max_ejection_time_jitter is added; it ends with the
// first sweep behind it. Quiet intervals are forgiven.
func TestEjectionTimes(t *testing.T) {
	seconds := func(n int) *time.Duration { return ptr(time.Duration(n) * time.Second) }
	// lengths ejects again and again, quiet apart, and tells how long each time was.
	lengths := func(change func(*Outlier), quiet time.Duration, times int) string {
		var out []string
		synctest.Test(t, func(t *testing.T) {
			d, hosts, _ := watched(t, 1, change)
			for range times {
				feed(d, hosts[0], "bbbbb")
				began := time.Now()
				for hosts[0].ejected.Load() && len(out) < 20 {
					time.Sleep(time.Second)
					synctest.Wait()
				}
				out = append(out, fmt.Sprint(time.Since(began).Seconds()))
				time.Sleep(quiet)
			}
			d.close()
		})
		return strings.Join(out, " ")
	}
	for _, tc := range []struct {
		name   string
		change func(*Outlier)
		quiet  time.Duration
		want   string
	}{
		{"by default", nil, 0, "30 60 90 120"},
		{"base_ejection_time", func(o *Outlier) { o.BaseEjectionTime = seconds(20) }, 0, "20 40 60 80"},
		{"max_ejection_time", func(o *Outlier) { o.MaxEjectionTime = seconds(50) }, 0, "30 50 50 50"},
		{"unset, the longest time is not below the base", func(o *Outlier) { o.BaseEjectionTime = seconds(400) }, 0, "400 400 400 400"},
		{"interval", func(o *Outlier) { o.Interval = seconds(7) }, 0, "35 63 91 126"},
		{"quiet intervals are forgiven", nil, 15 * time.Second, "30 30 30 30"},
	} {
		if got := lengths(tc.change, tc.quiet, 4); got != tc.want {
			t.Errorf("%s: ejected for %s, want %s", tc.name, got, tc.want)
		}
	}
	seen := map[string]bool{}
	for range 20 {
		got := lengths(func(o *Outlier) { o.MaxEjectionTimeJitter, o.Interval = seconds(10), seconds(1) }, 0, 1)
		var s int
		fmt.Sscan(got, &s)
		if s < 30 || s > 41 {
			t.Errorf("max_ejection_time_jitter: ejected for %s s", got)
		}
		seen[got] = true
	}
	if len(seen) < 3 {
		t.Errorf("max_ejection_time_jitter: only %v", seen)
	}
}

// The sweep judges by success rate and by the percentage of failures.
func TestEjectionByRates(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	consecutiveOff := func(o *Outlier) {
		o.EnforcingConsecutive5xx, o.EnforcingConsecutiveLocalOriginFailure = n(0), n(0)
	}
	percentage := func(o *Outlier) {
		consecutiveOff(o)
		o.EnforcingSuccessRate, o.EnforcingLocalOriginSuccessRate, o.EnforcingFailurePercentage = n(0), n(0), n(100)
	}
	split := func(o *Outlier) { consecutiveOff(o); o.SplitExternalLocalOriginErrors = ptr(true) }
	five := []string{"100f", "100f", "100f", "100f", "70f30b"}
	local := []string{"100f", "100f", "100f", "100f", "70f30u"}
	awful := []string{"100f", "100f", "100f", "100f", "15f85b"}
	for _, tc := range []struct {
		name   string
		change func(*Outlier)
		hosts  []string
		want   string
	}{
		{"one is worse", consecutiveOff, five, "5"},
		{"all are alike", consecutiveOff, []string{"70f30b", "70f30b", "70f30b", "70f30b", "70f30b"}, ""},
		{"enforcing_success_rate", func(o *Outlier) { consecutiveOff(o); o.EnforcingSuccessRate = n(0) }, five, ""},
		{"success_rate_minimum_hosts is 5", consecutiveOff, five[1:], ""},
		{"success_rate_minimum_hosts", func(o *Outlier) {
			consecutiveOff(o)
			o.SuccessRateMinimumHosts, o.SuccessRateStdevFactor = n(4), n(1000)
		}, five[1:], "4"},
		{"success_rate_request_volume is 100", consecutiveOff, []string{"100f", "100f", "100f", "100f", "70f29b"}, ""},
		{"success_rate_request_volume", func(o *Outlier) { consecutiveOff(o); o.SuccessRateRequestVolume = n(10) }, []string{"10f", "10f", "10f", "10f", "7f3b"}, "5"},
		{"success_rate_stdev_factor", func(o *Outlier) { consecutiveOff(o); o.SuccessRateStdevFactor = n(2100) }, five, ""},
		{"failures of connecting count", consecutiveOff, local, "5"},
		{"apart: they do not count as answers", func(o *Outlier) { split(o); o.EnforcingLocalOriginSuccessRate = n(0) }, local, ""},
		{"apart: enforcing_local_origin_success_rate", split, local, "5"},
		{"apart: answers are judged as before", split, five, "5"},
		{"enforcing_failure_percentage is 0", func(o *Outlier) { percentage(o); o.EnforcingFailurePercentage = nil }, awful, ""},
		{"enforcing_failure_percentage", percentage, awful, "5"},
		{"failure_percentage_threshold is 85", percentage, []string{"100f", "100f", "100f", "100f", "16f84b"}, ""},
		{"failure_percentage_threshold", func(o *Outlier) { percentage(o); o.FailurePercentageThreshold = n(30) }, five, "5"},
		{"failure_percentage_minimum_hosts is 5", percentage, awful[1:], ""},
		{"failure_percentage_minimum_hosts", func(o *Outlier) { percentage(o); o.FailurePercentageMinimumHosts = n(4) }, awful[1:], "4"},
		{"failure_percentage_request_volume is 50", percentage, []string{"50f", "50f", "50f", "50f", "49b"}, ""},
		{"failure_percentage_request_volume", func(o *Outlier) { percentage(o); o.FailurePercentageRequestVolume = n(10) }, []string{"10f", "10f", "10f", "10f", "10b"}, "5"},
		{"enforcing_failure_percentage_local_origin is 0", func(o *Outlier) { percentage(o); o.SplitExternalLocalOriginErrors = ptr(true) }, []string{"100f", "100f", "100f", "100f", "100u"}, ""},
		{"enforcing_failure_percentage_local_origin", func(o *Outlier) {
			percentage(o)
			o.SplitExternalLocalOriginErrors, o.EnforcingFailurePercentageLocalOrigin = ptr(true), n(100)
		}, []string{"100f", "100f", "100f", "100f", "100u"}, "5"},
	} {
		synctest.Test(t, func(t *testing.T) {
			d, hosts, _ := watched(t, len(tc.hosts), tc.change)
			for i, s := range tc.hosts {
				n := 0
				for _, c := range s { // such as 70f30b
					if c >= '0' && c <= '9' {
						n = 10*n + int(c-'0')
						continue
					}
					feed(d, hosts[i], strings.Repeat(string(c), n))
					n = 0
				}
			}
			time.Sleep(10*time.Second - 1)
			for _, h := range hosts {
				if h.ejected.Load() {
					t.Errorf("%s: ejected before the sweep", tc.name)
				}
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			got := ""
			for i, h := range hosts {
				if h.ejected.Load() {
					got += fmt.Sprint(i + 1)
				}
			}
			if got != tc.want {
				t.Errorf("%s: ejected %q, want %q", tc.name, got, tc.want)
			}
			d.close()
		})
	}
}

// A good health check ends an ejection, unless it is told not to
// (successful_active_health_check_uneject_host).
func TestHealthCheckUnejects(t *testing.T) {
	for unejects, want := range map[bool]bool{true: false, false: true} {
		synctest.Test(t, func(t *testing.T) {
			d, hosts, target := watched(t, 1, func(o *Outlier) { o.SuccessfulActiveHealthCheckUnejectHost = &unejects })
			m, _ := scripted(t, &script{verdicts: []verdict{good}}, nil, aCheck(nil))
			m.hostsChanged(hosts)
			time.Sleep(time.Second)
			m.observe(hosts[0], broken)
			feed(d, hosts[0], "bbbbb")
			if !hosts[0].ejected.Load() {
				t.Error("not ejected")
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if got := hosts[0].ejected.Load(); got != want {
				t.Errorf("%v: after a good check ejected is %v", unejects, got)
			}
			if changes := target.version.Load(); changes != map[bool]uint64{true: 2, false: 1}[unejects] {
				t.Errorf("%d changes told", changes)
			}
			m.close()
			d.close()
		})
	}
}

// Nothing stays behind: no timer while all is well, none behind close; a host
// that left is forgotten.
func TestDetectorRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &strings.Builder{}
		d, hosts, _ := watched(t, 5, nil)
		d.log = slog.New(slog.NewTextHandler(log, nil))
		feed(d, hosts[0], "fffff")
		if !d.armed.Load() {
			t.Error("requests do not set the sweep")
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if d.armed.Load() {
			t.Error("the sweep is set although nothing happens")
		}
		feed(d, hosts[0], "bbbbb")
		if reason, since := d.trouble(hosts[0]); reason == "" || since.IsZero() {
			t.Error("nothing is told about an ejected host")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if d.armed.Load() || hosts[0].ejected.Load() {
			t.Error("the sweep goes on, or the host is not back")
		}
		for _, line := range []string{"upstream host is ejected", "192.0.2.1:80", "answers 5xx in a row", "for=30s", "upstream host is no longer ejected", "its time is over"} {
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log does not tell %q: %s", line, log)
			}
		}
		d.hostsChanged(hosts[1:])
		feed(d, hosts[0], "bbbbbbbbbb")
		if hosts[0].ejected.Load() {
			t.Error("a host that left is ejected")
		}
		feed(d, hosts[1], "bbbbb")
		d.close()
		feed(d, hosts[2], "bbbbb")
		if hosts[2].ejected.Load() {
			t.Error("ejected behind close")
		}
		time.Sleep(time.Hour)
	})
}

// Observing from many goroutines loses nothing that matters.
func TestObserveAtOnce(t *testing.T) {
	d, hosts, _ := watched(t, 10, func(o *Outlier) { o.Interval = ptr(time.Millisecond) })
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 2000 {
				feed(d, hosts[(n+i)%10], "fb")
			}
		})
	}
	wg.Go(func() {
		for n := range 100 {
			d.hostsChanged(hosts[:5+n%6])
		}
		d.hostsChanged(hosts)
	})
	wg.Wait()
	feed(d, hosts[9], "fbbbbb")
	if !hosts[9].ejected.Load() {
		t.Error("not ejected")
	}
	d.close()
}

func TestOutlierSettings(t *testing.T) {
	n := func(v uint32) *uint32 { return &v }
	for _, tc := range []struct {
		o    *Outlier
		want string
	}{
		{nil, ""}, {&Outlier{}, ""},
		{&Outlier{Interval: ptr(time.Duration(0))}, "outlier_detection.interval: "},
		{&Outlier{BaseEjectionTime: ptr(-time.Second)}, "outlier_detection.base_ejection_time: "},
		{&Outlier{MaxEjectionTime: ptr(time.Duration(0))}, "outlier_detection.max_ejection_time: "},
		{&Outlier{MaxEjectionTimeJitter: ptr(-time.Second)}, "outlier_detection.max_ejection_time_jitter: "},
		{&Outlier{MaxEjectionPercent: n(101)}, "outlier_detection.max_ejection_percent: 101 is not a percentage"},
		{&Outlier{EnforcingSuccessRate: n(200)}, "outlier_detection.enforcing_success_rate: "},
	} {
		got := ""
		if bad := CheckOutlier(tc.o); len(bad) > 0 {
			got = bad[0].Error()
		}
		if tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

// The hot path costs no allocation, and next to nothing where nothing could
// be ejected.
func TestObserveAllocatesNothing(t *testing.T) {
	d, hosts, _ := watched(t, 10, nil)
	defer d.close()
	feed(d, hosts[0], "f")
	if n := testing.AllocsPerRun(1000, func() { d.observe(hosts[0], fine) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{1, 4, 10} {
		b.Run(fmt.Sprint(n, " hosts"), func(b *testing.B) {
			m, _ := newOutlierDetector(&Target{}, &Outlier{})
			d := m.(*outlierDetector)
			var hosts []*host
			for range n {
				hosts = append(hosts, aHost("192.0.2.1:80"))
			}
			d.hostsChanged(hosts)
			defer d.close()
			for b.Loop() {
				d.observe(hosts[0], fine)
			}
		})
	}
}
