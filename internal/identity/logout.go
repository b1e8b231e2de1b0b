package identity

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"postern/internal/session"
)

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
