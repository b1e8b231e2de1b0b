package authz

import "time"

// Config holds the global settings of decisions and of the identity that
// upstreams are told. The tags are the declaration that package config parses
// and documents.
type Config struct {
	_ struct{} `section:"2.4"`

	// SigningKey is PEM, from signing_key or signing_key_file; nil: derived.
	SigningKey     []byte `key:"signing_key" form:"pem" secret:"true" status:"acts" doc:"Private keys, PEM or base64 of it, that sign the identity assertion; the first signs, all are published. Derived from the shared secret if unset."`
	SigningKeyFile string `key:"signing_key_file" form:"file" status:"acts" doc:"File holding the signing keys; beats signing_key."`

	_ struct{} `section:"2.7"`

	BearerTokenFormat       string            `key:"bearer_token_format" default:"default" enum:"unknown|default|idp_access_token|idp_identity_token|jwt" status:"accepted" doc:"What a bearer token in Authorization is: passed through (default), a token of the identity provider, or a JWT of identity_providers."`
	JWTClaimsHeaders        map[string]string `key:"jwt_claims_headers" form:"claims" status:"acts" doc:"Header to claim; as a list of claims, x-pomerium-claim-<claim> is the header. The claims are also put into the assertion."`
	JWTIssuerFormat         string            `key:"jwt_issuer_format" default:"hostOnly" enum:"hostOnly|uri" prefix:"issuer" status:"acts" doc:"Issuer of the assertion: hostOnly is the host, uri is https://host/."`
	PassIdentityHeaders     *bool             `key:"pass_identity_headers" status:"acts" doc:"Send the identity headers to upstreams; false if unset. Routes override."`
	JWTGroupsFilter         []string          `key:"jwt_groups_filter" env:"-" narrows:"true" status:"acts" doc:"Only these groups appear in the assertion; a route's list widens it."`
	JWTGroupsFilterInferPPL *bool             `key:"jwt_groups_filter_infer_from_ppl" env:"-" narrows:"true" status:"accepted" doc:"Only groups that the route's policy names appear in the assertion."`
	AssertionReuse          time.Duration     `key:"assertion_reuse" default:"60s" status:"acts" doc:"How long a signed assertion is used again, at most 60s; 0s signs every request afresh."`
}

// RouteConfig holds the per-route settings of decisions and identity.
// Access is the legacy shorthand for policy; the policy document itself is
// kept by package config.
type RouteConfig struct {
	_ struct{} `section:"3.10"`

	AllowPublicUnauthenticatedAccess bool             `key:"allow_public_unauthenticated_access" status:"acts" doc:"Anybody may use the route without signing in."`
	AllowAnyAuthenticatedUser        bool             `key:"allow_any_authenticated_user" status:"acts" doc:"Anybody who is signed in may use the route."`
	CORSAllowPreflight               bool             `key:"cors_allow_preflight" aliases:"cors_preflight" status:"acts" doc:"Let CORS preflight requests through without signing in."`
	AllowedUsers                     []string         `key:"allowed_users" deprecated:"policy with user or email" status:"acts" doc:"User ids or e-mail addresses that may use the route."`
	AllowedDomains                   []string         `key:"allowed_domains" deprecated:"policy with domain" status:"acts" doc:"E-mail domains that may use the route."`
	AllowedIDPClaims                 map[string][]any `key:"allowed_idp_claims" deprecated:"policy with claim" status:"acts" doc:"Claim to values; any match may use the route."`
	ShowErrorDetails                 bool             `key:"show_error_details" status:"acts" doc:"Tell reasons, explanation and remediation on the denied page."`
	SubPolicies                      []SubPolicy      `key:"sub_policies" narrows:"true" status:"acts" doc:"Shared policies attached to the route."`

	_ struct{} `section:"3.6"`

	PassIdentityHeaders *bool `key:"pass_identity_headers" status:"acts" doc:"Send the identity headers to this upstream; overrides the global setting."`

	_ struct{} `section:"3.11"`

	BearerTokenFormat       string         `key:"bearer_token_format" enum:"|unknown|default|idp_access_token|idp_identity_token|jwt" status:"accepted" doc:"What a bearer token is on this route; overrides the global setting."`
	JWTIssuerFormat         string         `key:"jwt_issuer_format" enum:"|hostOnly|uri" prefix:"issuer" status:"acts" doc:"Issuer of the assertion on this route; overrides the global setting."`
	JWTGroupsFilter         []string       `key:"jwt_groups_filter" narrows:"true" status:"acts" doc:"Groups that appear in the assertion in addition to the global list."`
	JWTGroupsFilterInferPPL *bool          `key:"jwt_groups_filter_infer_from_ppl" narrows:"true" status:"accepted" doc:"Only groups that the route's policy names appear in the assertion."`
	AssertionReuse          *time.Duration `key:"assertion_reuse" status:"acts" doc:"As the global key, for this route."`

	// Resolved is computed while loading from the keys above and the global ones.
	Resolved Resolved `key:"-"`
}

// Resolved is what the route's and the global keys together mean.
type Resolved struct {
	PassIdentityHeaders bool
	BearerTokenFormat   string
	JWTIssuerFormat     string        // hostOnly or uri
	AssertionReuse      time.Duration // 0: sign every request afresh
}

// SubPolicy is a shared policy attached to a route.
type SubPolicy struct {
	ID               string           `key:"id" status:"acts" doc:"Id of the policy."`
	Name             string           `key:"name" status:"acts" doc:"Name of the policy."`
	AllowedUsers     []string         `key:"allowed_users" status:"acts" doc:"As the route's allowed_users."`
	AllowedDomains   []string         `key:"allowed_domains" status:"acts" doc:"As the route's allowed_domains."`
	AllowedIDPClaims map[string][]any `key:"allowed_idp_claims" status:"acts" doc:"As the route's allowed_idp_claims."`
	Rego             []string         `key:"rego" status:"acts" doc:"Scripts in Rego, each a policy of its own; v0 syntax unless they import rego.v1."`
	SourcePPL        string           `key:"source_ppl" narrows:"true" status:"acts" doc:"The policy document, as text."`
	Explanation      string           `key:"explanation" status:"acts" doc:"Told on the denied page: why."`
	Remediation      string           `key:"remediation" status:"acts" doc:"Told on the denied page: what to do."`
}
