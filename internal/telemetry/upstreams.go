package telemetry

import "github.com/prometheus/client_golang/prometheus"

// UpstreamMembers are the hosts of one upstream, for UpstreamHosts.
type UpstreamMembers struct {
	// Total counts all hosts, Healthy those in use, Ejected those that outlier
	// detection took out.
	Total, Healthy, Ejected int
}

// UpstreamHosts shows how many hosts upstreams have and how many are healthy.
// collect gives them by cluster when they are asked for. Call it once.
func (m *Metrics) UpstreamHosts(collect func() map[string]UpstreamMembers) {
	if m == nil {
		return
	}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"envoy_cluster_name"}, prometheus.Labels{"service": "pomerium-proxy"})
	}
	m.reg.MustRegister(&upstreamHosts{collect: collect,
		total:   desc("envoy_cluster_membership_total", "Hosts of an upstream."),
		healthy: desc("envoy_cluster_membership_healthy", "Hosts of an upstream that are neither unhealthy nor ejected."),
		ejected: desc("envoy_cluster_outlier_detection_ejections_active", "Hosts of an upstream that are ejected at present."),
	})
}

type upstreamHosts struct {
	collect                 func() map[string]UpstreamMembers
	total, healthy, ejected *prometheus.Desc
}

func (u *upstreamHosts) Describe(ch chan<- *prometheus.Desc) {
	ch <- u.total
	ch <- u.healthy
	ch <- u.ejected
}

func (u *upstreamHosts) Collect(ch chan<- prometheus.Metric) {
	for cluster, n := range u.collect() {
		for _, one := range []struct {
			desc  *prometheus.Desc
			count int
		}{{u.total, n.Total}, {u.healthy, n.Healthy}, {u.ejected, n.Ejected}} {
			ch <- prometheus.MustNewConstMetric(one.desc, prometheus.GaugeValue, float64(one.count), cluster)
		}
	}
}
