package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

func (d *decoder) checkSignIn() {
	a := &d.cfg.Authn
	a.CookieNameSet = d.isSet("cookie_name") && a.CookieName != ""
	if a.CookieName == "" {
		a.CookieName = "_pomerium"
	}
	if !isToken(a.CookieName) {
		d.bad("cookie_name", shorten(a.CookieName)+" is not the name of a cookie", "use letters, digits, - and _")
	}
	a.CookieDomain = strings.ToLower(strings.TrimPrefix(strings.TrimSpace(a.CookieDomain), "."))
	if a.CookieDomain != "" && !isHostName(a.CookieDomain) {
		d.bad("cookie_domain", shorten(a.CookieDomain)+" is not a domain", "write a domain such as example.com, without port")
	}
	if strings.HasPrefix(a.CookieName, "__Host-") && a.CookieDomain != "" {
		d.bad("cookie_domain", "browsers refuse a cookie named __Host-... with a domain", "change cookie_name or remove cookie_domain")
	}
	if a.CookieExpire <= 0 {
		d.bad("cookie_expire", "sessions would end at once", "write a duration such as 14h")
	}
	i := &d.cfg.Identity
	i.IDPProvider = strings.ToLower(strings.TrimSpace(i.IDPProvider))
	if i.IDPProvider != "" && !slices.Contains(knownProviders, i.IDPProvider) {
		hint := "use one of " + strings.Join(knownProviders, ", ")
		if near := suggest(i.IDPProvider, knownProviders); near != "" {
			hint = "did you mean " + near + "? Any OpenID Connect provider works as oidc"
		}
		message := "the provider " + shorten(i.IDPProvider) + " is not known"
		d.problem(LevelWarning, KindInvalid, "idp_provider", message+", so nobody can sign in", hint)
		d.startProblem(KindInvalid, "idp_provider", message, hint)
	}
	if i.IDPProviderURL != "" {
		if u, err := url.Parse(i.IDPProviderURL); err != nil || u.Scheme != "" && u.Scheme != "https" && u.Scheme != "http" {
			d.bad("idp_provider_url", shorten(i.IDPProviderURL)+" is not a URL", "write https://host/path, without /.well-known/openid-configuration")
		}
	}
	if node := d.cfg.Control.AdminPolicy; node != nil {
		d.cfg.AdminPolicy = d.policyAt(node, "admin_policy")
	}
}

// knownProviders are the words of idp_provider.
var knownProviders = []string{
	"apple", "auth0", "azure", "cognito", "github", "gitlab", "google", "hosted",
	"local", "oidc", "okta", "onelogin", "ping",
}

var hostName = regexp.MustCompile(`^(\*\.)?[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?(\.[a-zA-Z0-9_]([a-zA-Z0-9_-]*[a-zA-Z0-9_])?)*\.?$`)

func isHostName(s string) bool { return len(s) <= 253 && hostName.MatchString(s) }

// jwtAlgs are the signature algorithms of bearer tokens.
var jwtAlgs = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

func (d *decoder) checkProviders() {
	issuers := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Identity.Providers)) {
		p := d.cfg.Identity.Providers[name]
		path := "identity_providers." + name
		if name == "" || strings.Contains(name, "/") {
			d.bad(path, "the name of a provider is empty or holds a /", "use lower-case letters, digits and -")
		}
		u, err := url.Parse(p.Issuer)
		switch {
		case p.Issuer == "":
			d.bad(path+".issuer", "the issuer is missing", "write the issuer URL of the tokens")
		case err != nil:
			d.bad(path+".issuer", shorten(p.Issuer)+" is not a URL", "write the issuer URL of the tokens")
		case u.Scheme == "kubernetes":
			if p.JWKSURL != "" {
				d.bad(path+".jwks_url", "a kubernetes:/// issuer takes its keys from the API server", "remove jwks_url")
			}
		case u.Host == "" || !secureURL(u):
			d.bad(path+".issuer", shorten(p.Issuer)+" is not an absolute https URL", "use https; http is allowed for loopback only")
		}
		if other, dup := issuers[p.Issuer]; dup && p.Issuer != "" {
			d.bad(path+".issuer", "the issuer is that of "+other+", too", "name every issuer once")
		}
		issuers[p.Issuer] = name
		if p.JWKSURL != "" {
			if u, err := url.Parse(p.JWKSURL); err != nil || u.Host == "" || !secureURL(u) {
				d.bad(path+".jwks_url", shorten(p.JWKSURL)+" is not an absolute https URL", "use https; http is allowed for loopback only")
			}
		}
		if len(p.Audiences) == 0 {
			d.bad(path+".audiences", "no audience is named", "name at least one audience that the tokens are made for")
		}
		for i, alg := range p.SupportedAlgs {
			if !slices.Contains(jwtAlgs, alg) {
				d.bad(indexed(path+".supported_algs", i), shorten(alg)+" is not a permitted algorithm", "use "+strings.Join(jwtAlgs, ", "))
			}
		}
	}
}

// secureURL accepts https, and http for loopback.
func secureURL(u *url.URL) bool {
	switch u.Scheme {
	case "https":
		return true
	case "http":
		host := u.Hostname()
		a, err := netip.ParseAddr(host)
		return host == "localhost" || strings.HasSuffix(host, ".localhost") || err == nil && a.IsLoopback()
	}
	return false
}

func (d *decoder) checkIdentityHeaders() {
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Authz.JWTClaimsHeaders)) {
		if !isToken(name) {
			d.bad("jwt_claims_headers."+name, shorten(name)+" is not the name of a header", "use letters, digits and -")
		}
	}
	d.checkReuse("assertion_reuse", d.cfg.Authz.AssertionReuse)
	if d.cfg.Store.MaxStale <= 0 {
		d.bad("max_stale", "every decision would be refused", "write a duration such as 10s")
	}
}

func (d *decoder) checkReuse(path string, reuse time.Duration) {
	if reuse > time.Minute {
		d.bad(path, fmt.Sprintf("%v is longer than 60s", reuse), "an assertion may be used again for at most 60s")
	}
}
