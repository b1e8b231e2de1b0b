package authn

import (
	"net/url"
	"time"
)

// Config holds the global settings of sign-in, cookies and sign-out. The
// tags are the declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.1"`

	AuthenticateServiceURL              *url.URL `key:"authenticate_service_url" status:"acts" doc:"Public URL of the sign-in host; the callback path is /oauth2/callback. Unset, or the vendor's hosted one: the host of the first https route also serves sign-in."`
	AuthenticateInternalServiceURL      *url.URL `key:"authenticate_internal_service_url" status:"accepted" doc:"URL by which other services reach authenticate; authenticate_service_url if unset."`
	SignoutRedirectURL                  *url.URL `key:"signout_redirect_url" status:"acts" doc:"Where the browser goes after sign-out."`
	ProgrammaticRedirectDomainWhitelist []string `key:"programmatic_redirect_domain_whitelist" default:"localhost" status:"acts" doc:"Hosts that the login of programs (/.pomerium/api/v1/login) may send its answer to; exact match."`

	_ struct{} `section:"2.5"`

	CookieName     string        `key:"cookie_name" default:"_pomerium" status:"acts" doc:"Name of the session cookie. Unless this or cookie_domain is set, __Host-_pomerium is used."`
	CookieDomain   string        `key:"cookie_domain" status:"acts" doc:"Domain of the session cookie, sub-domains included; the route's host alone if unset. Not together with depends_on."`
	CookieHTTPOnly bool          `key:"cookie_http_only" default:"true" status:"acts" doc:"Hide the session cookie from scripts."`
	CookieExpire   time.Duration `key:"cookie_expire" default:"14h" status:"acts" doc:"Life of cookie and session; also caps sessions of bearer tokens."`
	CookieSameSite string        `key:"cookie_same_site" enum:"|strict|lax|none" status:"acts" doc:"SameSite attribute of the session cookie: strict, lax or none; the browser's default if unset."`
	HandleAudience string        `key:"handle_audience" default:"host" enum:"host|any" status:"acts" doc:"Where a session cookie counts: host, only where it was set for (or cookie_domain); any, on every route."`

	// CookieNameSet tells whether cookie_name was written by the operator.
	CookieNameSet bool `key:"-"`
}

// RouteConfig holds the per-route settings of sign-in.
type RouteConfig struct {
	_ struct{} `section:"3.10"`

	DependsOn []string `key:"depends_on" form:"hosts" status:"acts" doc:"Up to five hosts whose sign-in is done in the same go. Not with cookie_domain."`
}
