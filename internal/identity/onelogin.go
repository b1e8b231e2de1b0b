package identity

var onelogin = vendor{
	url:    "https://openid-connect.onelogin.com/oidc",
	scopes: []string{"openid", "profile", "email", "groups", "offline_access"},
}
