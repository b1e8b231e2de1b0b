package certs

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"
)

// ALPNChallenge is the protocol of an ACME server's challenge (RFC 8737).
const ALPNChallenge = "acme-tls/1"

// challenge says whether a hello is an ACME server's challenge.
func challenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPNChallenge
}

// Certificate gives the certificate for a handshake: for the exact name or
// (without a name) the address, a wildcard, one obtained for it, from the local
// CA, the derived one, or else the first one configured. Of several for one
// name ECDSA is preferred where the client can, and the expired come last.
func (s *Set) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := serverName(hello.ServerName)
	if name == "" && hello.Conn != nil {
		// A client that dials an address sends no name (RFC 6066 §3).
		if host, _, err := net.SplitHostPort(hello.Conn.LocalAddr().String()); err == nil {
			name = host
		}
	}
	named := append([]*pair(nil), s.exact[name]...)
	if i := strings.IndexByte(name, '.'); i > 0 {
		named = append(named, s.wildcard[name[i:]]...)
	}
	now := s.now()
	if c := choose(named, hello, now, (*pair).current); c != nil {
		return c, nil
	}
	if s.managed != nil {
		if c, err := s.managed(hello); c != nil || err != nil {
			return c, err
		}
	}
	if c := choose(named, hello, now, nil); c != nil {
		return c, nil
	}
	// A must-staple certificate whose first staple is on its way is worth
	// waiting for.
	if c := s.await(named, hello); c != nil {
		return c, nil
	}
	if len(named) > 0 && !anyServes(named, now) {
		return nil, fmt.Errorf("the certificate for %q says must-staple, and its OCSP responder has given no staple yet", hello.ServerName)
	}
	if s.local != nil && LocalName(name) {
		return s.local.leaf(name)
	}
	if s.derived != nil {
		if s.internal != "" && name == s.internal {
			return s.derived.leaf(name, now)
		}
		return s.derived.leaf("*", now)
	}
	if c := choose(s.all, hello, now, (*pair).current); c != nil {
		return c, nil
	}
	if c := choose(s.all, hello, now, nil); c != nil {
		return c, nil
	}
	for _, p := range s.all { // the client supports none: it will say so
		if c := p.serve(now); c != nil {
			return c, nil
		}
	}
	if s.local != nil {
		return s.local.leaf("localhost") // no name, or a stranger's
	}
	return nil, fmt.Errorf("there is no certificate for %q that can be served", hello.ServerName)
}

// Has tells whether a configured certificate serves a name, so that none need
// be got for it.
func (s *Set) Has(name string) bool {
	name = serverName(name)
	if len(s.exact[name]) > 0 {
		return true
	}
	i := strings.IndexByte(name, '.')
	return i >= 0 && len(s.wildcard[name[i:]]) > 0
}

// choose gives the first certificate that the client supports, ECDSA before
// RSA; only those that are fit, if fit is not nil.
func choose(list []*pair, hello *tls.ClientHelloInfo, now time.Time, fit func(*pair, time.Time) bool) *tls.Certificate {
	if len(list) == 0 {
		return nil
	}
	// SupportsCertificate also compares names; a name was matched before, and
	// for the certificate of last resort it does not matter.
	unnamed := *hello
	unnamed.ServerName = ""
	for _, ec := range []bool{true, false} {
		for _, p := range list {
			if p.ecdsa != ec || fit != nil && !fit(p, now) {
				continue
			}
			if c := p.serve(now); c != nil && unnamed.SupportsCertificate(c) == nil {
				return c
			}
		}
	}
	return nil
}

func anyServes(list []*pair, now time.Time) bool {
	for _, p := range list {
		if p.serve(now) != nil {
			return true
		}
	}
	return false
}

// Waiter is a connection that hears that its handshake is about to wait for
// others, so that it lets go of what other handshakes need meanwhile.
type Waiter interface{ HandshakeWaits() }

// HandshakeWaits tells the connection of a hello, if it wants to know.
func HandshakeWaits(hello *tls.ClientHelloInfo) {
	if w, ok := hello.Conn.(Waiter); ok {
		w.HandshakeWaits()
	}
}

// firstStaple bounds the wait of a handshake for the first staple.
const firstStaple = 3 * time.Second

func (s *Set) await(list []*pair, hello *tls.ClientHelloInfo) *tls.Certificate {
	var wait context.Context
	for _, p := range list {
		if !p.mustStaple || p.serve(s.now()) != nil {
			continue
		}
		if wait == nil {
			ctx, cancel := context.WithTimeout(hello.Context(), firstStaple)
			defer cancel()
			wait = ctx
			HandshakeWaits(hello)
		}
		select {
		case <-p.tried:
		case <-wait.Done():
			return nil
		}
	}
	if wait == nil {
		return nil
	}
	return choose(list, hello, s.now(), nil)
}
