package config

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"postern/internal/policy"
	"postern/internal/proxy"
	"postern/internal/route"
	"postern/internal/upstream"
)

// spec is the part of a route by which it is told from others.
func (r *Route) spec() route.Spec {
	s := route.Spec{
		From: r.Match.From, Prefix: r.Match.Prefix, Path: r.Match.Path, Regex: r.Match.Regex,
		DownstreamServerName: r.Match.TLSDownstreamServerName,
	}
	for _, e := range r.Upstream.To {
		s.To = append(s.To, e.String())
	}
	if r.Proxy.Redirect != nil {
		s.Redirect = r.Proxy.Redirect.String()
	}
	if r.Proxy.Response != nil {
		s.Response = strconv.Itoa(r.Proxy.Response.Status) + " " + r.Proxy.Response.Body
	}
	return s
}

func (d *decoder) checkRoute(r *Route) {
	p := r.Path() + "."
	if r.Match.From == "" {
		d.bad(p+"from", "from is missing", "write from: https://host")
	} else if from, err := route.ParseFrom(r.Match.From); err != nil {
		d.bad(p+"from", err.Error(), "")
	} else if from.Scheme == "http" {
		d.problem(LevelLogged, KindInvalid, p+"from", "the scheme http is matched like https, with the default port 80", "write https://"+from.Authority())
	}
	d.checkAction(r, p)
	d.checkRewrite(r, p)
	d.checkRateLimits(r.Proxy.RateLimit, p+"rate_limit")
	d.checkRouteTLS(r, p)
	d.checkHealth(r, p)
	d.checkAccess(r, p)
	d.checkRouteExtra(r, p)
}

func (d *decoder) checkAction(r *Route, p string) {
	to := r.Upstream.To
	if len(to) == 0 && r.Proxy.Redirect == nil && r.Proxy.Response == nil {
		if d.isSet(strings.ToLower(p + "to")) {
			d.bad(p+"to", "to is empty", "write to: http://host:port")
		} else {
			d.bad(r.Path(), "the route has none of to, redirect and response", "write to: http://host:port")
		}
	}
	if redirect := r.Proxy.Redirect; redirect != nil {
		if code := redirect.ResponseCode; code != nil && !slices.Contains([]int{301, 302, 303, 307, 308}, *code) {
			d.bad(p+"redirect.response_code", fmt.Sprintf("%d is not the status of a redirect", *code), "use 301, 302, 303, 307 or 308")
		}
		if port := redirect.PortRedirect; port != nil && (*port > 65535 || *port == 0) {
			d.bad(p+"redirect.port_redirect", fmt.Sprintf("%d is not a port", *port), "write a number from 1 to 65535")
		}
	}
	if response := r.Proxy.Response; response != nil && (response.Status < 200 || response.Status > 599) {
		d.bad(p+"response.status", fmt.Sprintf("%d is not the status of a final response", response.Status), "write a number from 200 to 599")
	}
	d.checkEndpoints(r, p)
}

// checkEndpoints checks the endpoints of to against each other.
func (d *decoder) checkEndpoints(r *Route, p string) {
	to := r.Upstream.To
	weighted, plain := 0, 0
	schemes := map[string]bool{}
	for _, e := range to {
		if e.URL == nil || e.URL.Scheme == "" {
			return // already reported
		}
		if e.Weight > 0 {
			weighted++
		} else {
			plain++
		}
		schemes[e.URL.Scheme] = true
	}
	if weighted > 0 && plain > 0 {
		d.bad(p+"to", fmt.Sprintf("%d of %d endpoints carry a weight", weighted, len(to)), "give all endpoints a weight or none")
	}
	if len(schemes) > 1 {
		for _, alone := range []string{"tcp", "udp", "unix", "https+unix", "ssh", "h3"} {
			if schemes[alone] {
				d.bad(p+"to", "an endpoint of the scheme "+alone+" cannot stand beside others of "+strings.Join(otherSchemes(schemes, alone), ", "), "use one scheme")
				break
			}
		}
	}
	if schemes["h3"] && (r.Proxy.AllowWebsockets || r.Proxy.AllowSPDY) {
		d.bad(p+"to", "an endpoint of the scheme h3 carries no WebSockets or SPDY, which the route allows", "use https, or remove allow_websockets and allow_spdy")
	}
	if from, err := route.ParseFrom(r.Match.From); err == nil && from.Protocol == route.SSH {
		if len(to) != 1 || to[0].URL.Scheme != "ssh" {
			d.bad(p+"to", "an ssh route has exactly one endpoint, of the scheme ssh", "write to: ssh://host")
		}
	}
}

func otherSchemes(schemes map[string]bool, but string) []string {
	out := slices.Sorted(maps.Keys(schemes))
	return slices.DeleteFunc(out, func(s string) bool { return s == but })
}

