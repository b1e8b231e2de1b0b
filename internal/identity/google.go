package identity

// google gives refresh tokens for access_type=offline, not for a scope, and
// only after consent.
var google = vendor{
	url:    "https://accounts.google.com",
	scopes: []string{"openid", "profile", "email"},
	params: map[string]string{"access_type": "offline", "prompt": "select_account consent"},
}
