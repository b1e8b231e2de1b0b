package authn

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"

	"postern/internal/identity"
	"postern/internal/session"
)

// VerifyAccessToken answers POST /.pomerium/verify-access-token at the sign-in
// host: {"accessToken", "identityProviderId"} gives {"valid", "claims"}.
func (s *Service) VerifyAccessToken(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	s.verifyToken(w, r, "accessToken")
}

// VerifyIdentityToken answers POST /.pomerium/verify-identity-token likewise.
func (s *Service) VerifyIdentityToken(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	s.verifyToken(w, r, "identityToken")
}

func (s *Service) verifyToken(w http.ResponseWriter, r *http.Request, field string) {
	if !methods(w, r, http.MethodPost) {
		return
	}
	var in map[string]any
	b, err := io.ReadAll(io.LimitReader(r.Body, maxForm+1))
	ct, _, ctErr := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || len(b) > maxForm || ctErr != nil && r.Header.Get("Content-Type") != "" || ct != "" && ct != "application/json" || json.Unmarshal(b, &in) != nil {
		http.Error(w, "the body is not a JSON object: give "+field+" and identityProviderId", http.StatusBadRequest)
		return
	}
	token, _ := in[field].(string)
	idp, _ := in["identityProviderId"].(string)
	out := struct {
		Valid  bool           `json:"valid"`
		Claims map[string]any `json:"claims,omitempty"`
	}{}
	if v, ok := s.provider(idp).(identity.TokenVerifier); ok && token != "" {
		release, free := s.verifySlot()
		if !free {
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many verifications at once: try again", http.StatusTooManyRequests)
			return
		}
		defer release()
		verify := v.VerifyIdentityToken
		if field == "accessToken" {
			verify = v.VerifyAccessToken
		}
		claims, err := verify(r.Context(), token)
		if err == nil {
			out.Valid, out.Claims = true, claims
		} else if !identity.IsPermanent(err) {
			s.log.WarnContext(r.Context(), "a token could not be verified", "error", err)
			http.Error(w, "the identity provider cannot be asked now: try again", http.StatusServiceUnavailable)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_ = json.NewEncoder(w).Encode(out)
}

// verifySlot takes part of the budget of provider calls, at most half of it, so
// that strangers cannot crowd out those who sign in.
func (s *Service) verifySlot() (release func(), ok bool) {
	if len(s.exchanges) >= maxExchanges/2 {
		return nil, false
	}
	select {
	case s.exchanges <- struct{}{}:
		return func() { <-s.exchanges }, true
	default:
		return nil, false
	}
}
