package server

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"postern/internal/authz"
	"postern/internal/certs"
	"postern/internal/config"
	"postern/internal/identity"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/upstream"
)

// compiled is what a configuration becomes without touching the world outside:
// the part that Check runs too.
type compiled struct {
	table     *route.Table
	signIn    *url.URL
	shared    bool    // the sign-in host serves a route as well
	parts     []*part // by slot
	premises  premises
	cookies   session.CookieNames
	accounts  []session.LocalAccount
	provider  identity.Settings
	admin     *policy.Set
	certRule  bool
	clientCAs bool
	// later are settings that this version cannot serve: validate tells them,
	// the start refuses.
	later []config.Problem
	// scripts is where custom scripts are compiled; the first one makes it.
	scripts scripts
}

// Check compiles a configuration and gives everything that is wrong with it
// (postern validate). It touches no network.
func Check(cfg *config.Config) []config.Problem {
	c, problems := compile(cfg, nil)
	if config.Fatal(problems) {
		return problems
	}
	problems = append(problems, c.later...)
	pool, failed := upstream.Build(c.specs(), nil, nil)
	for _, f := range failed {
		problems = append(problems, c.problem(f.Slot, f.Err))
	}
	if pool != nil {
		defer pool.Close()
	}
	if set, err := certs.New(c.certOptions(cfg, make([]byte, session.KeySize), nil)); err != nil {
		problems = append(problems, config.Problem{Path: "certificates", Message: err.Error()})
	} else if _, err := c.autocertPlan(cfg, set.Has); err != nil {
		problems = append(problems, config.Problem{Path: "autocert", Message: err.Error()})
	}
	if _, err := authz.ParseSigningKeys(cfg.Authz.SigningKey); cfg.Authz.SigningKey != nil && err != nil {
		problems = append(problems, config.Problem{Path: "signing_key", Message: err.Error()})
	}
	return problems
}

func (c *compiled) certOptions(cfg *config.Config, secret []byte, local *certs.LocalCA) certs.Options {
	o := certs.Options{Config: cfg.Certs, Secret: secret, LocalCA: local, RouteCAs: map[*route.Route][]byte{}, Routes: c.table.Routes()}
	if c.signIn != nil && !c.shared {
		o.Unasked = []string{c.signIn.Host}
	}
	for _, rt := range c.table.Routes() {
		if p := c.parts[rt.Slot]; p.broken == "" && len(p.from.Certs.TLSDownstreamClientCA) > 0 {
			ca := p.from.Certs.TLSDownstreamClientCA
			o.RouteCAs[rt] = ca
		}
	}
	return o
}

func (c *compiled) problem(slot int, err error) config.Problem {
	p := config.Problem{Message: err.Error()}
	if slot >= 0 && slot < len(c.parts) {
		r := c.parts[slot].from
		p.File, p.Line, p.Column, p.Path = r.File, r.Line, r.Column, r.Path()
	}
	return p
}

// compile makes routes, policies and settings out of words, and runs the
// policy tests. What previous, which may be nil, made of the same routes is
// taken over.
func compile(cfg *config.Config, previous *compiled) (*compiled, []config.Problem) {
	c, problems := compileUntested(cfg, previous)
	if c.table != nil && !config.Fatal(problems) {
		problems = append(problems, c.runPolicyTests(cfg)...)
	}
	return c, problems
}

