package config

import (
	"maps"
	"slices"
	"strings"
	"time"

	"postern/internal/certs"
	"postern/internal/proxy"
	"postern/internal/route"
)

// streamIdle is how long a stream may be without bytes (configuration.md
// §2.11), unless its route says otherwise.
const streamIdle = 5 * time.Minute

func keyPairOf(source string, cert, key []byte) certs.KeyPair {
	return certs.KeyPair{Source: source, CertPEM: cert, KeyPEM: key}
}

// resolveMeaning computes what keys mean together, so that those who obey
// them need not know which key inherits from which. Routes follow by
// themselves (resolveRoute).
func (d *decoder) resolveMeaning() {
	c := d.cfg
	c.Proxy.SetResponseHeaders = c.globalResponseHeaders()
}

// globalResponseHeaders is the effective set (configuration.md §2.12): the
// security defaults if the key is unset, nothing if it names disable.
func (c *Config) globalResponseHeaders() map[string]string {
	set := c.Proxy.SetResponseHeaders
	if set == nil {
		out := map[string]string{
			"X-Frame-Options":  "SAMEORIGIN",
			"X-XSS-Protection": "1; mode=block",
		}
		// Without a certificate that people trust, HSTS would lock them out.
		if len(c.Certs.Pairs) > 0 && !c.Certs.AutocertUseStaging {
			out["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains; preload"
		}
		return out
	}
	if disabled(set) {
		return map[string]string{}
	}
	return set
}

func disabled(headers map[string]string) bool {
	for name := range headers {
		if strings.EqualFold(name, "disable") {
			return true
		}
	}
	return false
}

// mergeHeaders puts the headers of over on those of under, in any case.
func mergeHeaders(under, over map[string]string) map[string]string {
	if disabled(over) {
		return map[string]string{}
	}
	out := maps.Clone(under)
	if out == nil {
		out = map[string]string{}
	}
	for name, value := range over {
		for have := range out {
			if strings.EqualFold(have, name) {
				delete(out, have)
			}
		}
		out[name] = value
	}
	return out
}

func (c *Config) resolveRoute(r *Route) {
	kubernetes := r.Extra.KubernetesToken != "" || r.Extra.KubernetesTokenFile != ""
	upgrades := c.Proxy.AllowUpgrades
	if r.Proxy.AllowUpgrades != nil {
		upgrades = r.Proxy.AllowUpgrades
	}
	var allowed []string
	allow := func(name string) {
		if name = strings.ToLower(name); name != "" && !slices.Contains(allowed, name) {
			allowed = append(allowed, name)
		}
	}
	if r.Proxy.AllowWebsockets || kubernetes {
		allow("websocket")
	}
	if r.Proxy.AllowSPDY || kubernetes {
		allow("spdy/3.1")
	}
	for _, name := range upgrades {
		allow(name)
	}
	websockets := slices.Contains(allowed, "websocket")

	from, _ := route.ParseFrom(r.Match.From)
	unlimited := websockets || from.Protocol == route.TCP || from.Protocol == route.UDP || kubernetes ||
		r.Extra.MCP != nil && r.Extra.MCP.Server != nil
	timeout := func(own *time.Duration, inherited time.Duration) time.Duration {
		switch {
		case own != nil:
			return *own
		case unlimited:
			return 0
		}
		return inherited
	}
	r.Proxy.Resolved = proxy.Resolved{
		Timeout:         timeout(r.Proxy.Timeout, c.Proxy.DefaultUpstreamTimeout),
		IdleTimeout:     timeout(r.Proxy.IdleTimeout, streamIdle),
		Upgrades:        allowed,
		Websockets:      websockets,
		ResponseHeaders: mergeHeaders(c.Proxy.SetResponseHeaders, r.Proxy.SetResponseHeaders),
		RateLimit:       c.Proxy.RateLimit,
	}
	if r.Proxy.RateLimit != nil {
		r.Proxy.Resolved.RateLimit = r.Proxy.RateLimit
	}

	a := &r.Authz
	a.Resolved.PassIdentityHeaders = c.Authz.PassIdentityHeaders != nil && *c.Authz.PassIdentityHeaders
	if a.PassIdentityHeaders != nil {
		a.Resolved.PassIdentityHeaders = *a.PassIdentityHeaders
	}
	a.Resolved.BearerTokenFormat = firstWord(a.BearerTokenFormat, c.Authz.BearerTokenFormat, "default")
	if a.Resolved.BearerTokenFormat == "unknown" {
		a.Resolved.BearerTokenFormat = "default"
	}
	a.Resolved.JWTIssuerFormat = firstWord(a.JWTIssuerFormat, c.Authz.JWTIssuerFormat, "hostOnly")
	a.Resolved.AssertionReuse = c.Authz.AssertionReuse
	if a.AssertionReuse != nil {
		a.Resolved.AssertionReuse = *a.AssertionReuse
	}
}

func firstWord(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}
