package identity

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// metadata is what discovery tells (OpenID Connect Discovery 1.0 §3).
type metadata struct {
	provider *oidc.Provider

	Issuer                string   `json:"issuer"`
	EndSessionEndpoint    string   `json:"end_session_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	AuthMethods           []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethods []string `json:"revocation_endpoint_auth_methods_supported"`
	IssSupported          bool     `json:"authorization_response_iss_parameter_supported"`
}

// templated says that the issuer stands for every tenant.
func (m *metadata) templated() bool { return strings.Contains(m.Issuer, "{tenantid}") }

// checkIssuer is RFC 9207: where the provider says that it names itself in
// the answer it must, and a name that is given must be right.
func (m *metadata) checkIssuer(iss string) error {
	switch {
	case iss == "" && m.IssSupported && !m.templated():
		return errors.New("the answer does not name its issuer, which this provider always does")
	case iss != "" && iss != m.Issuer && !m.templated():
		return errors.New("the answer comes from another issuer")
	}
	return nil
}

func (m *metadata) revocationMethods() []string {
	if m.RevocationAuthMethods != nil {
		return m.RevocationAuthMethods
	}
	return m.AuthMethods
}

// base is scheme and host of the authorization endpoint.
func (m *metadata) base() string {
	u, err := url.Parse(m.provider.Endpoint().AuthURL)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}

func (p *OIDC) discover(ctx context.Context) (*metadata, error) {
	ctx = p.ctx(ctx)
	if p.multiTenant() {
		// Shared endpoints name a template as issuer; tokens are checked
		// against it with their tenant filled in.
		ctx = oidc.InsecureIssuerURLContext(ctx, p.issuer)
	}
	prov, err := oidc.NewProvider(ctx, p.issuer)
	if err != nil {
		kind := Temporary
		var mismatch *oidc.IssuerMismatchError
		if errors.As(err, &mismatch) {
			kind = Misconfigured
		}
		return nil, &Error{Kind: kind, Doing: "discover " + p.issuer, Err: brief(err)}
	}
	m := &metadata{provider: prov}
	if err := prov.Claims(m); err != nil {
		return nil, &Error{Kind: Misconfigured, Doing: "discover " + p.issuer, Err: errors.New("its metadata is malformed")}
	}
	for name, endpoint := range map[string]string{"authorization_endpoint": prov.Endpoint().AuthURL, "token_endpoint": prov.Endpoint().TokenURL} {
		if u, err := url.Parse(endpoint); err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
			return nil, &Error{Kind: Misconfigured, Doing: "discover " + p.issuer, Err: fmt.Errorf("its %s is missing or malformed", name)}
		}
	}
	return m, nil
}

// Discovery is remembered for an hour, then asked anew while the old answer
// still serves; after a failure nobody asks again for a while, so that a
// crowd before a dead provider costs one call per pause.
const (
	discoveryLife  = time.Hour
	firstPause     = 500 * time.Millisecond
	longestPause   = 30 * time.Second
	discoveryLimit = 2 * callTimeout
)

type discovery struct {
	fetch func(context.Context) (*metadata, error)
	now   func() time.Time

	mu       sync.Mutex
	have     *metadata
	at       time.Time
	err      error         // of the last attempt
	pause    time.Duration // after the last failure
	retryAt  time.Time
	inflight chan struct{}
}

// get gives the metadata. It waits for a running call rather than making
// another; the call itself does not end with the first asker's context.
func (d *discovery) get(ctx context.Context) (*metadata, error) {
	d.mu.Lock()
	now := d.now()
	fresh := d.have != nil && now.Sub(d.at) < discoveryLife
	if fresh {
		m := d.have
		d.mu.Unlock()
		return m, nil
	}
	if d.inflight == nil {
		if now.Before(d.retryAt) {
			m, err := d.have, d.err
			d.mu.Unlock()
			if m != nil {
				return m, nil
			}
			return nil, err
		}
		d.inflight = make(chan struct{})
		go d.run(context.WithoutCancel(ctx), d.inflight)
	}
	if d.have != nil { // old, while the new one is on its way
		m := d.have
		d.mu.Unlock()
		return m, nil
	}
	wait := d.inflight
	d.mu.Unlock()
	select {
	case <-wait:
	case <-ctx.Done():
		return nil, &Error{Kind: Temporary, Doing: "wait for discovery", Err: ctx.Err()}
	}
	d.mu.Lock()
	m, err := d.have, d.err
	d.mu.Unlock()
	if m != nil {
		return m, nil
	}
	return nil, err
}

func (d *discovery) run(ctx context.Context, done chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, discoveryLimit)
	defer cancel()
	m, err := d.fetch(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.have, d.at, d.err, d.pause = m, d.now(), nil, 0
	} else {
		d.err = err
		d.pause = min(max(2*d.pause, firstPause), longestPause)
		d.retryAt = d.now().Add(d.pause)
	}
	d.inflight = nil
	close(done)
}

// finalCodes are OAuth errors by which a provider ends a session (RFC 6749
// §5.2, OpenID Connect Core §3.1.2.6). invalid_client is not among them: it
// is about us, and ending everybody's session would not mend it.
var finalCodes = map[string]bool{
	"invalid_grant": true, "access_denied": true, "unauthorized_client": true, "invalid_scope": true,
	"unsupported_grant_type": true, "invalid_request": true, "login_required": true,
	"interaction_required": true, "consent_required": true, "account_selection_required": true,
	"invalid_token": true, "expired_token": true,
}

// classify tells a provider's final word from trouble on the way
// (wire-contract.md §15, trap 20).
func classify(doing string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	var re *oauth2.RetrieveError
	if errors.As(err, &re) && re.Response != nil {
		status := re.Response.StatusCode
		out := &Error{Kind: Temporary, Doing: doing, Code: printable(re.ErrorCode), Err: fmt.Errorf("it answered %d", status)}
		if re.ErrorDescription != "" {
			out.Err = fmt.Errorf("it answered %d: %s", status, printable(re.ErrorDescription))
		}
		switch {
		case re.ErrorCode == "invalid_client":
			out.Kind = Misconfigured
		case status >= 500 || status == 429 || status == 408:
		case finalCodes[re.ErrorCode]:
			out.Kind = Permanent
		}
		return out
	}
	return &Error{Kind: Temporary, Doing: doing, Err: brief(err)}
}

func isNetwork(err error) bool {
	var ne net.Error
	var ue *url.Error
	return errors.As(err, &ne) || errors.As(err, &ue) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "fetching keys")
}

// brief shortens an error of a library, which may quote an answer's body.
func brief(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		u, perr := url.Parse(ue.URL)
		if perr == nil {
			u.RawQuery, u.Fragment, u.User = "", "", nil
			return fmt.Errorf("%s %s: %w", ue.Op, u, ue.Err)
		}
	}
	return errors.New(printable(err.Error()))
}

// printable makes foreign text fit for a log line.
func printable(s string) string {
	if len(s) > 300 {
		s = s[:300] + "..."
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return ' '
		}
		return r
	}, s)
}

// plainTenant accepts a tenant id as it appears in issuers.
func plainTenant(tid string) bool {
	if len(tid) == 0 || len(tid) > 64 {
		return false
	}
	for i := 0; i < len(tid); i++ {
		c := tid[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
			return false
		}
	}
	return true
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