func (d *decoder) checkRewrite(r *Route, p string) {
	x := &r.Proxy
	if x.PrefixRewrite != "" && x.RegexRewritePattern != "" {
		d.bad(p+"regex_rewrite_pattern", "prefix_rewrite is set, too", "keep one of them")
	}
	d.checkHeaders(p+"set_request_headers", x.SetRequestHeaders, false)
	d.checkHeaders(p+"set_response_headers", x.SetResponseHeaders, true)
	for i, name := range x.RemoveRequestHeaders {
		if !isToken(strings.TrimSpace(name)) {
			d.bad(indexed(p+"remove_request_headers", i), shorten(name)+" is not the name of a header", "use letters, digits and -")
		}
	}
	for i, rw := range x.RewriteResponseHeaders {
		if !isToken(rw.Header) {
			d.bad(indexed(p+"rewrite_response_headers", i), shorten(rw.Header)+" is not the name of a header", "write header, prefix and value")
		}
	}
	if x.HostRewriteHeader != "" && !isToken(x.HostRewriteHeader) {
		d.bad(p+"host_rewrite_header", shorten(x.HostRewriteHeader)+" is not the name of a header", "use letters, digits and -")
	}
	for i, up := range x.AllowUpgrades {
		if up != "" && !isUpgrade(up) {
			d.bad(indexed(p+"allow_upgrades", i), shorten(up)+" is not the name of a protocol", "write a token such as websocket")
		}
	}
}

func (d *decoder) checkRateLimits(list []proxy.RateLimit, path string) {
	if i, err := proxy.CheckRateLimits(list); err != nil {
		d.bad(indexed(path, i), err.Error(), "")
	}
}

func (d *decoder) checkRouteTLS(r *Route, p string) {
	u := &r.Upstream
	d.half(d.isSet(p+"tls_client_cert"), d.isSet(p+"tls_client_key"), p+"tls_client_cert", p+"tls_client_key")
	d.half(d.isSet(p+"tls_client_cert_file"), d.isSet(p+"tls_client_key_file"), p+"tls_client_cert_file", p+"tls_client_key_file")
	if len(u.TLSClientCert) > 0 && len(u.TLSClientKey) > 0 {
		source := d.setOne(p+"tls_client_cert_file", p+"tls_client_cert")
		if !d.isSet(source) {
			source = p + "tls_client_cert"
		}
		d.keyPair(keyPairOf(source, u.TLSClientCert, u.TLSClientKey), source)
	}
	d.needCA(p+"tls_custom_ca", u.TLSCustomCA)
	d.needCA(p+"tls_downstream_client_ca", r.Certs.TLSDownstreamClientCA)
	if u.TLSUpstreamServerName == "" {
		u.TLSUpstreamServerName = u.TLSServerName
	}
}

func (d *decoder) checkHealth(r *Route, p string) {
	if t := r.Upstream.HealthyPanicThreshold; t != nil && (*t < 0 || *t > 100) {
		d.bad(p+"healthy_panic_threshold", "the percentage is not from 0 to 100", "write a number such as 50")
	}
	bad := upstream.CheckHealthChecks(r.Upstream.HealthChecks, r.Upstream.To)
	for _, b := range append(bad, upstream.CheckOutlier(r.Upstream.OutlierDetection)...) {
		if name, missing := strings.CutSuffix(b.Message, " is missing"); missing && d.isSet(p+b.Key+"."+name) {
			continue // it is there, and was refused as such
		}
		d.bad(p+b.Key, b.Message, b.Hint)
	}
	for i, h := range r.Upstream.HealthChecks {
		const hint = "remove it"
		at := indexed(p+"health_checks", i)
		if len(h.TransportSocketMatchCriteria) > 0 {
			d.problem(LevelLogged, KindAccepted, at+".transport_socket_match_criteria", "a route has one set of TLS settings, and nothing to choose from: this has no effect", hint)
		}
		if h.HTTPHealthCheck != nil && len(h.HTTPHealthCheck.ServiceNameMatcher) > 0 {
			d.problem(LevelLogged, KindAccepted, at+".http_health_check.service_name_matcher", "it matches what another proxy says of itself in its answers: this has no effect", hint)
		}
	}
}

func (d *decoder) checkAccess(r *Route, p string) {
	a := &r.Authz
	// An empty list is still a list (§6.20).
	whitelist := ""
	switch {
	case a.AllowedUsers != nil:
		whitelist = "allowed_users"
	case a.AllowedDomains != nil:
		whitelist = "allowed_domains"
	}
	const one = "keep one of them"
	if a.AllowPublicUnauthenticatedAccess {
		if a.AllowAnyAuthenticatedUser {
			d.bad(p+"allow_public_unauthenticated_access", "allow_any_authenticated_user is set, too", one)
		}
		if whitelist != "" {
			d.bad(p+"allow_public_unauthenticated_access", whitelist+" is set, too", one)
		}
	}
	if a.AllowAnyAuthenticatedUser && whitelist != "" {
		d.bad(p+"allow_any_authenticated_user", whitelist+" is set, too", one)
	}
	if r.Policy != nil {
		r.Compiled = d.policyAt(r.Policy, p+"policy")
		if r.Compiled != nil && a.AllowPublicUnauthenticatedAccess {
			for _, w := range r.Compiled.WarningsIfPublic() {
				d.add(Problem{File: r.File, Line: w.Line, Column: w.Column, Path: w.Path, Message: w.Message, Level: LevelWarning})
			}
		}
	}
	shortcuts := policy.Shortcuts{
		Public: a.AllowPublicUnauthenticatedAccess, CORSPreflight: a.CORSAllowPreflight, AnyUser: a.AllowAnyAuthenticatedUser,
		Domains: a.AllowedDomains, Claims: a.AllowedIDPClaims, Users: a.AllowedUsers, FoldCase: true,
	}
	key, ok := shortcutsKey(shortcuts)
	r.Shortcuts = d.shared.find(key, ok, func() (*policy.Policy, bool) {
		s, err := shortcuts.Policy()
		if err != nil {
			d.bad(p+"allowed_idp_claims", err.Error(), "")
		}
		return s, err == nil
	})
	if r.Authz.AssertionReuse != nil {
		d.checkReuse(p+"assertion_reuse", *r.Authz.AssertionReuse)
	}
	d.checkDependsOn(r, p)
	d.checkRouteProviders(r, p)
}

