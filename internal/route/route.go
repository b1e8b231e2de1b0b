// Package route answers "which route is this request for?": from the
// operator's words (Spec) to a Route, and from many routes to a Table that
// finds one by authority and path in under a microsecond, without allocating.
//
// The rules are those of configuration.md §3.1 to §3.4: a table per literal
// host, no fall-through from one table to another, reserved paths before
// routes, and the first route in file order that matches.
//
// Everything here is a function of its arguments: no I/O, no clock, no logger.
package route

import (
	"errors"
	"fmt"
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
)

// Spec is a route as the operator wrote it. Paths, hosts and regular
// expressions are raw; New checks and compiles them.
type Spec struct {
	// ID is set for routes that come from the API; empty means: derive it from
	// from, matchers and action (configuration.md §3.4).
	ID string
	// From is the public URL: https://host[:port], http://host,
	// tcp+https://host:port, udp+https://host:port or ssh://name, the host
	// with any number of "*".
	From string
	// Prefix, Path and Regex match the request path. If several are set only
	// one counts: Regex, else Path, else Prefix, else every path.
	Prefix, Path, Regex string
	// RegexPriorityOrder orders API routes (SortAPI); nil is "last".
	RegexPriorityOrder *int64
	// DownstreamServerName is tls_downstream_server_name: its name gets a
	// table of its own, so that no wildcard serves it.
	DownstreamServerName string

	// To, Redirect and Response are the action. They are opaque here: they
	// only make part of the identity. At least one must be set.
	To                 []string
	Redirect, Response string

	// Name and StatName are the display name and the name in metrics.
	Name, StatName string
	// Description and LogoURL are shown in the routes portal.
	Description, LogoURL string

	Access
	Policies []Attached

	// Content, if not nil, is equal for specs that say the same.
	Content any
}

// Access holds what a decision about a request on this route looks at besides
// the policies. It is the same in a Spec and in its Route.
type Access struct {
	// Public, AnyUser and CORSPreflight are the shortcuts
	// allow_public_unauthenticated_access, allow_any_authenticated_user and
	// cors_allow_preflight. They are also part of Policies, which decide.
	Public, AnyUser, CORSPreflight bool
	// ShowErrorDetails adds reasons and remediation to the refusal page.
	ShowErrorDetails bool
	// PassIdentityHeaders overrides the global key; nil inherits it.
	PassIdentityHeaders *bool
	// BearerTokenFormat overrides the global key; "" inherits it.
	BearerTokenFormat string
	// AccessTokenAudiences is idp_access_token_allowed_audiences: nil
	// inherits the global list, an empty list allows none.
	AccessTokenAudiences []string
	// IdentityProviders are the providers allowed on a jwt route; empty: all.
	IdentityProviders []string
	// IDPID is the id of the identity provider that signs people in for this
	// route; a handle's idp_id must be equal to it.
	IDPID string
	// IssuerFormat is jwt_issuer_format; "" inherits the global value.
	IssuerFormat string
	// GroupsFilter is jwt_groups_filter of the route (group ids).
	GroupsFilter []string
	// AssertionReuse overrides assertion_reuse; nil inherits it.
	AssertionReuse *time.Duration
	// Kubernetes says that the route fronts a Kubernetes API server, and
	// KubernetesToken is its bearer token (a secret).
	Kubernetes      bool
	KubernetesToken string
	// GoogleServerless is enable_google_cloud_serverless_authentication.
	GoogleServerless bool
	// MCPServer and MCPClient say what the route is to the MCP gateway.
	MCPServer, MCPClient bool
	// DependsOn are the hosts a login is chained through, at most five.
	DependsOn []string
	// RoutingKey asks for the x-pomerium-routing-key header (ring hash, maglev).
	RoutingKey bool
	// Shadow are the policies that would decide if shadow_policy stood in the
	// place of policy: evaluated beside the real ones, they change nothing.
	Shadow []Attached
	// AuthorizationOff is set on routes that front the sign-in host itself
	// (wire-contract.md §1.1 step 5).
	AuthorizationOff bool
}

// Attached is a policy at work on a route, and where it came from.
type Attached struct {
	ID, Namespace string
	// Enforced policies come from above the route and cannot be taken off.
	Enforced bool
	// Explanation and Remediation are shown to somebody it refuses.
	Explanation, Remediation string
	Policy                   *policy.Policy
}

