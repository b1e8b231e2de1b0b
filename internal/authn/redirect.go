package authn

import (
	"net/http"
	"strings"

	"postern/internal/exchange"
	"postern/internal/pages"
	"postern/internal/session"
)

// Redirect is where a browser without a session is sent, and the cookies that
// go with it.
type Redirect struct {
	URL     string
	Cookies []*http.Cookie
}

// maxReturn bounds the address that a login returns to: it travels through the
// provider, and many cut long ones. A longer one loses its query, then its path.
const maxReturn = 4096

// SignInRedirect builds the way to the sign-in host for a request that was
// judged to need a sign-in (wire-contract.md §1.5). provider is the route's
// provider id ("" is the default), additional the hosts of depends_on.
// Cookies must be set with the redirect: they hold the browser's nonce.
//
// A browser that has just come back from signing in and still has no session
// is counted; the sign-in host stops it at the third time.
func (s *Service) SignInRedirect(v exchange.View, provider string, additional []string) Redirect {
	host := strings.Clone(v.Authority())
	d := &destination{
		Redirect: returnAddress(host, strings.Clone(v.Path()), strings.Clone(v.RawQuery())),
		IDP:      provider, Hosts: additional,
	}
	if d.IDP == "" {
		d.IDP = s.DefaultProvider()
	}
	if len(d.Hosts) > maxAdditional {
		d.Hosts = d.Hosts[:maxAdditional]
	}
	var out Redirect
	cookies := v.Values("Cookie")
	nonce := strings.Clone(s.nonce(cookies, host))
	if nonce == "" {
		var c *http.Cookie
		nonce, c = s.newNonce(host)
		out.Cookies = append(out.Cookies, c)
	}
	d.Bind = s.bind(nonce, host)
	if mark, ok := s.bounceMark(cookies, host); ok {
		d.Bounce = mark.again(s.now(), int(s.cause(cookieValues(cookies, s.names.Session), host, d.IDP)))
	}
	out.URL = s.signInLink(d)
	return out
}

// cause is the likely reason why a browser that has just signed in is nobody.
func (s *Service) cause(values []string, host, provider string) pages.LoopCause {
	v, present, ok := session.SingleValue(values)
	switch {
	case !present:
		return pages.LoopCookie
	case !ok:
		return pages.LoopUnknown
	}
	h, err := session.VerifyHandle(s.keys, v)
	switch {
	case err != nil || s.cfg.HandleAudience != "any" && !h.ForHost(host, s.cfg.CookieDomain):
		return pages.LoopUnknown
	case h.IDPID != "" && h.IDPID != provider:
		return pages.LoopProvider
	}
	return pages.LoopSession
}

// returnAddress is https://host/path?query in the form that every browser
// reads alike: bytes that some would change are escaped.
func returnAddress(host, path, query string) string {
	base := "https://" + host
	full := base + escapeOdd(path)
	if query != "" {
		full += "?" + escapeOdd(query)
	}
	if len(full) <= maxReturn {
		return full
	}
	if full = base + escapeOdd(path); len(full) <= maxReturn {
		return full
	}
	return base + "/"
}

func escapeOdd(s string) string {
	const hex = "0123456789ABCDEF"
	odd := func(c byte) bool { return c <= ' ' || c >= 0x7f || c == '\\' || c == '#' }
	for i := 0; i < len(s); i++ {
		if odd(s[i]) {
			var b strings.Builder
			for j := 0; j < len(s); j++ {
				if c := s[j]; odd(c) {
					b.WriteByte('%')
					b.WriteByte(hex[c>>4])
					b.WriteByte(hex[c&15])
				} else {
					b.WriteByte(c)
				}
			}
			return b.String()
		}
	}
	return s
}
