package identity

import "net/url"

// auth0 issuers end with a slash; sign-out has an address and parameter names
// of its own.
var auth0 = vendor{
	slash: true,
	logout: func(p *OIDC, base, after string) string {
		q := url.Values{"client_id": {p.clientID}}
		if after != "" {
			q.Set("returnTo", after)
		}
		return base + "/v2/logout?" + q.Encode()
	},
}
