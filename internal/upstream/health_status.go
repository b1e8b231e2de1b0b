package upstream

import "time"

// HostTrouble is a host that is out of use at present.
type HostTrouble struct {
	// Slot is the route's.
	Slot int
	// Endpoint is where the host comes from, as configured; Address is its own.
	Endpoint, Address string
	// State is unhealthy (by health checks) or ejected (by outlier detection).
	State string
	// Reason says in the operator's words why, Since from when on.
	Reason string
	Since  time.Time
}

// Troubles lists at most limit hosts that are unhealthy or ejected, by slot,
// and tells how many there are in all.
func (p *Pool) Troubles(limit int) (list []HostTrouble, total int) {
	if p == nil {
		return nil, 0
	}
	for slot, t := range p.targets {
		if t == nil {
			continue
		}
		for _, h := range t.hostsNow() {
			unhealthy, ejected := h.unhealthy.Load(), h.ejected.Load()
			if !unhealthy && !ejected {
				continue
			}
			if total++; len(list) >= limit {
				continue
			}
			out := HostTrouble{Slot: slot, Endpoint: h.endpoint.name, Address: h.addr, State: "unhealthy"}
			if !unhealthy {
				out.State = "ejected"
			}
			for _, m := range t.monitors {
				if reason, since := m.trouble(h); reason != "" && out.Reason == "" {
					out.Reason, out.Since = reason, since
				}
			}
			list = append(list, out)
		}
	}
	return list, total
}

// Members counts the hosts of a slot, and those that are healthy and not
// ejected.
func (p *Pool) Members(slot int) (healthy, ejected, total int) {
	t := p.Target(slot)
	if t == nil {
		return 0, 0, 0
	}
	for _, h := range t.hostsNow() {
		total++
		if h.usable() {
			healthy++
		}
		if h.ejected.Load() {
			ejected++
		}
	}
	return healthy, ejected, total
}

// hostsNow are the hosts, as far as names were resolved.
func (t *Target) hostsNow() []*host {
	if set := t.hosts.Load(); set != nil {
		return set.hosts
	}
	return nil
}

// name tells the host from others of a pool.
func (h *host) name() string { return h.endpoint.name + " " + h.addr }

// wellHosts are the names of the hosts that pass their checks.
func (p *Pool) wellHosts() map[string]bool {
	if p == nil {
		return nil
	}
	well := map[string]bool{}
	for _, t := range p.targets {
		if t == nil || !t.checked {
			continue
		}
		for _, h := range t.hostsNow() {
			if !h.unhealthy.Load() {
				well[h.name()] = true
			}
		}
	}
	return well
}
