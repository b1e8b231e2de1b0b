package authn

import (
	"crypto/rand"
	"encoding/base64"
	"iter"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/session"
)

var b64 = base64.RawURLEncoding

// nonceLife is how long a browser keeps its nonce; a login that takes longer
// begins again.
const nonceLife = 12 * time.Hour

// hostName is an authority without port, as cookies see it.
func hostName(authority string) string { return session.HostAudience(authority) }

// cookieLines are the Cookie header lines of a request.
func cookieLines(r *http.Request) iter.Seq[string] { return slices.Values(r.Header["Cookie"]) }

func cookieValues(lines iter.Seq[string], name string) []string {
	var values []string
	for line := range lines {
		values = session.CookieValues(line, name, values)
	}
	return values
}

// nonce gives the browser's nonce on a host, or "" if it brought none that is
// ours. The MAC keeps a planted value from being known beforehand to somebody
// who cannot set __Host- cookies anyway; two differing ones are none.
func (s *Service) nonce(lines iter.Seq[string], authority string) string {
	v, _, ok := session.SingleValue(cookieValues(lines, s.names.Nonce))
	if !ok || len(v) > 128 {
		return ""
	}
	random, mac, ok := strings.Cut(v, ".")
	sum, err := b64.DecodeString(mac)
	if !ok || err != nil || len(random) != b64.EncodedLen(32) || !s.keys.CheckMAC(session.PurposeNonce, sum, random, hostName(authority)) {
		return ""
	}
	return random
}

// newNonce makes a nonce and the cookie that carries it.
func (s *Service) newNonce(authority string) (nonce string, cookie *http.Cookie) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	nonce = b64.EncodeToString(b)
	mac := b64.EncodeToString(s.keys.MAC(session.PurposeNonce, nonce, hostName(authority)))
	return nonce, &http.Cookie{
		Name: s.names.Nonce, Value: nonce + "." + mac, Path: "/", Secure: true, HttpOnly: true,
		SameSite: s.nonceSite, MaxAge: int(nonceLife / time.Second),
	}
}

// ensureNonce gives the browser's nonce on this host, setting one if needed.
func (s *Service) ensureNonce(w http.ResponseWriter, r *http.Request) string {
	if n := s.nonce(cookieLines(r), r.Host); n != "" {
		return n
	}
	n, c := s.newNonce(r.Host)
	http.SetCookie(w, c)
	return n
}

// bind names a nonce without giving it away.
func (s *Service) bind(nonce, authority string) string {
	return b64.EncodeToString(s.keys.MAC(session.PurposeCSRF, "browser", nonce, hostName(authority))[:16])
}

func (s *Service) bound(bind, nonce, authority string) bool {
	sum, err := b64.DecodeString(bind)
	if err != nil || len(sum) != 16 || nonce == "" {
		return false
	}
	return s.keys.CheckShortMAC(session.PurposeCSRF, sum, "browser", nonce, hostName(authority))
}

// setSessionCookie gives the browser a route host's handle. Life and
// attributes are wire-contract.md §3.1.
func (s *Service) setSessionCookie(w http.ResponseWriter, r *http.Request, handle session.Token, until time.Time) {
	// A cookie of the same name for another domain or path would make two
	// differing handles, which count as none: take it away.
	if len(cookieValues(cookieLines(r), s.names.Session)) > 1 {
		for _, c := range s.strayCookies(r.Host) {
			http.SetCookie(w, c)
		}
	}
	http.SetCookie(w, s.routeCookie(string(handle), until))
}

func (s *Service) routeCookie(value string, until time.Time) *http.Cookie {
	return &http.Cookie{
		Name: s.names.Session, Value: value, Path: "/", Domain: s.cfg.CookieDomain, Expires: until,
		Secure: true, HttpOnly: s.cfg.CookieHTTPOnly, SameSite: s.sameSite,
	}
}

// strayCookies delete what a sibling or an earlier configuration may have set
// under our name.
func (s *Service) strayCookies(authority string) []*http.Cookie {
	if strings.HasPrefix(s.names.Session, session.HostPrefix) {
		return nil
	}
	gone := func(domain string) *http.Cookie {
		return &http.Cookie{Name: s.names.Session, Value: "", Path: "/", Domain: domain, MaxAge: -1, Secure: true, HttpOnly: true}
	}
	var out []*http.Cookie
	if s.cfg.CookieDomain != "" {
		out = append(out, gone(""))
	}
	own := strings.TrimPrefix(strings.ToLower(s.cfg.CookieDomain), ".")
	for name := hostName(authority); strings.Contains(name, "."); _, name, _ = strings.Cut(name, ".") {
		if name != own {
			out = append(out, gone(name))
		}
	}
	return out
}

