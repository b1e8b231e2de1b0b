package authn

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"postern/internal/identity"
	"postern/internal/session"
)

// Query parameters of the links between our hosts (wire-contract.md §1.5).
// Those of ours begin with postern_.
const (
	paramRedirect   = "pomerium_redirect_uri"
	paramIDP        = "pomerium_idp_id"
	paramAdditional = "pomerium_additional_hosts"
	paramCallback   = "pomerium_callback_uri"
	paramProgram    = "pomerium_programmatic"
	paramHandle     = "pomerium_session_encrypted"
	paramToken      = "pomerium_jwt"
	paramBind       = "postern_browser"  // names the route host's nonce
	paramBounce     = "postern_bounce"   // see bounce
	paramRestart    = "postern_restart"  // how often a tab lost the race for the nonce
	paramReturned   = "postern_returned" // the provider has just been asked
	paramBegin      = "postern_begin"    // a hop that only begins at the next host
	paramSession    = "postern_session"  // sealed id of the session to sign out
)

// destination is where a login leads: what a sign_in link asks for. It travels
// in signed links and, sealed, in the state.
type destination struct {
	Redirect string   `json:"r"`           // where the person wanted to go
	Callback string   `json:"c,omitempty"` // the route's callback; "" derives it
	Hosts    []string `json:"h,omitempty"` // further hosts to sign in at
	Program  bool     `json:"g,omitempty"` // the token is for a program
	IDP      string   `json:"p,omitempty"` // provider id
	Bind     string   `json:"b,omitempty"` // the browser's nonce on the callback host
	Bounce   bounce   `json:"o,omitzero"`
	Restart  int      `json:"s,omitempty"`
	Returned bool     `json:"v,omitempty"`
}

// maxRestarts bounds how often a tab that lost the race for the nonce begins
// again.
const maxRestarts = 5

var errDestination = errors.New("the link does not say clearly where to go")

// query gives the link parameters of d.
func (d *destination) query() url.Values {
	q := url.Values{paramRedirect: {d.Redirect}}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set(paramIDP, d.IDP)
	set(paramAdditional, strings.Join(d.Hosts, ","))
	set(paramCallback, d.Callback)
	set(paramBind, d.Bind)
	if d.Program {
		q.Set(paramProgram, "true")
	}
	if d.Bounce != (bounce{}) {
		q.Set(paramBounce, d.Bounce.String())
	}
	if d.Restart > 0 {
		q.Set(paramRestart, strings.Repeat("i", d.Restart))
	}
	if d.Returned {
		q.Set(paramReturned, "true")
	}
	return q
}

