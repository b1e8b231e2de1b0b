package identity

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sort"
	"strings"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// vendors are all known values of idp_provider. Each entry is a file of its
// own except where generic OpenID Connect needs no change.
var vendors = map[string]vendor{
	"apple":    {later: true},
	"auth0":    auth0,
	"azure":    azure,
	"cognito":  cognito,
	"github":   {later: true},
	"gitlab":   gitlab,
	"google":   google,
	"oidc":     {},
	"okta":     {},
	"onelogin": onelogin,
	"ping":     ping,
}

// vendor is what one kind of provider changes about generic OpenID Connect.
type vendor struct {
	url    string            // default idp_provider_url; "": must be given
	scopes []string          // nil: defaultScopes
	params map[string]string // default idp_request_params

	slash       bool // the issuer ends with a slash
	multiTenant func(issuer string) bool
	subject     string // claim that is the user id instead of sub
	emailFrom   string // claim copied to email where that is missing
	// logout builds the sign-out address where there is no end_session_endpoint.
	logout func(p *OIDC, base, after string) string
	revoke func(p *OIDC, base string) string

	later bool // known, not in this version
}

var defaultScopes = []string{"openid", "profile", "email", "offline_access"}

// Settings describe one provider with one client (configuration.md §2.6).
type Settings struct {
	// Provider is idp_provider; "", "hosted" and "local" are local accounts.
	Provider     string
	URL          string
	ClientID     string
	ClientSecret session.Secret
	Scopes       []string          // nil: the vendor's
	Params       map[string]string // nil: the vendor's; empty: none
	// AuthenticateURL is the public URL of the sign-in host.
	AuthenticateURL string
	// Name is in front of the user ids; "" for the first provider.
	Name string
	// TrustedEmailDomains are domains for which an address counts even if
	// the provider does not call it verified; "*" is any.
	TrustedEmailDomains []string
	// AllowedTenants limits multi-tenant providers (Azure common).
	AllowedTenants []string
}

// Deps are what providers need from outside.
type Deps struct {
	// Transport carries calls to providers; nil: a clone of the default one.
	// Time limits and answer limits are put around it.
	Transport http.RoundTripper
	Now       func() time.Time
	Log       *slog.Logger
	// Accounts holds local account records; nil: none.
	Accounts record.Reader
	// LocalUsers are the accounts of local_users_file.
	LocalUsers []session.LocalAccount
	// HashSlots is how many password hashes run at once; 0: one per core.
	HashSlots int
	// Guard counts wrong passwords, for as long as it lives; nil: a new one.
	Guard *PasswordGuard
}

// PasswordGuard slows down guessing of passwords and bounds how many are
// hashed at once. One serves a process over all changes of its configuration,
// so that a change gives nobody new attempts.
type PasswordGuard struct {
	hasher   *hasher
	throttle *throttle
}

// NewPasswordGuard makes a guard that lets as many hashes run at once; 0: one
// per core.
func NewPasswordGuard(slots int) *PasswordGuard {
	if slots <= 0 {
		slots = runtime.NumCPU()
	}
	return &PasswordGuard{newHasher(slots), newThrottle()}
}

// New gives the provider that s describes. It does no I/O: a provider that is
// down is no error here.
func New(s Settings, d Deps) (Provider, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	if d.Guard == nil {
		d.Guard = NewPasswordGuard(d.HashSlots)
	}
	kind := strings.ToLower(s.Provider)
	switch kind {
	case "", "hosted", LocalName:
		return newLocal(s, d)
	}
	v, known := vendors[kind]
	if !known {
		return nil, fmt.Errorf("idp_provider %q is not known: use one of %s", s.Provider, strings.Join(Names(), ", "))
	}
	if v.later {
		return nil, fmt.Errorf("idp_provider %q is %w: use another of %s", s.Provider, ErrNotYet, strings.Join(Names(), ", "))
	}
	return newOIDC(kind, v, s, d)
}

// ErrNotYet is wrapped by New for a provider that is known but not built yet.
var ErrNotYet = errors.New("not yet in this version")

// Names are the values of idp_provider that work, sorted.
func Names() []string {
	names := []string{LocalName}
	for name, v := range vendors {
		if !v.later {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

// providerID is a stable hash of what makes two providers different: all but
// the client secret, whose renewal must not end sessions.
func providerID(kind string, s Settings, issuer string, scopes []string, params map[string]string) string {
	b, err := json.Marshal([]any{kind, issuer, s.ClientID, scopes, params, s.AuthenticateURL, s.Name})
	if err != nil {
		panic("identity: " + err.Error()) // strings always encode
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}
