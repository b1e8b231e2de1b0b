package authz

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net/url"
	"reflect"
	"slices"
	"time"

	"github.com/maypok86/otter/v2"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
)

// Options are what one generation gives to decisions.
type Options struct {
	// Generation numbers the configuration; a stream decided under an older
	// one is decided again.
	Generation uint64
	// Config holds the global keys. SigningKey may be PEM or base64 of it.
	Config Config
	Keys   *session.Keys
	// Routes are all routes by slot (route.Table.Routes).
	Routes []*route.Route
	// Cookies are the cookie names in use, CookieDomain is cookie_domain.
	Cookies      session.CookieNames
	CookieDomain string
	// AnyAudience is handle_audience: any, which takes a handle at any host.
	AnyAudience bool
	// CertificateRule says that a client CA is configured somewhere and
	// enforcement is not "policy": every HTTP route then denies
	// invalid_client_certificate (policy-language.md §9).
	CertificateRule bool
	// SignInURL is the public address of the sign-in host.
	SignInURL *url.URL
	// JWTEndpoint is the runtime flag pomerium_jwt_endpoint.
	JWTEndpoint bool
	// RouteSets lists the request headers that a route itself sets
	// (set_request_headers); they are stripped from clients. It may be nil.
	RouteSets func(*route.Route) []string
	// Openers are asked for a credential before the standard ones.
	Openers []CredentialOpener
	// Log is the authorize log; nil writes none.
	Log *telemetry.AuthorizeLog
	// Previous is the Env before, or nil: what it made of routes that are in
	// Routes again is taken over, if the settings are the same.
	Previous *Env
}

// Env is what one generation gives to decisions: keys, settings, policies. It
// is immutable and safe for concurrent use; its caches hold nothing that
// outlives the generation's keys and settings.
type Env struct {
	generation   uint64
	keys         *session.Keys
	signing      []*signingKey
	cookies      session.CookieNames
	cookieDomain string
	anyAudience  bool
	jwtEndpoint  bool
	signInURL    *url.URL
	openers      []CredentialOpener
	log          *telemetry.AuthorizeLog
	claimHeaders []claimHeader
	routes       []*routeSettings // by slot
	global       *routeSettings   // where there is no route
	basis        basis
	keySet       document
	hpke         document

	tokens     *otter.Cache[string, *verified]
	assertions *otter.Cache[assertionKey, *signed]
}

// basis is what decisions rest on besides routes and records. Two Envs of one
// basis decide alike about routes that say the same.
type basis struct {
	config          Config
	cookies         session.CookieNames
	cookieDomain    string
	anyAudience     bool
	certificateRule bool
	signInURL       *url.URL
	jwtEndpoint     bool
	openers         int
}

func (o *Options) basis() basis {
	return basis{
		config: o.Config, cookies: o.Cookies, cookieDomain: o.CookieDomain, anyAudience: o.AnyAudience,
		certificateRule: o.CertificateRule, signInURL: o.SignInURL, jwtEndpoint: o.JWTEndpoint, openers: len(o.Openers),
	}
}

// sameBasis reports whether both decide alike about routes that say the same.
// Openers cannot be compared, so where there are any the answer is no.
func (env *Env) sameBasis(o *Env) bool {
	return env == o || env.keys == o.keys && env.basis.openers == 0 && o.basis.openers == 0 && reflect.DeepEqual(&env.basis, &o.basis)
}

// routeSettings is what decisions need of one route, global keys folded in.
type routeSettings struct {
	route        *route.Route
	set          *policy.Set
	shadow       *policy.Set // nil: the route has no shadow_policy
	pass         bool
	issuerURI    bool
	reuse        time.Duration
	groupsFilter map[string]bool // nil: none
	checksum     uint64
	strip        *exchange.NameSet
	stripAuth    *exchange.NameSet // strip and Authorization
}

