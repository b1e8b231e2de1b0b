// Package identity knows who can vouch for a person: OpenID Connect providers
// and Postern's own local accounts.
//
// A [Provider] sends a browser away and turns its return into an [Identity].
// What not every provider can do is an optional interface ([Refresher],
// [UserInfoer], [Revoker], [Logouter], [TokenVerifier], [PasswordChecker]):
// callers ask with a type assertion. Vendors are mostly defaults over generic
// OpenID Connect, one file each, listed in providers.go.
//
// No provider needs to be up for Postern to start: discovery happens on first
// use, once for all who wait, with a pause after failures.
package identity

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/internal/session"
)

// Provider vouches for people.
type Provider interface {
	// ID is a stable name of this provider with this client: it binds
	// sessions to what signed them in (wire-contract.md §5). It does not
	// change when the client secret is renewed.
	ID() string
	// AuthURL is where the browser goes to prove who it is.
	AuthURL(ctx context.Context, req AuthRequest) (string, error)
	// Exchange turns what the browser brought back into an identity. Errors
	// are an *Error.
	Exchange(ctx context.Context, ret Return) (*Identity, error)
}

// AuthRequest is what a provider must carry or bind.
type AuthRequest struct {
	CallbackURL string // where the browser comes back to
	State       string // comes back as it is
	Nonce       string // ends in the identity token
	Verifier    string // PKCE code verifier (RFC 7636); its S256 challenge is sent
}

// Return is what came back.
type Return struct {
	CallbackURL string // as in the AuthRequest
	Code        string
	Issuer      string // the parameter iss (RFC 9207), "" if absent
	Nonce       string
	Verifier    string
}

// Identity is a person as a provider vouches for them.
type Identity struct {
	// UserID is the id of the user record: the subject, with the provider's
	// name in front unless it is the first one (decision 14).
	UserID  string
	Subject string
	Issuer  string
	// SessionID is the provider's own session (claim sid), or "".
	SessionID string
	Name      string
	// Email is well formed and vouched for, or "" (decision 14).
	Email string
	// EmailSaid says that the provider spoke of an address at all, so that an
	// empty Email takes a former one away.
	EmailSaid bool
	Claims    session.Claims
	Tokens
	// Directory is set by providers that are their own directory.
	Directory *session.DirectoryUser
}

// Tokens are what a provider hands out for calling it again.
type Tokens struct {
	IDToken    *session.IDToken
	OAuthToken *session.OAuthToken
	// IDClaims are the claims of a verified identity token, unflattened.
	IDClaims map[string]any
}

// Refresher renews tokens. The old refresh token may be void from the moment
// the call is made, so the answer must be stored before it is used.
type Refresher interface {
	// Refresh uses the refresh token of old. subject is who the identity
	// token, if a new one comes, must be about. Errors are an *Error:
	// Permanent means that the provider ended the session.
	Refresh(ctx context.Context, old *session.OAuthToken, subject string) (*Tokens, error)
}

// UserInfoer asks about a signed-in person again.
type UserInfoer interface {
	// UserInfo gives the person's current claims; idClaims are those of the
	// last identity token, which it adds to. Errors are an *Error.
	UserInfo(ctx context.Context, token *session.OAuthToken, subject string, idClaims map[string]any) (*Identity, error)
}

// Revoker voids tokens at the provider.
type Revoker interface {
	Revoke(ctx context.Context, token *session.OAuthToken) error
}

// Logouter ends the provider's own session by sending the browser there.
type Logouter interface {
	// LogoutURL is "" if the provider offers no such thing.
	LogoutURL(ctx context.Context, idTokenHint session.Token, after string) (string, error)
}

// TokenVerifier verifies tokens that programs got from the provider.
type TokenVerifier interface {
	VerifyIdentityToken(ctx context.Context, raw string) (map[string]any, error)
	VerifyAccessToken(ctx context.Context, raw string) (map[string]any, error)
}

// PasswordChecker signs people in with a form of our own.
type PasswordChecker interface {
	// CheckPassword takes the same time whether the account exists or not.
	// source is where the attempt comes from. Errors are ErrPassword or a
	// *Throttled.
	CheckPassword(ctx context.Context, email, password, source string) (*Identity, error)
}

// FormPoster says that the provider answers with a cross-site POST.
type FormPoster interface{ FormPost() bool }

// Kind says what an Error means for the one who called.
type Kind uint8

// Kinds of Error.
const (
	// Temporary: nothing is known about the person; try later.
	Temporary Kind = iota
	// Permanent: the provider refuses this person or grant.
	Permanent
	// Misconfigured: the provider refuses us; an operator must act. Nothing
	// is known about the person.
	Misconfigured
)

// Error is why a provider could not vouch for somebody. Its text is fit for
// the log and holds no token; visitors see only its kind.
type Error struct {
	Kind  Kind
	Doing string // "exchange the code", ...
	Code  string // OAuth error code, or ""
	Err   error
}

// Error says what failed and what to do.
func (e *Error) Error() string {
	s := "identity provider: could not " + e.Doing
	if e.Code != "" {
		s += " (" + e.Code + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	switch e.Kind {
	case Temporary:
		s += "; it is tried again"
	case Misconfigured:
		s += "; check idp_client_id, idp_client_secret and idp_provider_url"
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// IsPermanent says that err is the provider's final word on a session.
func IsPermanent(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == Permanent
}

// ErrPassword says that e-mail and password do not match, without saying which
// of them is wrong.
var ErrPassword = errors.New("that email and password do not match")

// Throttled says that no password was looked at: too many attempts.
type Throttled struct {
	RetryAfter time.Duration
	Busy       bool // all hashing slots are taken, whoever asks
}

// Error says how long to wait.
func (t *Throttled) Error() string {
	return fmt.Sprintf("too many sign-in attempts: try again in %d seconds", int(t.RetryAfter.Seconds()+0.999))
}

// userID is a subject with the provider's name in front; name "" is the first
// provider's (decision 14).
func userID(name, subject string) string {
	if name == "" {
		return subject
	}
	return name + "/" + subject
}

// maxSubject bounds subjects: OpenID Connect Core §2 allows 255 ASCII
// characters; a little more is forgiven.
const maxSubject = 512

// goodSubject refuses subjects that could be taken for another's: empty, too
// long, or with control characters. A first provider's subject must not look
// like a further provider's or a local account's.
func goodSubject(name, subject string) error {
	if subject == "" || len(subject) > maxSubject {
		return fmt.Errorf("subject is empty or longer than %d bytes", maxSubject)
	}
	for i := 0; i < len(subject); i++ {
		if c := subject[i]; c < ' ' || c == 0x7f {
			return errors.New("subject holds a control character")
		}
	}
	if name == "" && strings.HasPrefix(subject, LocalName+"/") {
		return errors.New("subject looks like a local account's")
	}
	return nil
}
