package authz

import (
	"iter"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"

	"postern/internal/exchange"
	"postern/internal/route"
	"postern/internal/session"
)

// Credential is what an opener found in a request. A Credential that names
// neither a Handle nor a ServiceAccountID was presented and is not valid: its
// caller is anonymous, and openers further down the list are not asked
// (wire-contract.md §1.2: the first present wins).
type Credential struct {
	Carrier          Carrier
	Handle           *session.Handle
	ServiceAccountID string
	// Refuse, if not 0, is the status (403, 400) that answers the request
	// before any policy: a bad bearer of an identity provider (decision 9).
	Refuse  int
	Message string // for the visitor of a Refuse

	memo *atomic.Pointer[who]
}

// CredentialOpener looks for a credential in one place of a request; ok says
// that there is one, good or bad. It must be cheap for a stranger.
type CredentialOpener func(req *Request) (c Credential, ok bool)

// standardOpeners are the places of wire-contract.md §1.2 and §6.2 in order.
func standardOpeners() []CredentialOpener {
	return []CredentialOpener{
		openCookie,
		openPomeriumHeader,
		openAuthorization,
		openQuery,
	}
}

// openCookie reads the session cookie. Two that differ are none: one of them
// was planted. On the sign-in host's own pages its own cookie comes first.
func openCookie(req *Request) (Credential, bool) {
	env := req.Env
	if req.SignInHost && req.Internal {
		if c, ok := env.openCookieNamed(req, env.cookies.SignIn, true); ok {
			return c, ok
		}
	}
	return env.openCookieNamed(req, env.cookies.Session, false)
}

func (env *Env) openCookieNamed(req *Request, name string, signIn bool) (Credential, bool) {
	c := Credential{Carrier: CarrierCookie}
	token, present, ok := cookieValue(req.View.Values("Cookie"), name)
	if !present {
		return Credential{}, false
	}
	if !ok {
		return c, true
	}
	// A cookie holds handles only: nothing sets a service account's token as
	// one, so one that arrives there was planted.
	if v := env.verify(token); v != nil && v.handle != nil && env.handleFor(req, v.handle, signIn) {
		c.Handle, c.memo = v.handle, &v.who
	}
	return c, true
}

// cookieValue finds the one value of a cookie. As session.SingleValue, a
// contradictory or empty cookie is present but not ok.
func cookieValue(lines iter.Seq[string], name string) (value string, present, ok bool) {
	s := scanPool.Get().(*headerScan)
	s.cookie, s.value, s.present, s.differ = name, "", false, false
	lines(s.onCookie)
	value, present, ok = s.value, s.present, !s.differ && s.value != ""
	s.value = "" // borrowed
	scanPool.Put(s)
	return value, present, ok
}

// headerScan reads the values of a header. It is pooled with the functions
// that iterators call, since a fresh closure for every header of every request
// would be most of what a decision allocates.
type headerScan struct {
	cookie          string
	value           string
	present, differ bool
	ours            bool

	onCookie, onAuthorization func(string) bool
}

var scanPool = sync.Pool{New: func() any {
	s := &headerScan{}
	s.onCookie = s.readCookies
	s.onAuthorization = s.readAuthorization
	return s
}}

func (s *headerScan) readCookies(line string) bool {
	for line != "" {
		var part string
		part, line, _ = strings.Cut(line, ";")
		n, v, has := strings.Cut(strings.Trim(part, " \t"), "=")
		if !has || n != s.cookie {
			continue
		}
		s.differ = s.differ || s.present && v != s.value
		s.value, s.present = v, true
	}
	return true
}

func (s *headerScan) readAuthorization(value string) bool {
	s.ours = s.ours || strings.HasPrefix(value, "Pomerium ") || strings.HasPrefix(value, "Bearer Pomerium-")
	return !s.ours
}

func openPomeriumHeader(req *Request) (Credential, bool) {
	return req.Env.openHeader(req, "X-Pomerium-Authorization", "", CarrierPomeriumHeader)
}

func openAuthorization(req *Request) (Credential, bool) {
	if c, ok := req.Env.openHeader(req, "Authorization", "Pomerium ", CarrierAuthorization); ok {
		return c, true
	}
	return req.Env.openHeader(req, "Authorization", "Bearer Pomerium-", CarrierBearer)
}

func (env *Env) openHeader(req *Request, name, prefix string, carrier Carrier) (Credential, bool) {
	var token string
	n, differ := 0, false
	for v := range req.View.Values(name) {
		t, ok := strings.CutPrefix(v, prefix) // prefixes mind the case
		if !ok {
			continue
		}
		differ = differ || n > 0 && t != token
		token = t
		n++
	}
	if n == 0 {
		return Credential{}, false
	}
	if differ {
		return Credential{Carrier: carrier}, true
	}
	return env.openToken(req, token, carrier), true
}