func compileUntested(cfg *config.Config, previous *compiled) (*compiled, []config.Problem) {
	c := &compiled{}
	var problems []config.Problem
	fail := func(path string, err error) {
		problems = append(problems, config.Problem{Path: path, Message: err.Error()})
	}
	name := ""
	if cfg.Authn.CookieNameSet {
		name = cfg.Authn.CookieName
	}
	c.cookies = session.NewCookieNames(name, cfg.Authn.CookieDomain)
	if err := c.signInHost(cfg); err != nil {
		fail("authenticate_service_url", err)
	}
	c.provider = providerSettings(cfg, c.signIn)
	providerID := ""
	if p, err := identity.New(c.provider, identity.Deps{}); errors.Is(err, identity.ErrNotYet) {
		// Well formed, but nobody could sign in: the start is refused.
		c.later = append(c.later, config.Problem{Path: "idp_provider", Message: err.Error(), Level: config.LevelWarning})
	} else if err != nil {
		fail("idp_provider", err)
	} else {
		providerID = p.ID()
	}
	if f := cfg.Identity.LocalUsersFile; f != "" {
		b, err := os.ReadFile(f)
		if err == nil {
			c.accounts, err = identity.ParseUsers(b)
		}
		if err != nil {
			fail("local_users_file", err)
		}
	}
	c.clientCAs = len(cfg.Certs.DownstreamMTLS.CA) > 0
	for _, r := range cfg.Routes {
		if len(r.Certs.TLSDownstreamClientCA) > 0 || r.Certs.TLSDownstreamClientCAFile != "" {
			c.clientCAs = true
		}
	}
	c.certRule = c.clientCAs && cfg.Certs.DownstreamMTLS.Enforcement != certs.EnforcePolicy

	c.premises = premises{providerID, cfg.Upstream, string(cfg.Certs.ExtraRoots)}
	known := c.partsOf(previous)
	routes := make([]*route.Route, 0, len(cfg.Routes))
	c.parts = make([]*part, 0, len(cfg.Routes))
	var tunnels []string
	for _, r := range cfg.Routes {
		p := known[r]
		if p == nil {
			var more []config.Problem
			if p, more = c.makePart(cfg, r); len(more) > 0 {
				problems = append(problems, more...)
			}
			if p == nil {
				continue
			}
		}
		routes = append(routes, p.route)
		c.parts = append(c.parts, p)
		if p.tunnel {
			tunnels = append(tunnels, r.Path())
		}
	}
	if len(tunnels) > 0 {
		problems = append(problems, config.Problem{Path: "routes", Level: config.LevelWarning, Kind: config.KindAccepted,
			Message: "TCP, UDP and SSH routes are understood but not served yet: " + strings.Join(tunnels, ", "),
			Hint:    "clients that ask for them are answered 404"})
	}
	if cfg.AdminPolicy != nil {
		c.admin = policy.NewSet(policy.Pool{Own: cfg.AdminPolicy})
	}
	options := route.Options{MatchAnyIncomingPort: cfg.Flag("match_any_incoming_port")}
	if c.signIn != nil {
		options.SignInHosts = []route.SignInHost{{Authority: defaultPortOff(c.signIn.Host), Shared: c.shared}}
	}
	table, err := route.NewTable(routes, options)
	if err != nil {
		fail("routes", err)
	} else {
		c.place(table)
	}
	c.table = table
	return c, problems
}

func defaultPortOff(host string) string { return strings.TrimSuffix(strings.ToLower(host), ":443") }

// hostedSignIn is the vendor's own sign-in, which an open product cannot use.
const hostedSignIn = "authenticate.pomerium.app"

// signInHost decides where people sign in (decision 10).
func (c *compiled) signInHost(cfg *config.Config) error {
	if u := cfg.Authn.AuthenticateServiceURL; u != nil && u.Hostname() != hostedSignIn {
		c.signIn = u
		for _, r := range cfg.Routes {
			if from, err := url.Parse(r.Match.From); err == nil && defaultPortOff(from.Host) == defaultPortOff(u.Host) {
				c.shared = true
			}
		}
		return nil
	}
	for _, r := range cfg.Routes {
		from, err := url.Parse(r.Match.From)
		if err != nil || from.Scheme != "https" && from.Scheme != "http" || strings.Contains(from.Host, "*") {
			continue
		}
		c.signIn, c.shared = &url.URL{Scheme: "https", Host: from.Host}, true
		return nil
	}
	// Nothing to sign in to: routes may all be wildcards or tunnels.
	c.signIn = &url.URL{Scheme: "https", Host: "localhost"}
	if len(cfg.Routes) == 0 {
		return nil
	}
	for _, r := range cfg.Routes {
		if !r.Authz.AllowPublicUnauthenticatedAccess {
			return errors.New("no host can serve sign-in, because no route has an https address without wildcard: set authenticate_service_url to a host of its own")
		}
	}
	return nil
}

func providerSettings(cfg *config.Config, signIn *url.URL) identity.Settings {
	i := &cfg.Identity
	s := identity.Settings{
		Provider: i.IDPProvider, URL: i.IDPProviderURL, ClientID: i.IDPClientID,
		ClientSecret: session.NewSecret([]byte(i.IDPClientSecret)),
		Scopes:       i.IDPScopes, Params: i.IDPRequestParams,
		TrustedEmailDomains: i.IDPTrustedEmailDomains, AllowedTenants: i.IDPAllowedTenants,
	}
	if signIn != nil {
		s.AuthenticateURL = "https://" + strings.ToLower(signIn.Host)
	}
	return s
}

