package session

import "strings"

// HostPrefix makes a browser refuse the cookie unless it is Secure, has path /
// and no Domain, so that no sibling host can plant one (RFC 6265bis §4.1.3.2).
const HostPrefix = "__Host-"

// CookieNames are the names of all cookies that Postern sets. The zero value
// is not usable: see NewCookieNames.
type CookieNames struct {
	Session string // on route hosts
	SignIn  string // the sign-in host's own session
	Nonce   string // proves that a login ends in the browser that began it
	Bounce  string // a login ended here less than a minute ago
}

// NewCookieNames derives the names from cookie_name and cookie_domain: without
// either, the session cookie is __Host-_pomerium (decision 12).
func NewCookieNames(name, domain string) CookieNames {
	base := name
	if base == "" {
		base = "_pomerium"
		if domain == "" {
			base = HostPrefix + base
		}
	}
	// A browser refuses a __Host- cookie that has a Domain.
	signIn := base + "_authenticate"
	if name == "" {
		signIn = HostPrefix + "_pomerium_authenticate"
	}
	return CookieNames{
		Session: base,
		SignIn:  signIn,
		Nonce:   HostPrefix + "_pomerium_nonce",
		Bounce:  HostPrefix + "_pomerium_bounce",
	}
}

// Ours says that a cookie belongs to Postern: it is stripped from requests on
// their way up and dropped from Set-Cookie on the way down. Names are exact,
// case included, as cookies are.
func (n CookieNames) Ours(name string) bool {
	switch name {
	case n.Session, n.SignIn, n.Nonce, n.Bounce:
		return true
	}
	return false
}

// CookieValues appends to into every value of the cookie name in the Cookie header line, in
// order. A value in double quotes is not unquoted: handles never have them.
func CookieValues(header, name string, into []string) []string {
	for len(header) > 0 {
		part := header
		if i := strings.IndexByte(header, ';'); i >= 0 {
			part, header = header[:i], header[i+1:]
		} else {
			header = ""
		}
		part = strings.Trim(part, " \t")
		if n, v, ok := strings.Cut(part, "="); ok && n == name {
			into = append(into, v)
		}
	}
	return into
}

// SingleValue gives the one value that all entries share. Two differing
// values are none: one of them was planted (decision 12). present tells an
// absent cookie from a contradictory one.
func SingleValue(values []string) (value string, present, ok bool) {
	if len(values) == 0 {
		return "", false, false
	}
	for _, v := range values[1:] {
		if v != values[0] {
			return "", true, false
		}
	}
	return values[0], true, values[0] != ""
}