// NewEnv compiles what decisions need of one configuration.
func NewEnv(o Options) (*Env, error) {
	if o.Keys == nil {
		return nil, errors.New("decisions need keys: set shared_secret")
	}
	signing, err := signingKeys(o.Config.SigningKey, o.Keys)
	if err != nil {
		return nil, err
	}
	env := &Env{
		generation: o.Generation, keys: o.Keys, signing: signing,
		cookies: o.Cookies, cookieDomain: o.CookieDomain, anyAudience: o.AnyAudience,
		jwtEndpoint: o.JWTEndpoint, signInURL: o.SignInURL,
		openers: append(slices.Clone(o.Openers), standardOpeners()...),
		log:     o.Log, basis: o.basis(),
		tokens: newTokenCache(), assertions: newAssertionCache(),
	}
	if env.cookies.Session == "" {
		env.cookies = session.NewCookieNames("", o.CookieDomain)
	}
	for name, claim := range o.Config.JWTClaimsHeaders {
		env.claimHeaders = append(env.claimHeaders, claimHeader{name, claim})
	}
	slices.SortFunc(env.claimHeaders, func(a, b claimHeader) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	if env.keySet, err = keySet(signing); err != nil {
		return nil, err
	}
	hpke, err := o.Keys.HPKE()
	if err != nil {
		return nil, fmt.Errorf("the HPKE key cannot be derived from shared_secret: %w; use another secret", err)
	}
	env.hpke = newDocument(hpke.PublicKey().Bytes())

	env.global = env.compile(&o, nil)
	env.routes = make([]*routeSettings, len(o.Routes))
	previous := o.Previous
	if previous != nil && !previous.sameBasis(env) {
		previous = nil
	}
	for i, rt := range o.Routes {
		if rt.Slot != i {
			return nil, fmt.Errorf("route %s has slot %d at place %d: give the routes of one table in its order", rt.From.Raw, rt.Slot, i)
		}
		if previous != nil && i < len(previous.routes) && previous.routes[i].route == rt {
			env.routes[i] = previous.routes[i]
			continue
		}
		env.routes[i] = env.compile(&o, rt)
	}
	return env, nil
}

func (env *Env) compile(o *Options, rt *route.Route) *routeSettings {
	c := &o.Config
	s := &routeSettings{
		route:     rt,
		pass:      c.PassIdentityHeaders != nil && *c.PassIdentityHeaders,
		issuerURI: c.JWTIssuerFormat == "uri",
		reuse:     c.AssertionReuse,
	}
	filters := c.JWTGroupsFilter
	filtered := len(c.JWTGroupsFilter) > 0
	var sets []string
	if rt != nil {
		if rt.PassIdentityHeaders != nil {
			s.pass = *rt.PassIdentityHeaders
		}
		if rt.IssuerFormat != "" {
			s.issuerURI = rt.IssuerFormat == "uri"
		}
		if rt.AssertionReuse != nil {
			s.reuse = *rt.AssertionReuse
		}
		filtered = filtered || len(rt.GroupsFilter) > 0
		filters = append(slices.Clone(filters), rt.GroupsFilter...)
		if o.RouteSets != nil {
			sets = o.RouteSets(rt)
		}
		certificateRule := o.CertificateRule && rt.From.Protocol != route.SSH
		s.set = compilePolicy(rt.Policies, certificateRule)
		if len(rt.Shadow) > 0 {
			s.shadow = compilePolicy(rt.Shadow, certificateRule)
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(rt.ID))
		s.checksum = h.Sum64()
	}
	s.reuse = max(0, min(s.reuse, maxReuse))
	if filtered {
		s.groupsFilter = make(map[string]bool, len(filters))
		for _, id := range filters {
			s.groupsFilter[id] = true
		}
	}
	names := append(StripNames(c, rt), sets...)
	s.strip = exchange.NewNameSet(names...)
	s.stripAuth = exchange.NewNameSet(append(names, "Authorization")...)
	return s
}

// compilePolicy pools the policies of a route. They hold the route's own, the
// attached ones and the shortcuts already.
func compilePolicy(policies []route.Attached, certificateRule bool) *policy.Set {
	pool := policy.Pool{CertificateRule: certificateRule}
	for _, a := range policies {
		pool.Attached = append(pool.Attached, policy.Attached{
			ID: a.ID, Namespace: a.Namespace, Enforced: a.Enforced,
			Explanation: a.Explanation, Remediation: a.Remediation, Policy: a.Policy,
		})
	}
	return policy.NewSet(pool)
}

// settings finds what belongs to a route of this generation; anything else
// gets the global settings, which have no policy and so allow nothing.
func (env *Env) settings(rt *route.Route) *routeSettings {
	if rt != nil && rt.Slot >= 0 && rt.Slot < len(env.routes) && env.routes[rt.Slot].route == rt {
		return env.routes[rt.Slot]
	}
	return env.global
}

// StripNames lists the request headers and trailers that must not pass from a
// client to the upstream of rt (nil: any), for exchange.NewNameSet; a name
// that ends in "*" is a prefix (wire-contract.md §4.1, §4.7, decision 6).
// Authorization is not among them: only some of its values are ours.
func StripNames(c *Config, rt *route.Route) []string {
	names := []string{
		"X-Pomerium-*",
		"X-Envoy-*",
		// Headers by which frameworks let a client override what was judged.
		"X-Original-URL", "X-Original-URI", "X-Original-Method",
		"X-Rewrite-URL", "X-Forwarded-URI", "X-Forwarded-Method",
		"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override",
	}
	for name := range c.JWTClaimsHeaders {
		names = append(names, name)
	}
	if rt != nil {
		if rt.Kubernetes {
			names = append(names, "Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-*")
			if rt.KubernetesToken != "" {
				names = append(names, "Authorization")
			}
		}
		if rt.GoogleServerless {
			names = append(names, "X-Serverless-Authorization")
		}
		if rt.MCPServer {
			names = append(names, "Authorization")
		}
	}
	return names
}
