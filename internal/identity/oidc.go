package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
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
	v := m.provider.VerifierContext(p.ctx(ctx), &oidc.Config{ClientID: p.clientID, Now: p.now, SkipIssuerCheck: m.templated()})
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

// UserInfo implements UserInfoer. A provider without a UserInfo endpoint is
// taken at the word of its identity token.
func (p *OIDC) UserInfo(ctx context.Context, token *session.OAuthToken, subject string, idClaims map[string]any) (*Identity, error) {
	const doing = "read UserInfo"
	m, err := p.discovery.get(ctx)
	if err != nil {
		return nil, err
	}
	merged := map[string]any{}
	for k, v := range idClaims {
		merged[k] = v
	}
	if endpoint := m.provider.UserInfoEndpoint(); endpoint != "" && token != nil && token.AccessToken != "" {
		info, err := p.fetchUserInfo(ctx, m, endpoint, string(token.AccessToken))
		if err != nil {
			return nil, err
		}
		// The answer must be about the same person, or it could be somebody
		// else's (OpenID Connect Core §5.3.2).
		if sub, _ := info["sub"].(string); sub != subject {
			return nil, &Error{Kind: Permanent, Doing: doing, Err: errors.New("it is about somebody else")}
		}
		for k, v := range info {
			switch k {
			case "iss", "aud", "exp", "iat", "nonce", "azp", "tid", "oid", "sid":
				// of the identity token only
				if _, has := merged[k]; has {
					continue
				}
			}
			merged[k] = v
		}
	}
	return p.identity(merged, subject)
}

// identity makes a person out of merged claims (decision 14).
func (p *OIDC) identity(claims map[string]any, subject string) (*Identity, error) {
	if from := p.vendor.emailFrom; from != "" {
		if _, has := claims["email"]; !has && claims[from] != nil {
			claims["email"] = claims[from]
		}
	}
	person := subject
	if name := p.vendor.subject; name != "" {
		if v, _ := claims[name].(string); v != "" {
			person = v
		} else {
			return nil, &Error{Kind: Permanent, Doing: "tell who this is", Err: fmt.Errorf("the claim %s is missing", name)}
		}
	}
	if err := goodSubject(p.name, person); err != nil {
		return nil, &Error{Kind: Permanent, Doing: "tell who this is", Err: err}
	}
	id := &Identity{UserID: userID(p.name, person), Subject: subject, Claims: session.FlattenClaims(claims)}
	id.Issuer, _ = claims["iss"].(string)
	id.SessionID, _ = claims["sid"].(string)
	if len(id.SessionID) > maxSubject {
		id.SessionID = ""
	}
	id.Name, _ = claims["name"].(string)
	_, id.EmailSaid = claims["email"]
	id.Email = p.trustedEmail(claims)
	// Policy reads the claim too; it must not see an address that does not
	// count.
	if id.Email == "" {
		delete(id.Claims, "email")
	}
	return id, nil
}

// trustedEmail is the address if it counts: well formed, and called verified,
// or of a domain that the operator trusts this provider for. A provider of
// one organisation that says nothing about verification is trusted, since the
// operator chose it; one that says "no" never is, and one that serves every
// tenant must prove the domain (decision 14).
func (p *OIDC) trustedEmail(claims map[string]any) string {
	raw, _ := claims["email"].(string)
	email := session.CanonicalEmail(raw)
	if email == "" {
		return ""
	}
	domain := email[strings.IndexByte(email, '@')+1:]
	for _, d := range p.domains {
		if d == "*" || strings.EqualFold(d, domain) {
			return email
		}
	}
	verified, said := claims["email_verified"]
	switch {
	case said && truthy(verified):
		return email
	case said:
		return ""
	case p.multiTenant():
		if len(p.tenants) > 0 || truthy(claims["xms_edov"]) {
			return email
		}
		return ""
	}
	return email
}

// truthy reads a boolean that some providers send as text or number.
func truthy(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case string:
		return v == "true" || v == "1"
	case float64:
		return v == 1
	}
	return false
}

