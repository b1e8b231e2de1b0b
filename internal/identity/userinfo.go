package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"

	"github.com/coreos/go-oidc/v3/oidc"

	"postern/internal/session"
)

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
	case p.multiTenant() && len(p.tenants) == 0 && !truthy(claims["xms_edov"]):
		// Any tenant's administrator can have any claim issued, that one too.
		return ""
	case said && !truthy(verified):
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
		v := m.provider.Verifier(&oidc.Config{ClientID: p.clientID, SkipExpiryCheck: true, SkipIssuerCheck: m.templated()})
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
