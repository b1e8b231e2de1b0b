package upstream

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strconv"
)

// ring is a hash ring over all hosts of a set, usable or not: a host that
// fails gives its keys to the ones behind it, and takes just those back.
type ring struct {
	points []uint64
	owners []uint16 // of points, indexes of set.hosts
	hosts  []*host
}

// Points on the ring for a host of the least weight, others have more: with
// two hosts it makes the 1024 of which a ring consists at least, with very
// many hosts fewer do. The number does not depend on how many there are
// otherwise, so that a host that leaves moves no keys between the others.
const (
	pointsPerHost = 512
	pointsIfMany  = 128
	manyHosts     = 64
	maxRing       = 1 << 20
)

func newRing(set *hostSet) *ring {
	n := min(len(set.hosts), 1<<16-1)
	least, sum := set.hosts[0].weight.Load(), uint64(0)
	for _, h := range set.hosts[:n] {
		least = min(least, h.weight.Load())
		sum += h.weight.Load()
	}
	per := float64(pointsPerHost)
	if n > manyHosts {
		per = pointsIfMany
	}
	per = min(per, maxRing*float64(least)/float64(sum)) / float64(least)
	type point struct {
		at    uint64
		owner uint16
	}
	var all []point
	for i, h := range set.hosts[:n] {
		name := hostName(h)
		for p := range max(1, int(per*float64(h.weight.Load()))) {
			// Each sum gives four points.
			if p%4 == 0 {
				sum := sha256.Sum256([]byte(name + "_" + strconv.Itoa(p/4)))
				for k := range 4 {
					all = append(all, point{binary.BigEndian.Uint64(sum[8*k:]), uint16(i)})
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b point) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return int(a.owner) - int(b.owner)
	})
	r := &ring{points: make([]uint64, len(all)), owners: make([]uint16, len(all)), hosts: set.hosts}
	for i, p := range all {
		r.points[i], r.owners[i] = p.at, p.owner
	}
	return r
}

// pick gives the first host at or behind the key that b may choose.
func (r *ring) pick(key uint64, b *balance, not *host) *host {
	i, _ := slices.BinarySearch(r.points, key)
	everybody := len(b.hosts) == len(r.hosts)
	for range r.points {
		if i == len(r.points) {
			i = 0
		}
		if h := r.hosts[r.owners[i]]; h != not && (everybody || h.usable()) {
			return h
		}
		i++
	}
	return b.other(not)
}

// maglevSize is the number of slots, a prime.
const maglevSize = 65537

// maglevTable gives each host slots by its weight (Eisenbud et al., Maglev: A
// Fast and Reliable Software Network Load Balancer, §3.4).
type maglevTable []uint16

func newMaglev(hosts []*host) maglevTable {
	n := min(len(hosts), 1<<16-1)
	type row struct{ offset, skip, next uint64 }
	rows := make([]row, n)
	heaviest := uint64(0)
	for i, h := range hosts[:n] {
		sum := sha256.Sum256([]byte(hostName(h)))
		rows[i] = row{binary.BigEndian.Uint64(sum[:]) % maglevSize, binary.BigEndian.Uint64(sum[8:])%(maglevSize-1) + 1, 0}
		heaviest = max(heaviest, h.weight.Load())
	}
	table, taken := make(maglevTable, maglevSize), make([]bool, maglevSize)
	shares := make([]uint64, n)
	for filled := 0; ; {
		for i := range rows {
			// A host takes a slot in as many rounds as its weight allows.
			if shares[i] += hosts[i].weight.Load(); shares[i] < heaviest {
				continue
			}
			shares[i] -= heaviest
			r := &rows[i]
			for {
				slot := (r.offset + r.next*r.skip) % maglevSize
				r.next++
				if !taken[slot] {
					taken[slot], table[slot] = true, uint16(i)
					break
				}
			}
			if filled++; filled == maglevSize {
				return table
			}
		}
	}
}

func (m maglevTable) pick(key uint64, hosts []*host, not *host) *host {
	for range 64 {
		if h := hosts[m[key%maglevSize]]; h != not {
			return h
		}
		key = key*0x9E3779B97F4A7C15 + 1
	}
	i := slices.Index(hosts, not)
	return hosts[(i+1)%len(hosts)]
}

// hostName is what a host hashes as: the same on every replica, and the same
// after a restart.
func hostName(h *host) string { return h.endpoint.name + "|" + h.addr }
