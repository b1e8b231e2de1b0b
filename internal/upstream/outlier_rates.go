package upstream

import (
	"fmt"
	"math"
	"time"
)

// outlierSettings is an Outlier with its defaults filled in.
type outlierSettings struct {
	interval, baseEjectionTime, maxEjectionTime, maxEjectionTimeJitter time.Duration

	maxEjectionPercent uint32
	alwaysEjectOneHost bool
	splitLocal         bool

	consecutive5xx, enforcingConsecutive5xx                               uint32
	consecutiveGatewayFailure, enforcingConsecutiveGatewayFailure         uint32
	consecutiveLocalOriginFailure, enforcingConsecutiveLocalOriginFailure uint32

	successRateMinimumHosts                               int
	successRateRequestVolume                              uint32
	successRateStdevFactor                                float64
	enforcingSuccessRate, enforcingLocalOriginSuccessRate uint32

	failurePercentageMinimumHosts                                     int
	failurePercentageRequestVolume, failurePercentageThreshold        uint32
	enforcingFailurePercentage, enforcingFailurePercentageLocalOrigin uint32

	healthCheckUnejects bool
}

// CheckOutlier tells what is wrong with the outlier detection of a route.
func CheckOutlier(o *Outlier) []KeyProblem {
	if o == nil {
		return nil
	}
	_, bad := compileOutlier(o)
	for i := range bad {
		bad[i].Key = "outlier_detection." + bad[i].Key
	}
	return bad
}

func compileOutlier(o *Outlier) (*outlierSettings, []KeyProblem) {
	var bad problems
	percent := func(name string, set *uint32, unset uint32) uint32 {
		if set != nil && *set > 100 {
			bad.add(name, fmt.Sprintf("%d is not a percentage", *set), "write a number from 0 to 100")
		}
		return orDefault(set, unset)
	}
	positive := func(name string, set *time.Duration, unset time.Duration) time.Duration {
		if set != nil && *set <= 0 {
			bad.add(name, "the time is not above 0", "write a time such as 30s")
		}
		return orDefault(set, unset)
	}
	s := &outlierSettings{
		interval:              positive("interval", o.Interval, 10*time.Second),
		baseEjectionTime:      positive("base_ejection_time", o.BaseEjectionTime, 30*time.Second),
		maxEjectionTimeJitter: orDefault(o.MaxEjectionTimeJitter, 0),
		maxEjectionPercent:    percent("max_ejection_percent", o.MaxEjectionPercent, 10),
		alwaysEjectOneHost:    orDefault(o.AlwaysEjectOneHost, false),
		splitLocal:            orDefault(o.SplitExternalLocalOriginErrors, false),

		consecutive5xx:                orDefault(o.Consecutive5xx, 5),
		consecutiveGatewayFailure:     orDefault(o.ConsecutiveGatewayFailure, 5),
		consecutiveLocalOriginFailure: orDefault(o.ConsecutiveLocalOriginFailure, 5),

		enforcingConsecutive5xx:                percent("enforcing_consecutive_5xx", o.EnforcingConsecutive5xx, 100),
		enforcingConsecutiveGatewayFailure:     percent("enforcing_consecutive_gateway_failure", o.EnforcingConsecutiveGatewayFailure, 0),
		enforcingConsecutiveLocalOriginFailure: percent("enforcing_consecutive_local_origin_failure", o.EnforcingConsecutiveLocalOriginFailure, 100),

		successRateMinimumHosts:         int(orDefault(o.SuccessRateMinimumHosts, 5)),
		successRateRequestVolume:        orDefault(o.SuccessRateRequestVolume, 100),
		successRateStdevFactor:          float64(orDefault(o.SuccessRateStdevFactor, 1900)) / 1000,
		enforcingSuccessRate:            percent("enforcing_success_rate", o.EnforcingSuccessRate, 100),
		enforcingLocalOriginSuccessRate: percent("enforcing_local_origin_success_rate", o.EnforcingLocalOriginSuccessRate, 100),

		failurePercentageMinimumHosts:         int(orDefault(o.FailurePercentageMinimumHosts, 5)),
		failurePercentageRequestVolume:        orDefault(o.FailurePercentageRequestVolume, 50),
		failurePercentageThreshold:            percent("failure_percentage_threshold", o.FailurePercentageThreshold, 85),
		enforcingFailurePercentage:            percent("enforcing_failure_percentage", o.EnforcingFailurePercentage, 0),
		enforcingFailurePercentageLocalOrigin: percent("enforcing_failure_percentage_local_origin", o.EnforcingFailurePercentageLocalOrigin, 0),

		healthCheckUnejects: orDefault(o.SuccessfulActiveHealthCheckUnejectHost, true),
	}
	// Unset, the longest ejection is not shorter than the first one.
	s.maxEjectionTime = positive("max_ejection_time", o.MaxEjectionTime, max(300*time.Second, s.baseEjectionTime))
	if s.maxEjectionTimeJitter < 0 {
		bad.add("max_ejection_time_jitter", "the time is below 0", "write a time such as 5s")
	}
	return s, bad
}