// Route is one compiled route. It is immutable.
type Route struct {
	// ID is stable as long as from, matchers and action stay the same; it
	// appears in cluster names, metrics and the portal.
	ID string
	// Slot is the route's place in its Table, dense from 0; doors keep what
	// they need per route in a slice indexed by it. -1 outside a Table.
	Slot int
	From From

	// Prefix, Path and Regex are the matchers as written.
	Prefix, Path, Regex string

	Name, StatName       string
	Description, LogoURL string
	// ClusterName is "<stat name or name or route>-<id>".
	ClusterName string

	Access
	Policies []Attached

	paths         pathMatcher
	priority      *int64
	serverName    string
	identity      string
	hasPathPolicy bool
	content       any
}

// ErrNoAction is returned by New for a route that does nothing.
var ErrNoAction = errors.New("route has none of to, redirect, response: set one of them")

// New checks and compiles one route.
func New(s Spec) (*Route, error) {
	from, err := ParseFrom(s.From)
	if err != nil {
		return nil, err
	}
	if len(s.To) == 0 && s.Redirect == "" && s.Response == "" {
		return nil, ErrNoAction
	}
	paths, err := newPathMatcher(s.Prefix, s.Path, s.Regex)
	if err != nil {
		return nil, err
	}
	r := &Route{
		ID: s.ID, Slot: -1, From: from,
		Prefix: s.Prefix, Path: s.Path, Regex: s.Regex,
		Name: s.Name, StatName: s.StatName,
		Description: s.Description, LogoURL: s.LogoURL,
		Access: s.Access, Policies: s.Policies,
		paths: paths, priority: s.RegexPriorityOrder, content: s.Content,
	}
	if s.DownstreamServerName != "" {
		_, name, err := exchange.CanonicalAuthority(s.DownstreamServerName)
		if err != nil {
			return nil, fmt.Errorf("tls_downstream_server_name %q is not a host name: %w", s.DownstreamServerName, err)
		}
		r.serverName = name
	}
	r.identity = identityOf(from, s)
	if r.ID == "" {
		r.ID = r.identity
	}
	label := s.StatName
	if label == "" {
		label = s.Name
	}
	if label == "" {
		label = "route"
	}
	r.ClusterName = label + "-" + r.ID
	for _, a := range s.Policies {
		if a.Policy != nil && usesPath(a.Policy) {
			r.hasPathPolicy = true
		}
	}
	return r, nil
}

// at is r in a slot. A route keeps its slot for good, since tables of several
// generations may hold it: elsewhere stands a copy.
func (r *Route) at(slot int) *Route {
	switch r.Slot {
	case slot:
		return r
	case -1:
		r.Slot = slot
		return r
	}
	moved := *r
	moved.Slot = slot
	return &moved
}

// SameContent reports whether r and o are known to say the same, so that what
// was decided under one holds under the other.
func (r *Route) SameContent(o *Route) bool {
	return r == o || r != nil && o != nil && r.content != nil && r.content == o.content && r.IDPID == o.IDPID
}

// MatchesPath reports whether the route's path matcher accepts a canonical path.
func (r *Route) MatchesPath(path string) bool { return r.paths.match(path) }

// MatchedPrefix is the part of path that the matcher consumed and that
// prefix_rewrite replaces: the prefix of a prefix route, all of path
// otherwise (configuration.md §3.5).
func (r *Route) MatchedPrefix(path string) string {
	if r.paths.kind == matchPrefix {
		return path[:len(r.paths.text)]
	}
	return path
}

// HasPathRules reports whether the outcome of a request on this route depends
// on its path: it matches by path, or a policy looks at http_path.
func (r *Route) HasPathRules() bool {
	return r.hasPathPolicy || !(r.paths.kind == matchPrefix && (r.paths.text == "/" || r.paths.text == ""))
}

// usesPath tells whether a policy looks at http_path. A foreign evaluator
// shows no rules and is taken to do so.
func usesPath(p *policy.Policy) bool {
	rules := p.Rules()
	for _, rule := range rules {
		for _, use := range rule.Criteria {
			if use.Criterion != nil && use.Criterion.Name == "http_path" {
				return true
			}
		}
	}
	return len(rules) == 0
}

// ServerName is the canonical tls_downstream_server_name: the name that clients
// give in the handshake where it is not the host of from. "" is none.
func (r *Route) ServerName() string { return r.serverName }