func (p *OIDC) fetchUserInfo(ctx context.Context, m *metadata, endpoint, access string) (map[string]any, error) {
	const doing = "read UserInfo"
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
	if err != nil {
		return nil, &Error{Kind: Misconfigured, Doing: doing, Err: errors.New("the provider's userinfo_endpoint is malformed")}
	}
	req.Header.Set("Authorization", "Bearer "+access)
	req.Header.Set("Accept", "application/json")
	resp, err := p.client.Do(req)
	if err != nil {
		return nil, &Error{Kind: Temporary, Doing: doing, Err: brief(err)}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, &Error{Kind: Temporary, Doing: doing, Err: brief(err)}
	}
	if resp.StatusCode != http.StatusOK {
		kind := Temporary
		if resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden {
			kind = Permanent
		}
		return nil, &Error{Kind: kind, Doing: doing, Err: fmt.Errorf("it answered %d", resp.StatusCode)}
	}
	if ct, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); ct == "application/jwt" {
		v := m.provider.VerifierContext(p.ctx(ctx), &oidc.Config{ClientID: p.clientID, SkipExpiryCheck: true, SkipIssuerCheck: m.templated()})
		tok, err := v.Verify(p.ctx(ctx), string(bytes.TrimSpace(body)))
		if err != nil {
			return nil, &Error{Kind: Permanent, Doing: doing, Err: brief(err)}
		}
		claims := map[string]any{}
		if err := tok.Claims(&claims); err != nil {
			return nil, &Error{Kind: Permanent, Doing: doing, Err: errors.New("its claims are malformed")}
		}
		return claims, nil
	}
	claims := map[string]any{}
	if err := json.Unmarshal(body, &claims); err != nil {
		return nil, &Error{Kind: Temporary, Doing: doing, Err: errors.New("it is not JSON")}
	}
	return claims, nil
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

// Revoke implements Revoker (RFC 7009). It revokes the refresh token too,
// without which a provider would go on to renew.
func (p *OIDC) Revoke(ctx context.Context, token *session.OAuthToken) error {
	const doing = "revoke the tokens"
	if token == nil {
		return nil
	}
	m, err := p.discovery.get(ctx)
	if err != nil {
		return err
	}
	endpoint := m.RevocationEndpoint
	if endpoint == "" && p.vendor.revoke != nil {
		endpoint = p.vendor.revoke(p, m.base())
	}
	if endpoint == "" {
		return nil
	}
	var first error
	for _, t := range []struct{ hint, value string }{
		{"refresh_token", string(token.RefreshToken)},
		{"access_token", string(token.AccessToken)},
	} {
		if t.value == "" {
			continue
		}
		form := url.Values{"token": {t.value}, "token_type_hint": {t.hint}, "client_id": {p.clientID}}
		basic := slices.Contains(m.revocationMethods(), "client_secret_basic") && !slices.Contains(m.revocationMethods(), "client_secret_post")
		if !p.secret.IsZero() && !basic {
			form.Set("client_secret", string(p.secret.Reveal()))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(form.Encode()))
		if err != nil {
			return &Error{Kind: Misconfigured, Doing: doing, Err: errors.New("the provider's revocation_endpoint is malformed")}
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if !p.secret.IsZero() && basic {
			req.SetBasicAuth(url.QueryEscape(p.clientID), url.QueryEscape(string(p.secret.Reveal())))
		}
		resp, err := p.client.Do(req)
		if err != nil {
			first = cmpErr(first, &Error{Kind: Temporary, Doing: doing, Err: brief(err)})
			continue
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 400 {
			first = cmpErr(first, &Error{Kind: Temporary, Doing: doing, Err: fmt.Errorf("it answered %d", resp.StatusCode)})
		}
	}
	return first
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// LogoutURL implements Logouter (OpenID Connect RP-Initiated Logout 1.0).
func (p *OIDC) LogoutURL(ctx context.Context, hint session.Token, after string) (string, error) {
	m, err := p.discovery.get(ctx)
	if err != nil {
		return "", err
	}
	if p.vendor.logout != nil {
		return p.vendor.logout(p, m.base(), after), nil
	}
	if m.EndSessionEndpoint == "" {
		return "", nil
	}
	u, err := url.Parse(m.EndSessionEndpoint)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return "", nil
	}
	q := u.Query()
	if hint != "" {
		q.Set("id_token_hint", string(hint))
	}
	q.Set("client_id", p.clientID)
	if after != "" {
		q.Set("post_logout_redirect_uri", after)
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
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