// parseDestination reads link parameters whose signature was checked. What is
// doubled or malformed all the same is refused.
func parseDestination(q url.Values) (*destination, error) {
	d := &destination{}
	var program, returned, restart, hosts, bounced string
	for name, into := range map[string]*string{
		paramRedirect: &d.Redirect, paramCallback: &d.Callback, paramIDP: &d.IDP, paramBind: &d.Bind,
		paramProgram: &program, paramReturned: &returned, paramRestart: &restart, paramAdditional: &hosts, paramBounce: &bounced,
	} {
		v, ok := single(q, name)
		if !ok {
			return nil, errDestination
		}
		*into = v
	}
	d.Program, d.Returned, d.Restart = program == "true", returned == "true", len(restart)
	if hosts != "" {
		d.Hosts = strings.Split(hosts, ",")
		if len(d.Hosts) > maxAdditional {
			return nil, errDestination
		}
	}
	if bounced != "" {
		var ok bool
		if d.Bounce, ok = parseBounce(bounced); !ok {
			return nil, errDestination
		}
	}
	if _, err := session.ParseRedirect(d.Redirect); err != nil {
		return nil, err
	}
	if d.Callback != "" {
		if _, err := session.ParseRedirect(d.Callback); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// callback is the address at the route host that takes the handle.
func (d *destination) callback() (*url.URL, error) {
	raw := d.Callback
	if raw == "" {
		u, err := session.ParseRedirect(d.Redirect)
		if err != nil {
			return nil, err
		}
		raw = "https://" + u.Host + pathCallback
	}
	u, err := session.ParseRedirect(raw)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "https" || u.Path != pathCallback || u.RawQuery != "" || u.Fragment != "" {
		return nil, errDestination
	}
	return u, nil
}

// signInLink is the signed link to the sign-in host for d.
func (s *Service) signInLink(d *destination) string {
	return s.link(s.origin, pathSignIn, d.query())
}

// state is what goes to the provider and back, sealed. Verifier and nonce are
// not in it but derived from its sealed text and the browser's nonce, so that
// they exist only where that browser comes back.
type state struct {
	ID   string      `json:"i"` // random; a state is good once
	At   int64       `json:"t"` // unix seconds
	Bind string      `json:"b"` // the browser's nonce on the sign-in host
	IDP  string      `json:"p"` // the provider that was asked
	Dest destination `json:"d"`
}

// stateLife is how long a person may take at the provider, and how far clocks
// of our nodes may differ (wire-contract.md §1.5).
const stateLife = 5 * time.Minute

// maxState bounds a state in bytes before anything is decoded.
const maxState = 24 << 10

var stateAD = []byte("postern/1 state")

var (
	errState        = errors.New("the state is not one of ours")
	errStateExpired = errors.New("the state has expired")
)

func (s *Service) sealState(p identity.Provider, nonce string, d *destination) string {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails (crypto/rand)
	b, err := json.Marshal(state{
		ID: b64.EncodeToString(id), At: s.now().Unix(), Bind: s.bind(nonce, s.host), IDP: p.ID(), Dest: *d,
	})
	if err != nil {
		panic("authn: " + err.Error()) // plain fields always encode
	}
	return b64.EncodeToString(s.keys.Seal(session.PurposeState, b, stateAD))
}

// openState opens a state. With errStateExpired the state is returned too:
// it was ours, so that a fresh link can be offered.
func (s *Service) openState(raw string) (*state, error) {
	if raw == "" || len(raw) > maxState {
		return nil, errState
	}
	sealed, err := b64.Strict().DecodeString(raw)
	if err != nil {
		return nil, errState
	}
	plain, err := s.keys.Open(session.PurposeState, sealed, stateAD)
	if err != nil {
		return nil, errState
	}
	st := &state{}
	if err := json.Unmarshal(plain, st); err != nil || st.ID == "" || st.IDP == "" {
		return nil, errState
	}
	age := s.now().Sub(time.Unix(st.At, 0))
	if age > stateLife || age < -stateLife {
		return st, errStateExpired
	}
	return st, nil
}

// verifier is the PKCE code verifier of a sealed state in one browser: 43
// characters of the alphabet that RFC 7636 §4.1 wants.
func (s *Service) verifier(sealed, nonce string) string {
	return b64.EncodeToString(s.keys.MAC(session.PurposePKCE, sealed, nonce))
}

func (s *Service) oidcNonce(sealed, nonce string) string {
	return b64.EncodeToString(s.keys.MAC(session.PurposeOIDCNonce, sealed, nonce))
}

// UsedStates remembers which states were spent, as long as they could be
// replayed. It is bounded: under a flood the oldest are forgotten first, and
// the provider's own single use of codes remains.
type UsedStates struct {
	mu    sync.Mutex
	seen  map[string]time.Time
	order []string
}

const maxUsedStates = 65536

// NewUsedStates gives an empty memory.
func NewUsedStates() *UsedStates { return &UsedStates{seen: map[string]time.Time{}} }

// spend says whether id is used for the first time.
func (u *UsedStates) spend(id string, now time.Time) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, used := u.seen[id]; used {
		return false
	}
	for len(u.order) > 0 && (len(u.order) >= maxUsedStates || now.Sub(u.seen[u.order[0]]) > 2*stateLife) {
		delete(u.seen, u.order[0])
		u.order = u.order[1:]
	}
	u.seen[id] = now
	u.order = append(u.order, id)
	return true
}
