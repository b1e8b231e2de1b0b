package upstream

import (
	"context"
	"net"
)

// fixHosts makes the hosts of a target that needs no DNS.
func (t *Target) fixHosts() {
	set := &hostSet{}
	for _, e := range t.endpoints {
		if e.fixed == "" {
			return
		}
		set.hosts = append(set.hosts, t.newHost(e, e.fixed))
	}
	t.hosts.Store(set)
}

func (t *Target) newHost(e *endpoint, addr string) *host {
	h := &host{endpoint: e, addr: addr, weight: max(float64(e.weight), 1)}
	h.unhealthy.Store(t.checked)
	return h
}

// ready gives the hosts of now, resolving names if that is due.
func (t *Target) ready(ctx context.Context) (*hostSet, error) {
	if set := t.hosts.Load(); set != nil {
		return set, nil
	}
	set := &hostSet{}
	for _, e := range t.endpoints {
		if e.fixed != "" {
			set.hosts = append(set.hosts, t.newHost(e, e.fixed))
			continue
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", e.dnsName)
		if err != nil {
			return nil, &connectError{err}
		}
		for _, ip := range ips {
			set.hosts = append(set.hosts, t.newHost(e, net.JoinHostPort(ip.Unmap().String(), e.dnsPort)))
		}
	}
	t.hosts.Store(set)
	t.changed()
	return set, nil
}