func openQuery(req *Request) (Credential, bool) {
	var token string
	n, differ := 0, false
	eachSessionParam(req.View.RawQuery(), func(v string) {
		differ = differ || n > 0 && v != token
		token = v
		n++
	})
	switch {
	case n == 0:
		return Credential{}, false
	case differ:
		return Credential{Carrier: CarrierQuery}, true
	}
	return req.Env.openToken(req, token, CarrierQuery), true
}

// openToken opens a token of a program: a handle or a service account's.
func (env *Env) openToken(req *Request, token string, carrier Carrier) Credential {
	c := Credential{Carrier: carrier}
	v := env.verify(token)
	switch {
	case v == nil:
	case v.handle != nil:
		if env.handleFor(req, v.handle, false) {
			c.Handle, c.memo = v.handle, &v.who
		}
	default:
		c.ServiceAccountID, c.memo = v.account, &v.who
	}
	return c
}

// handleFor says whether a handle counts for this request: it was set for its
// host (decision 12) and by its route's identity provider.
func (env *Env) handleFor(req *Request, h *session.Handle, signIn bool) bool {
	rt := req.Route
	if h.IDPID != "" && rt != nil && rt.IDPID != "" && !req.Internal && h.IDPID != rt.IDPID {
		return false
	}
	if env.anyAudience {
		return true
	}
	host := req.View.Hostname()
	if signIn {
		return h.ForSignIn(host)
	}
	if h.ForHost(host, env.cookieDomain) {
		return true
	}
	// A tunnel's authority names what is dialled; the token was given at the
	// host that people sign in at for it.
	return rt != nil && rt.From.Protocol != route.HTTP && !rt.From.Wildcard() &&
		h.ForHost(rt.From.Host, env.cookieDomain)
}

// verified is a token whose signature was found good under this generation's
// keys, and who it last turned out to be.
type verified struct {
	handle  *session.Handle
	account string // service account id
	who     atomic.Pointer[who]
}

// maxTokens bounds the verified tokens that are remembered.
const maxTokens = 16384

func newTokenCache() *otter.Cache[string, *verified] {
	return otter.Must(&otter.Options[string, *verified]{MaximumSize: maxTokens})
}

// verify checks a token's signature, or remembers that it was good. Only good
// tokens are remembered, under their whole text, and keys do not change within
// a generation. It gives nil for anything else.
func (env *Env) verify(token string) *verified {
	if len(token) > session.MaxTokenSize {
		return nil
	}
	if v, ok := env.tokens.GetIfPresent(token); ok {
		return v
	}
	token = strings.Clone(token) // the view's strings are borrowed
	v := &verified{}
	if h, err := session.VerifyHandle(env.keys, token); err == nil {
		v.handle = h
	} else if id, _, err := session.VerifyServiceAccount(env.keys, token); err == nil {
		v.account = id
	} else {
		return nil
	}
	env.tokens.Set(token, v)
	return v
}

const sessionParam = "pomerium_session"

// eachSessionParam calls f with each decoded value of pomerium_session in a
// raw query, whatever escapes its name is written with.
func eachSessionParam(query string, f func(value string)) {
	if query == "" || !strings.Contains(query, sessionParam) && !strings.Contains(query, "%") {
		return
	}
	// A loop by hand: ranging over an iterator would move the caller's
	// variables to the heap.
	for more := true; more; {
		var part string
		part, query, more = strings.Cut(query, "&")
		name, value, _ := strings.Cut(part, "=")
		if !isSessionParam(name) {
			continue
		}
		v, err := url.QueryUnescape(value)
		if err != nil {
			v = ""
		}
		f(v)
	}
}

func isSessionParam(name string) bool {
	if name == sessionParam {
		return true
	}
	if !strings.Contains(name, "%") {
		return false
	}
	n, err := url.QueryUnescape(name)
	return err == nil && n == sessionParam
}

// StripSessionQuery takes the parameters named pomerium_session out of a raw
// query and leaves every other byte as it was.
func StripSessionQuery(query string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(query, "&") {
		if name, _, _ := strings.Cut(part, "="); isSessionParam(name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(part)
	}
	return b.String()
}

// carriesSession reports whether the request presents a session token in
// headers or query (wire-contract.md §1.4), valid or not.
func carriesSession(v exchange.View) bool {
	if v.Header("X-Pomerium-Authorization") != "" {
		return true
	}
	if authorizationIsOurs(v) {
		return true
	}
	found := false
	eachSessionParam(v.RawQuery(), func(string) { found = true })
	return found
}

// authorizationIsOurs reports whether an Authorization field carries a
// credential for us, valid or not.
func authorizationIsOurs(v exchange.View) bool {
	s := scanPool.Get().(*headerScan)
	s.ours = false
	v.Values("Authorization")(s.onAuthorization)
	ours := s.ours
	scanPool.Put(s)
	return ours
}
