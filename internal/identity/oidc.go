package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"postern/internal/session"
)

// OIDC is any OpenID Connect provider (OpenID Connect Core 1.0, authorization
// code flow with PKCE).
type OIDC struct {
	id       string
	kind     string
	vendor   vendor
	name     string
	issuer   string
	clientID string
	secret   session.Secret
	scopes   []string
	params   map[string]string
	domains  []string
	tenants  []string
	client   *http.Client
	now      func() time.Time
	log      *slog.Logger

	discovery discovery
}

// protectedParams cannot be set by idp_request_params.
var protectedParams = []string{
	"client_id", "client_secret", "redirect_uri", "response_type", "scope", "state", "nonce",
	"code", "code_challenge", "code_challenge_method", "code_verifier", "request", "request_uri",
}

func newOIDC(kind string, v vendor, s Settings, d Deps) (*OIDC, error) {
	issuer := s.URL
	if issuer == "" {
		issuer = v.url
	}
	if issuer == "" {
		return nil, fmt.Errorf("idp_provider_url is missing: %s needs the provider's base URL, without the well-known suffix", kind)
	}
	if !strings.Contains(issuer, "://") {
		issuer = "https://" + issuer
	}
	u, err := url.Parse(issuer)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("idp_provider_url is not an http(s) URL of a provider: give its base URL, without query or the well-known suffix")
	}
	if v.slash && !strings.HasSuffix(issuer, "/") {
		issuer += "/"
	}
	if s.ClientID == "" {
		return nil, fmt.Errorf("idp_client_id is missing: register Postern at the %s provider and give its client id", kind)
	}
	p := &OIDC{
		kind: kind, vendor: v, name: s.Name, issuer: issuer, clientID: s.ClientID, secret: s.ClientSecret,
		scopes: s.Scopes, params: s.Params, domains: s.TrustedEmailDomains, tenants: s.AllowedTenants,
		client: newClient(d.Transport), now: d.Now, log: d.Log.With("idp_provider", kind),
	}
	if p.scopes == nil {
		if p.scopes = v.scopes; p.scopes == nil {
			p.scopes = defaultScopes
		}
	}
	if !slices.Contains(p.scopes, oidc.ScopeOpenID) {
		// Without it the answer would not be OpenID Connect at all.
		p.scopes = append([]string{oidc.ScopeOpenID}, p.scopes...)
	}
	if p.params == nil {
		p.params = v.params
	}
	for name := range p.params {
		if slices.Contains(protectedParams, name) {
			return nil, fmt.Errorf("idp_request_params may not set %q: it belongs to the sign-in itself; remove it", name)
		}
	}
	if p.multiTenant() && len(p.tenants) == 0 {
		p.log.Warn("this provider answers for every tenant and no tenants are listed: e-mail addresses count only with the verified-domain claim; set idp_allowed_tenants or a tenant's own idp_provider_url")
	}
	p.id = providerID(kind, s, issuer, p.scopes, p.params)
	p.discovery.fetch = p.discover
	p.discovery.now = d.Now
	return p, nil
}

// ID implements Provider.
func (p *OIDC) ID() string { return p.id }

// FormPost implements FormPoster.
func (p *OIDC) FormPost() bool { return p.params["response_mode"] == "form_post" }

func (p *OIDC) multiTenant() bool {
	return p.vendor.multiTenant != nil && p.vendor.multiTenant(p.issuer)
}

// AuthURL implements Provider. PKCE is always S256.
func (p *OIDC) AuthURL(ctx context.Context, req AuthRequest) (string, error) {
	m, err := p.discovery.get(ctx)
	if err != nil {
		return "", err
	}
	opts := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(req.Verifier), oidc.Nonce(req.Nonce)}
	for name, value := range p.params {
		opts = append(opts, oauth2.SetAuthURLParam(name, value))
	}
	return p.oauth(m, req.CallbackURL).AuthCodeURL(req.State, opts...), nil
}

