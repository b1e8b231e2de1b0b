package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// AutocertCounts are the numbers of certificates got by ACME.
type AutocertCounts struct {
	Certificates int
	Renewals     uint64
	NextExpiry   time.Time // zero: there is no certificate
	// States counts hosts by state: valid, pending, failing.
	States map[string]int
}

// autocertCollector asks for the numbers when it is scraped.
type autocertCollector struct {
	counts func() AutocertCounts
}

var (
	autocertCertificates = prometheus.NewDesc("pomerium_autocert_certificates_total", "Certificates got by ACME that are served.", nil, nil)
	autocertRenewals     = prometheus.NewDesc("pomerium_autocert_renewals_total", "Certificates renewed by this process.", nil, nil)
	autocertExpiry       = prometheus.NewDesc("pomerium_autocert_certificate_next_expires_seconds", "Unix time in seconds at which the first certificate ends.", nil, nil)
	autocertHosts        = prometheus.NewDesc("postern_autocert_hosts", "Hosts that are to have a certificate, by state.", []string{"state"}, nil)
)

// ObserveAutocert lets metrics ask for the numbers of certificates by ACME.
// While there are neither hosts nor certificates there are no metrics.
func (m *Metrics) ObserveAutocert(counts func() AutocertCounts) {
	if m != nil {
		m.reg.MustRegister(autocertCollector{counts})
	}
}

// Describe implements prometheus.Collector: what comes is not fixed.
func (autocertCollector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (a autocertCollector) Collect(out chan<- prometheus.Metric) {
	c := a.counts()
	hosts := 0
	for _, n := range c.States {
		hosts += n
	}
	if hosts == 0 && c.Certificates == 0 {
		return
	}
	for state, n := range c.States {
		out <- prometheus.MustNewConstMetric(autocertHosts, prometheus.GaugeValue, float64(n), state)
	}
	out <- prometheus.MustNewConstMetric(autocertCertificates, prometheus.GaugeValue, float64(c.Certificates))
	out <- prometheus.MustNewConstMetric(autocertRenewals, prometheus.CounterValue, float64(c.Renewals))
	if !c.NextExpiry.IsZero() {
		out <- prometheus.MustNewConstMetric(autocertExpiry, prometheus.GaugeValue, float64(c.NextExpiry.Unix()))
	}
}