// clearSessionCookie takes the route host's handle away.
func (s *Service) clearSessionCookie(w http.ResponseWriter) {
	c := s.routeCookie("", time.Unix(1, 0))
	c.MaxAge = -1
	http.SetCookie(w, c)
	http.SetCookie(w, &http.Cookie{Name: s.names.Bounce, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true})
}

// setSignInCookie gives the browser the sign-in host's own handle. It is never
// SameSite=Strict: the browser comes back from the provider's site.
func (s *Service) setSignInCookie(w http.ResponseWriter, handle session.Token, until time.Time) {
	http.SetCookie(w, s.signInCookie(string(handle), until))
}

func (s *Service) signInCookie(value string, until time.Time) *http.Cookie {
	site := s.sameSite
	if site == http.SameSiteStrictMode {
		site = http.SameSiteLaxMode
	}
	return &http.Cookie{
		Name: s.names.SignIn, Value: value, Path: "/", Expires: until, Secure: true, HttpOnly: true, SameSite: site,
	}
}

func (s *Service) clearSignInCookie(w http.ResponseWriter) {
	c := s.signInCookie("", time.Unix(1, 0))
	c.MaxAge = -1
	http.SetCookie(w, c)
}

// signInSession gives the session of the sign-in host's own cookie, nil if
// there is none that is alive.
func (s *Service) signInSession(r *http.Request) (*session.Session, error) {
	v, _, ok := session.SingleValue(cookieValues(cookieLines(r), s.names.SignIn))
	if !ok {
		return nil, nil
	}
	h, err := session.VerifyHandle(s.keys, v)
	if err != nil || !h.ForSignIn(r.Host) {
		return nil, nil
	}
	return s.readSession(r.Context(), h.ID)
}

// bounce counts how often a browser came back from signing in without a
// session. It rides in signed links; between a callback and the next request
// to the application it rests in a cookie for a minute (decision 13).
type bounce struct {
	N     int   `json:"n,omitempty"`
	First int64 `json:"f,omitempty"` // unix seconds of the first one
	Cause int   `json:"c,omitempty"` // a pages.LoopCause
}

// A loop is stopped at the third bounce within a minute.
const (
	maxBounces  = 3
	bounceReset = 60 * time.Second
)

// again is the next bounce.
func (b bounce) again(now time.Time, cause int) bounce {
	if b.First == 0 || now.Unix()-b.First > int64(bounceReset/time.Second) || b.First > now.Unix()+60 {
		b = bounce{First: now.Unix()}
	}
	b.N++
	b.Cause = cause
	return b
}

func (b bounce) String() string {
	return strconv.Itoa(b.N) + "." + strconv.FormatInt(b.First, 10) + "." + strconv.Itoa(b.Cause)
}

func parseBounce(v string) (b bounce, ok bool) {
	parts := strings.Split(v, ".")
	if len(parts) != 3 {
		return b, false
	}
	var err [3]error
	b.N, err[0] = strconv.Atoi(parts[0])
	b.First, err[1] = strconv.ParseInt(parts[1], 10, 64)
	b.Cause, err[2] = strconv.Atoi(parts[2])
	return b, err[0] == nil && err[1] == nil && err[2] == nil && b.N >= 0 && b.N <= 1000 && b.First >= 0 && b.Cause >= 0
}

// setBounce marks that a login has just ended here.
func (s *Service) setBounce(w http.ResponseWriter, authority string, b bounce) {
	if b.First == 0 {
		b.First = s.now().Unix()
	}
	v := b.String()
	http.SetCookie(w, &http.Cookie{
		Name: s.names.Bounce, Value: v + "." + b64.EncodeToString(s.keys.MAC(session.PurposeCSRF, "bounce", v, hostName(authority))[:16]),
		Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(bounceReset / time.Second),
	})
}

// bounceMark reads that mark; ok is false without a fresh one.
func (s *Service) bounceMark(lines iter.Seq[string], authority string) (b bounce, ok bool) {
	v, _, ok := session.SingleValue(cookieValues(lines, s.names.Bounce))
	if !ok || len(v) > 128 {
		return b, false
	}
	i := strings.LastIndexByte(v, '.')
	if i < 0 {
		return b, false
	}
	sum, err := b64.DecodeString(v[i+1:])
	if err != nil || len(sum) != 16 || !s.keys.CheckShortMAC(session.PurposeCSRF, sum, "bounce", v[:i], hostName(authority)) {
		return b, false
	}
	b, ok = parseBounce(v[:i])
	return b, ok && s.now().Unix()-b.First <= int64(bounceReset/time.Second)
}