func (p *OIDC) oauth(m *metadata, callback string) *oauth2.Config {
	ep := m.provider.Endpoint()
	switch {
	case p.secret.IsZero():
		ep.AuthStyle = oauth2.AuthStyleInParams
	case slices.Contains(m.AuthMethods, "client_secret_basic"):
		ep.AuthStyle = oauth2.AuthStyleInHeader
	case slices.Contains(m.AuthMethods, "client_secret_post"):
		ep.AuthStyle = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{
		ClientID: p.clientID, ClientSecret: string(p.secret.Reveal()), Endpoint: ep,
		RedirectURL: callback, Scopes: p.scopes,
	}
}

func (p *OIDC) ctx(ctx context.Context) context.Context { return oidc.ClientContext(ctx, p.client) }

// Exchange implements Provider.
func (p *OIDC) Exchange(ctx context.Context, ret Return) (*Identity, error) {
	const doing = "exchange the code"
	m, err := p.discovery.get(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.checkIssuer(ret.Issuer); err != nil {
		return nil, &Error{Kind: Permanent, Doing: "accept the answer", Err: err}
	}
	if ret.Verifier == "" || ret.Nonce == "" {
		return nil, &Error{Kind: Permanent, Doing: doing, Err: errors.New("the answer belongs to no sign-in of ours")}
	}
	tok, err := p.oauth(m, ret.CallbackURL).Exchange(p.ctx(ctx), ret.Code, oauth2.VerifierOption(ret.Verifier))
	if err != nil {
		return nil, classify(doing, err)
	}
	tokens, err := p.tokens(ctx, m, tok, "", ret.Nonce, true)
	if err != nil {
		return nil, err
	}
	id, err := p.UserInfo(ctx, tokens.OAuthToken, tokens.IDToken.Subject, tokens.IDClaims)
	if err != nil {
		return nil, err
	}
	id.Tokens, id.Issuer = *tokens, tokens.IDToken.Issuer
	return id, nil
}

// tokens checks what a token endpoint answered. subject and nonce are
// required to match unless "".
func (p *OIDC) tokens(ctx context.Context, m *metadata, tok *oauth2.Token, subject, nonce string, needID bool) (*Tokens, error) {
	bad := func(err error) error {
		return &Error{Kind: Permanent, Doing: "verify the identity token", Err: err}
	}
	out := &Tokens{OAuthToken: &session.OAuthToken{
		AccessToken: session.Token(tok.AccessToken), TokenType: tok.TokenType,
		ExpiresAt: tok.Expiry, RefreshToken: session.Token(tok.RefreshToken),
	}}
	raw, _ := tok.Extra("id_token").(string)
	if raw == "" {
		if needID {
			return nil, bad(errors.New("the provider sent none"))
		}
		return out, nil
	}
	id, claims, err := p.verify(ctx, m, raw)
	if err != nil {
		return nil, err
	}
	if nonce != "" && !equal(id.Nonce, nonce) {
		return nil, bad(errors.New("its nonce is not the one we sent"))
	}
	if subject != "" && id.Subject != subject {
		return nil, bad(errors.New("it is about somebody else"))
	}
	if id.AccessTokenHash != "" {
		if err := id.VerifyAccessToken(tok.AccessToken); err != nil {
			return nil, bad(errors.New("it does not belong to the access token"))
		}
	}
	issuer := m.Issuer // Google's tokens may lack the scheme
	if m.templated() {
		issuer = id.Issuer
	}
	out.IDClaims = claims
	out.IDToken = &session.IDToken{
		Issuer: issuer, Subject: id.Subject, ExpiresAt: id.Expiry, IssuedAt: id.IssuedAt, Raw: session.Token(raw),
	}
	return out, nil
}

// verify checks an identity token: signature, issuer, audience, authorised
// party and expiry (OpenID Connect Core §3.1.3.7).
func (p *OIDC) verify(ctx context.Context, m *metadata, raw string) (*oidc.IDToken, map[string]any, error) {
	bad := func(err error) error {
		return &Error{Kind: Permanent, Doing: "verify the identity token", Err: err}
	}
	if len(raw) > 256<<10 {
		return nil, nil, bad(errors.New("it is longer than 256 KiB"))
	}
	// The provider's own key set, not one for this call: keys are fetched for
	// an unknown key id only, and once for all who wait.
	v := m.provider.Verifier(&oidc.Config{ClientID: p.clientID, Now: p.now, SkipIssuerCheck: m.templated()})
	id, err := v.Verify(p.ctx(ctx), raw)
	if err != nil {
		if isNetwork(err) {
			return nil, nil, &Error{Kind: Temporary, Doing: "fetch the provider's keys", Err: brief(err)}
		}
		return nil, nil, bad(brief(err))
	}
	claims := map[string]any{}
	if err := id.Claims(&claims); err != nil {
		return nil, nil, bad(errors.New("its claims are malformed"))
	}
	if azp, has := claims["azp"]; len(id.Audience) > 1 && (!has || azp != p.clientID) {
		return nil, nil, bad(errors.New("it was made for several clients and azp does not name ours"))
	}
	if m.templated() {
		tid, _ := claims["tid"].(string)
		if !plainTenant(tid) || id.Issuer != strings.ReplaceAll(m.Issuer, "{tenantid}", tid) {
			return nil, nil, bad(errors.New("its issuer is not a tenant of this provider"))
		}
	}
	if p.multiTenant() && len(p.tenants) > 0 {
		tid, _ := claims["tid"].(string)
		if !slices.ContainsFunc(p.tenants, func(t string) bool { return strings.EqualFold(t, tid) }) {
			return nil, nil, bad(errors.New("its tenant is not listed in idp_allowed_tenants"))
		}
	}
	return id, claims, nil
}

// Refresh implements Refresher.
func (p *OIDC) Refresh(ctx context.Context, old *session.OAuthToken, subject string) (*Tokens, error) {
	const doing = "refresh the session"
	m, err := p.discovery.get(ctx)
	if err != nil {
		return nil, err
	}
	if old == nil || old.RefreshToken == "" {
		return nil, &Error{Kind: Permanent, Doing: doing, Err: errors.New("there is no refresh token")}
	}
	// An expired token makes the source use the refresh token at once; it
	// keeps the old refresh token if no new one comes.
	src := p.oauth(m, "").TokenSource(p.ctx(ctx), &oauth2.Token{RefreshToken: string(old.RefreshToken)})
	tok, err := src.Token()
	if err != nil {
		return nil, classify(doing, err)
	}
	return p.tokens(ctx, m, tok, subject, "", false)
}

// VerifyIdentityToken implements TokenVerifier.
func (p *OIDC) VerifyIdentityToken(ctx context.Context, raw string) (map[string]any, error) {
	m, err := p.discovery.get(ctx)
	if err != nil {
		return nil, err
	}
	_, claims, err := p.verify(ctx, m, raw)
	return claims, err
}

// VerifyAccessToken implements TokenVerifier: the provider itself is asked,
// through UserInfo.
func (p *OIDC) VerifyAccessToken(ctx context.Context, raw string) (map[string]any, error) {
	m, err := p.discovery.get(ctx)
	if err != nil {
		return nil, err
	}
	endpoint := m.provider.UserInfoEndpoint()
	if endpoint == "" || raw == "" {
		return nil, &Error{Kind: Permanent, Doing: "verify an access token", Err: errors.New("the provider has no UserInfo endpoint to ask")}
	}
	return p.fetchUserInfo(ctx, m, endpoint, raw)
}