func (d *decoder) checkDependsOn(r *Route, p string) {
	hosts := r.Authn.DependsOn
	if len(hosts) > 5 {
		d.bad(p+"depends_on", fmt.Sprintf("%d hosts are named", len(hosts)), "name at most five")
	}
	if len(hosts) > 0 && d.cfg.Authn.CookieDomain != "" {
		d.bad(p+"depends_on", "cookie_domain is set, too", "with cookie_domain one sign-in already serves all hosts: remove depends_on")
	}
	for i, h := range hosts {
		raw := strings.TrimSpace(h)
		if strings.Contains(raw, "://") {
			u, err := url.Parse(raw)
			if err != nil || u.Host == "" {
				d.bad(indexed(p+"depends_on", i), shorten(h)+" is not a host", "write host or host:port")
				continue
			}
			raw = u.Host
		} else if strings.ContainsAny(raw, "/?#") || raw == "" {
			d.bad(indexed(p+"depends_on", i), shorten(h)+" is not a host", "write host or host:port")
			continue
		}
		hosts[i] = strings.ToLower(raw)
	}
}

func (d *decoder) checkRouteProviders(r *Route, p string) {
	format := r.Authz.BearerTokenFormat
	if format == "" {
		format = d.cfg.Authz.BearerTokenFormat
	}
	providers := d.cfg.Identity.Providers
	for i, name := range r.Identity.IdentityProviders {
		name = strings.ToLower(name)
		if _, ok := providers[name]; !ok {
			hint := "declare it in the global identity_providers"
			if near := suggest(name, slices.Sorted(maps.Keys(providers))); near != "" {
				hint = "did you mean " + near + "?"
			}
			d.bad(indexed(p+"identity_providers", i), shorten(name)+" is not a declared provider", hint)
			continue
		}
		r.Identity.IdentityProviders[i] = name
	}
	if len(r.Identity.IdentityProviders) > 0 && format != "jwt" {
		d.bad(p+"identity_providers", "the route does not take JWT bearer tokens", "set bearer_token_format: jwt, or remove the list")
	}
	if format == "jwt" && len(providers) == 0 {
		path := p + "bearer_token_format"
		if r.Authz.BearerTokenFormat == "" {
			path = "bearer_token_format"
		}
		d.bad(path, "no identity provider is declared for JWT bearer tokens", "declare one in the global identity_providers")
	}
}

func (d *decoder) checkRouteExtra(r *Route, p string) {
	if mcp := r.Extra.MCP; mcp != nil {
		if mcp.Server == nil && mcp.Client == nil {
			d.bad(p+"mcp", "neither server nor client is set", "write mcp: {server: {}} or mcp: {client: {}}")
		}
		if mcp.Server != nil && mcp.Server.AuthorizationServerURL != "" {
			if u, err := url.Parse(mcp.Server.AuthorizationServerURL); err != nil || u.Scheme != "https" || u.Host == "" {
				d.bad(p+"mcp.server.authorization_server_url", shorten(mcp.Server.AuthorizationServerURL)+" is not an https URL", "write https://host")
			}
		}
	}
	if t := r.Extra.UpstreamTunnel; t != nil {
		if t.SSHPolicy != nil {
			d.policyAt(t.SSHPolicy, p+"upstream_tunnel.ssh_policy")
		}
		if !d.cfg.Flag("ssh_upstream_tunnel") {
			d.problem(LevelWarning, KindInvalid, p+"upstream_tunnel", "the flag ssh_upstream_tunnel is off, so the route uses to alone", "set runtime_flags: {ssh_upstream_tunnel: true}")
		}
	}
	if r.Extra.ShadowPolicy != nil {
		r.Shadow = d.policyAt(r.Extra.ShadowPolicy, p+"shadow_policy")
	}
	for i, sub := range r.Authz.SubPolicies {
		if sub.SourcePPL != "" {
			path := indexed(p+"sub_policies", i) + ".source_ppl"
			if _, _, err := policy.Parse("source_ppl", []byte(sub.SourcePPL), policy.Options{FoldCase: true}); err != nil {
				d.bad(path, strings.ReplaceAll(err.Error(), "\n", "; "), "")
			}
		}
	}
}
