package identity

var gitlab = vendor{
	url:    "https://gitlab.com",
	scopes: []string{"openid", "profile", "email"},
}
