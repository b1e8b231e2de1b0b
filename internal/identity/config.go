package identity

// Config holds the global settings of identity providers. The tags are the
// declaration that package config parses and documents.
type Config struct {
	_ struct{} `section:"2.6"`

	IDPProvider             string            `key:"idp_provider" form:"provider" status:"acts" doc:"Kind of identity provider. oidc is any OpenID Connect provider; local (also hosted, or unset) is Postern's own accounts."`
	IDPProviderURL          string            `key:"idp_provider_url" status:"acts" doc:"Base URL of the provider, without the well-known suffix."`
	IDPClientID             string            `key:"idp_client_id" status:"acts" doc:"OAuth client id at the provider."`
	IDPClientSecret         string            `key:"idp_client_secret" secret:"true" status:"acts" doc:"OAuth client secret at the provider."`
	IDPClientSecretFile     string            `key:"idp_client_secret_file" form:"file" status:"acts" doc:"File holding the OAuth client secret; beats idp_client_secret. A final newline is ignored."`
	IDPScopes               []string          `key:"idp_scopes" status:"acts" doc:"Scopes asked for; replaces the provider's defaults."`
	IDPRequestParams        map[string]string `key:"idp_request_params" status:"acts" doc:"Extra parameters of the authorization request; replaces the provider's defaults, {} clears them."`
	IDPTrustedEmailDomains  []string          `key:"idp_trusted_email_domains" status:"acts" doc:"Domains whose e-mail addresses count even if the provider does not call them verified; * is any."`
	IDPAllowedTenants       []string          `key:"idp_allowed_tenants" narrows:"true" status:"acts" doc:"Ids of the tenants that may sign in through a provider that serves every tenant (azure common). Unset: any, but their e-mail addresses need the verified-domain claim."`
	IDPAccessTokenAudiences []string          `key:"idp_access_token_allowed_audiences" narrows:"true" status:"accepted" doc:"Audiences accepted in access tokens of programs. Unset: not checked."`

	Providers map[string]ProviderConfig `key:"identity_providers" env:"-" narrows:"true" status:"accepted" doc:"Issuers of JWT bearer tokens, by name."`

	_ struct{} `section:"2.6"`

	LocalUsersFile string `key:"local_users_file" form:"file" status:"acts" doc:"File of local accounts (id, email, name, groups, claims, password_hash), written by postern users."`
}

// ProviderConfig is one issuer of JWT bearer tokens.
type ProviderConfig struct {
	Issuer        string   `key:"issuer" narrows:"true" status:"accepted" doc:"Issuer, an absolute https URL (http for loopback only), or kubernetes:///."`
	JWKSURL       string   `key:"jwks_url" status:"accepted" doc:"Where the keys are, https; found by discovery if unset."`
	Audiences     []string `key:"audiences" narrows:"true" status:"accepted" doc:"Accepted audiences, at least one."`
	SupportedAlgs []string `key:"supported_algs" narrows:"true" status:"accepted" doc:"Accepted algorithms; RS256, ES256 and EdDSA if unset."`
}

// RouteConfig holds the per-route settings of identity providers.
type RouteConfig struct {
	_ struct{} `section:"3.11"`

	IDPClientID             string   `key:"idp_client_id" status:"accepted" doc:"OAuth client id for this route, at the same provider."`
	IDPClientSecret         string   `key:"idp_client_secret" secret:"true" status:"accepted" doc:"OAuth client secret for this route."`
	IDPAccessTokenAudiences []string `key:"idp_access_token_allowed_audiences" narrows:"true" status:"accepted" doc:"Audiences accepted in access tokens of programs; overrides the global list, absent is not empty."`
	IdentityProviders       []string `key:"identity_providers" narrows:"true" status:"accepted" doc:"Names of the identity_providers whose tokens this route accepts; empty: all."`
}