// compileRoute makes one route with its policies.
func (c *compiled) compileRoute(cfg *config.Config, r *config.Route, providerID string) (*route.Route, []config.Problem) {
	var problems []config.Problem
	fail := func(err error) {
		problems = append(problems, config.Problem{File: r.File, Line: r.Line, Column: r.Column, Path: r.Path(), Message: err.Error()})
	}
	s := route.Spec{
		ID: r.Match.ID, From: r.Match.From, Prefix: r.Match.Prefix, Path: r.Match.Path, Regex: r.Match.Regex,
		RegexPriorityOrder: r.Match.RegexPriorityOrder, DownstreamServerName: r.Match.TLSDownstreamServerName,
		Name: r.Match.Name, Description: r.Match.Description, LogoURL: r.Match.LogoURL,
		Content: r.Content(),
		Access: route.Access{
			Public: r.Authz.AllowPublicUnauthenticatedAccess, AnyUser: r.Authz.AllowAnyAuthenticatedUser,
			CORSPreflight: r.Authz.CORSAllowPreflight, ShowErrorDetails: r.Authz.ShowErrorDetails,
			PassIdentityHeaders: r.Authz.PassIdentityHeaders, IssuerFormat: r.Authz.JWTIssuerFormat,
			GroupsFilter: r.Authz.JWTGroupsFilter, AssertionReuse: r.Authz.AssertionReuse,
			DependsOn: r.Authn.DependsOn, IDPID: providerID,
			Kubernetes:      r.Extra.KubernetesToken != "" || r.Extra.KubernetesTokenFile != "",
			KubernetesToken: r.Extra.KubernetesToken,
		},
	}
	for _, e := range r.Upstream.To {
		s.To = append(s.To, e.String())
	}
	if r.Proxy.Redirect != nil {
		s.Redirect = fmt.Sprintf("%+v", *r.Proxy.Redirect)
	}
	if r.Proxy.Response != nil {
		s.Response = fmt.Sprintf("%+v", *r.Proxy.Response)
	}
	attach := func(a route.Attached) {
		if a.Policy != nil {
			s.Policies = append(s.Policies, a)
		}
	}
	attach(route.Attached{Policy: r.Compiled})
	for i, sub := range r.Authz.SubPolicies {
		a, more := c.subPolicy(sub, fmt.Sprintf("%s.sub_policies[%d]", r.Path(), i), r)
		problems = append(problems, more...)
		for _, x := range a {
			attach(x)
		}
	}
	attach(route.Attached{Policy: r.Shortcuts})
	if r.Shadow != nil {
		// As the route would be with shadow_policy in the place of policy: all
		// else that decides stays.
		s.Shadow = []route.Attached{{Policy: r.Shadow}}
		for _, a := range s.Policies {
			if a.Policy != r.Compiled {
				s.Shadow = append(s.Shadow, a)
			}
		}
	}
	rt, err := route.New(s)
	if err != nil {
		fail(err)
		return nil, problems
	}
	return rt, problems
}

// subPolicy compiles a shared policy: its document, its scripts, and its short
// lists as one more allow rule, all under the same id.
func (c *compiled) subPolicy(sub authz.SubPolicy, path string, r *config.Route) ([]route.Attached, []config.Problem) {
	var out []route.Attached
	var problems []config.Problem
	base := route.Attached{ID: sub.ID, Explanation: sub.Explanation, Remediation: sub.Remediation}
	if sub.SourcePPL != "" {
		p, warnings, err := policy.Parse(r.File, []byte(sub.SourcePPL), policy.Options{FoldCase: true, Path: path + ".source_ppl"})
		problems = append(problems, policyProblems(warnings, err, r.File, path+".source_ppl")...)
		a := base
		a.Policy = p
		out = append(out, a)
	}
	for i, text := range sub.Rego {
		p, more := c.script(text, fmt.Sprintf("%s.rego[%d]", path, i), r)
		problems = append(problems, more...)
		if p != nil {
			a := base
			a.Policy = p
			out = append(out, a)
		}
	}
	short, err := policy.Shortcuts{Domains: sub.AllowedDomains, Claims: sub.AllowedIDPClaims, Users: sub.AllowedUsers, FoldCase: true}.Policy()
	if err != nil {
		problems = append(problems, config.Problem{File: r.File, Line: r.Line, Column: r.Column, Path: path, Message: err.Error()})
	}
	if short != nil {
		a := base
		a.Policy = short
		out = append(out, a)
	}
	return out, problems
}

// policyProblems brings what the policy parser says into the form of
// configuration problems.
func policyProblems(warnings []policy.Problem, err error, file, path string) []config.Problem {
	var out []config.Problem
	one := func(p policy.Problem, level config.Level) {
		out = append(out, config.Problem{File: file, Line: p.Line, Column: p.Column, Path: p.Path, Message: p.Message, Level: level})
	}
	var list policy.Problems
	switch {
	case errors.As(err, &list):
		for _, p := range list {
			one(p, config.LevelFatal)
		}
	case err != nil:
		out = append(out, config.Problem{File: file, Path: path, Message: err.Error()})
	}
	for _, w := range warnings {
		one(w, config.LevelWarning)
	}
	return out
}

func upstreamSpec(cfg *config.Config, r *config.Route, cluster string) upstream.Spec {
	if r.Proxy.Redirect != nil || r.Proxy.Response != nil {
		return upstream.Spec{} // answered by the door itself
	}
	web := r.Proxy.AllowWebsockets
	for _, u := range r.Proxy.Resolved.Upgrades {
		web = web || strings.EqualFold(u, "websocket")
	}
	return upstream.SpecOf(&cfg.Upstream, &r.Upstream, upstream.RouteContext{
		WebSockets: web, ExtraRoots: cfg.Certs.ExtraRoots, V4Only: r.Extra.GoogleServerless, Cluster: cluster,
	})
}