// sentence is a host to be ejected, in percent of the cases.
type sentence struct {
	h       *host
	reason  string
	percent uint32
}

// hostRate is the share of good answers of a host, in percent.
type hostRate struct {
	h     *host
	total uint32
	rate  float64
}

// judge takes the counts of the interval and compares the hosts that are not
// ejected. It is called with mu held.
func (d *outlierDetector) judge() []sentence {
	var answers, attempts []hostRate
	for _, h := range d.hosts {
		s := &h.outlier
		// Good first: whoever counts does it in the other order.
		good, total := s.good.Swap(0), s.total.Swap(0)
		goodLocal, totalLocal := s.goodLocal.Swap(0), s.totalLocal.Swap(0)
		if h.ejected.Load() {
			continue
		}
		answers = append(answers, rateOf(h, good, total))
		attempts = append(attempts, rateOf(h, goodLocal, totalLocal))
	}
	o := d.o
	out := o.outliers(answers, "success rate", o.enforcingSuccessRate, "failure percentage", o.enforcingFailurePercentage)
	if o.splitLocal {
		out = append(out, o.outliers(attempts, "success rate of connecting", o.enforcingLocalOriginSuccessRate,
			"failure percentage of connecting", o.enforcingFailurePercentageLocalOrigin)...)
	}
	return out
}

func rateOf(h *host, good, total uint32) hostRate {
	r := hostRate{h: h, total: total, rate: 100}
	if total > 0 {
		r.rate = 100 * float64(min(good, total)) / float64(total)
	}
	return r
}

// outliers are the hosts too far below the mean of those with enough
// requests, and those with too large a share of failures.
func (o *outlierSettings) outliers(rates []hostRate, byRate string, enforcingRate uint32, byShare string, enforcingShare uint32) []sentence {
	var out []sentence
	if busy := withVolume(rates, o.successRateRequestVolume); len(busy) > 0 && len(busy) >= o.successRateMinimumHosts {
		mean, deviation := spread(busy)
		limit := mean - deviation*o.successRateStdevFactor
		for _, r := range busy {
			if r.rate < limit {
				out = append(out, sentence{r.h, fmt.Sprintf("%s %.1f %%, below %.1f %%", byRate, r.rate, limit), enforcingRate})
			}
		}
	}
	if busy := withVolume(rates, o.failurePercentageRequestVolume); len(busy) > 0 && len(busy) >= o.failurePercentageMinimumHosts {
		for _, r := range busy {
			if 100-r.rate >= float64(o.failurePercentageThreshold) {
				out = append(out, sentence{r.h, fmt.Sprintf("%s %.1f %%", byShare, 100-r.rate), enforcingShare})
			}
		}
	}
	return out
}

func withVolume(rates []hostRate, volume uint32) []hostRate {
	var out []hostRate
	for _, r := range rates {
		if r.total > 0 && r.total >= volume {
			out = append(out, r)
		}
	}
	return out
}

// spread is the mean and the standard deviation (of the population).
func spread(rates []hostRate) (mean, deviation float64) {
	for _, r := range rates {
		mean += r.rate
	}
	mean /= float64(len(rates))
	for _, r := range rates {
		deviation += (r.rate - mean) * (r.rate - mean)
	}
	return mean, math.Sqrt(deviation / float64(len(rates)))
}
