package server

import (
	"time"

	"postern/internal/telemetry"
)

// UpstreamTrouble is a host of an upstream that gets no traffic at present.
type UpstreamTrouble struct {
	Route    string    `json:"route"` // what the access log calls it (upstream-cluster)
	From     string    `json:"from"`
	Endpoint string    `json:"endpoint"`
	Address  string    `json:"address"`
	State    string    `json:"state"` // unhealthy or ejected
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since,omitzero"`
}

// maxTroubles bounds the hosts that the status lists.
const maxTroubles = 100

// troubles lists the hosts that are out of use, and counts them.
func (g *generation) troubles() (list []UpstreamTrouble, total int) {
	found, total := g.pool.Troubles(maxTroubles)
	if total == 0 {
		return nil, 0
	}
	routes := map[int]int{}
	for i, rt := range g.proxy.Table.Routes() {
		routes[rt.Slot] = i
	}
	for _, h := range found {
		out := UpstreamTrouble{Endpoint: h.Endpoint, Address: h.Address, State: h.State, Reason: h.Reason, Since: h.Since}
		if i, ok := routes[h.Slot]; ok {
			rt := g.proxy.Table.Routes()[i]
			out.Route, out.From = rt.ClusterName, rt.From.Raw
		}
		list = append(list, out)
	}
	return list, total
}

// upstreamMembers counts the hosts of all upstreams, for the metrics.
func (s *Server) upstreamMembers() map[string]telemetry.UpstreamMembers {
	out := map[string]telemetry.UpstreamMembers{}
	g := s.current.Load()
	if g == nil {
		return out
	}
	for _, rt := range g.proxy.Table.Routes() {
		healthy, ejected, total := g.pool.Members(rt.Slot)
		if total == 0 {
			continue
		}
		name := rt.StatName
		if name == "" {
			name = rt.ClusterName
		}
		n := out[name]
		out[name] = telemetry.UpstreamMembers{Total: n.Total + total, Healthy: n.Healthy + healthy, Ejected: n.Ejected + ejected}
	}
	return out
}
