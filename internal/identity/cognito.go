package identity

import "net/url"

// cognito does not issue refresh tokens by scope, and keeps sign-out and
// revocation on the host of its authorization endpoint.
var cognito = vendor{
	scopes: []string{"openid", "email", "profile"},
	logout: func(p *OIDC, base, after string) string {
		q := url.Values{"client_id": {p.clientID}}
		if after != "" {
			q.Set("logout_uri", after)
		}
		return base + "/logout?" + q.Encode()
	},
	revoke: func(p *OIDC, base string) string { return base + "/oauth2/revoke" },
}
