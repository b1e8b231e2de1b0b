package upstream

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"sync"
)

// parts are what targets with equal settings share, over generations: they
// are large, or know what is worth keeping.
type parts struct {
	before    *parts // of the previous pool, while this one is built
	tls       map[string]*tlsSettings
	resolvers map[string]*resolver
	roots     map[string]*x509.CertPool
	// well are the hosts that passed the checks of the previous pool's
	// targets, while this one is built.
	well func() map[string]bool
}

func newParts(previous *Pool) *parts {
	p := &parts{tls: map[string]*tlsSettings{}, resolvers: map[string]*resolver{}, roots: map[string]*x509.CertPool{}}
	if previous != nil {
		p.before = previous.parts
	}
	p.well = sync.OnceValue(previous.wellHosts)
	return p
}

// adopt takes over the parts of a target that is shared with the previous pool.
func (p *parts) adopt(t *Target) {
	p.tls[t.tls.key] = t.tls
	p.roots[t.tls.rootsKey] = t.tls.base.RootCAs
	p.resolvers[t.resolver.key] = t.resolver
}

func (p *parts) resolver(d DNS) (*resolver, error) {
	key := d.key()
	if r := p.resolvers[key]; r != nil {
		return r, nil
	}
	if p.before != nil && p.before.resolvers[key] != nil {
		return p.before.resolvers[key], nil
	}
	r, err := newResolver(d)
	if err == nil {
		p.resolvers[key] = r
	}
	return r, err
}

func (p *parts) tlsSettings(s *TLS) (*tlsSettings, error) {
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(plain)
	key := string(sum[:])
	if t := p.tls[key]; t != nil {
		return t, nil
	}
	if p.before != nil && p.before.tls[key] != nil {
		return p.before.tls[key], nil
	}
	t, err := s.clientConfig(p)
	if err != nil {
		return nil, err
	}
	t.key = key
	p.tls[key] = t
	return t, nil
}

// rootPool gives the certificates that verify upstreams: custom ones alone, or
// the system's and extra ones.
func (p *parts) rootPool(custom, extra []byte) (pool *x509.CertPool, key string, err error) {
	kind, pem := "extra:", extra
	if len(custom) > 0 {
		kind, pem = "custom:", custom
	}
	sum := sha256.Sum256(pem)
	key = kind + string(sum[:])
	if pool = p.roots[key]; pool != nil {
		return pool, key, nil
	}
	if p.before != nil && p.before.roots[key] != nil {
		return p.before.roots[key], key, nil
	}
	if len(custom) > 0 {
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(custom) {
			return nil, "", errors.New("tls_custom_ca holds no certificate; give PEM")
		}
	} else {
		if pool, err = x509.SystemCertPool(); err != nil || pool == nil {
			pool = x509.NewCertPool()
		}
		if len(extra) > 0 && !pool.AppendCertsFromPEM(extra) {
			return nil, "", errors.New("certificate_authority holds no certificate; give PEM")
		}
	}
	p.roots[key] = pool
	return pool, key, nil
}
