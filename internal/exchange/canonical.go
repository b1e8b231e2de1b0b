package exchange

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/net/idna"
)

// EscapedSlashes says what happens to a path that holds "/" or "\" in escaped
// form (path_with_escaped_slashes_action). A raw "\" is treated as escaped.
type EscapedSlashes uint8

// The zero action refuses.
const (
	RejectEscapedSlashes EscapedSlashes = iota
	KeepEscapedSlashes
	// RedirectEscapedSlashes sends the client to the unescaped path.
	RedirectEscapedSlashes
	// ForwardEscapedSlashes goes on with the unescaped path.
	ForwardEscapedSlashes
)

// PathOptions relax CanonicalPath. The zero value is the strict default.
type PathOptions struct {
	// KeepDots leaves dot segments and escapes as sent (normalize_path: false).
	KeepDots bool
	// KeepSlashes leaves adjacent slashes (merge_slashes: false).
	KeepSlashes    bool
	EscapedSlashes EscapedSlashes
}

// Errors of CanonicalPath and CanonicalAuthority; each is a 400.
var (
	ErrPathForm      = errors.New("path does not begin with a slash")
	ErrPathByte      = errors.New("path holds a raw '#', '?', space or control character")
	ErrPathEscape    = errors.New("path holds a broken percent escape")
	ErrEscapedSlash  = errors.New("path holds an escaped slash or a backslash")
	ErrAuthority     = errors.New("host name is malformed")
	ErrAuthorityUser = errors.New("host holds user information")
	ErrAuthorityPort = errors.New("host has a malformed port")
	ErrNoAuthority   = errors.New("request names no host")
)

// CanonicalPath brings a request path (still percent-encoded, without query)
// to the one form that routes match, policy judges and upstreams receive:
//
//   - dot segments are removed (RFC 3986 §5.2.4), "%2e" being a dot;
//   - adjacent slashes are merged;
//   - escapes of unreserved characters are decoded, other escapes are in upper
//     case, and bytes above 0x7F, which a URI may not hold raw, are escaped;
//   - "%2F", "%5C" and a raw "\" are refused, kept or read as "/", by option.
//
// Nothing else changes. The result is a fixed point: CanonicalPath of it is
// itself. unescaped says that the RedirectEscapedSlashes action applies. A path
// that already is canonical is returned as it is, without allocating.
func CanonicalPath(raw string, o PathOptions) (path string, unescaped bool, err error) {
	if raw == "" {
		return "/", false, nil
	}
	if raw[0] != '/' {
		return "", false, ErrPathForm
	}
	if plainPath(raw) {
		return raw, false, nil
	}
	b := make([]byte, 0, len(raw)+16)
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		switch {
		case c <= ' ' || c == 0x7F || c == '#' || c == '?':
			return "", false, ErrPathByte
		case c == '\\':
			if b, err = appendSlash(b, '\\', o, &unescaped); err != nil {
				return "", false, err
			}
		case c >= 0x80:
			b = appendEscape(b, c)
		case c == '%':
			if i+2 >= len(raw) || !isHex(raw[i+1]) || !isHex(raw[i+2]) {
				return "", false, ErrPathEscape
			}
			v := unhex(raw[i+1])<<4 | unhex(raw[i+2])
			switch {
			case v == 0:
				return "", false, ErrPathByte
			case v == '/' || v == '\\':
				if b, err = appendSlash(b, v, o, &unescaped); err != nil {
					return "", false, err
				}
			case o.KeepDots:
				b = append(b, raw[i:i+3]...)
			case unreserved(v):
				b = append(b, v)
			default:
				b = appendEscape(b, v)
			}
			i += 2
		default:
			b = append(b, c)
		}
	}
	if !o.KeepDots {
		b = removeDots(b)
	}
	if !o.KeepSlashes {
		b = mergeSlashes(b)
	}
	return string(b), unescaped && o.EscapedSlashes == RedirectEscapedSlashes, nil
}

// plainPath reports whether a path is canonical under every option: no
// escapes, no doubled slash, no segment that begins with a dot.
func plainPath(p string) bool {
	for i := 1; i < len(p); i++ {
		c := p[i]
		if c <= ' ' || c >= 0x7F || c == '%' || c == '#' || c == '?' || c == '\\' ||
			(p[i-1] == '/' && (c == '/' || c == '.')) {
			return false
		}
	}
	return true
}

func appendSlash(b []byte, v byte, o PathOptions, unescaped *bool) ([]byte, error) {
	switch o.EscapedSlashes {
	case KeepEscapedSlashes:
		return appendEscape(b, v), nil
	case RedirectEscapedSlashes, ForwardEscapedSlashes:
		// Servers that take "\" at all take it for a slash.
		*unescaped = true
		return append(b, '/'), nil
	}
	return nil, ErrEscapedSlash
}

func appendEscape(b []byte, v byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(b, '%', digits[v>>4], digits[v&15])
}

// removeDots is RFC 3986 §5.2.4 in place, on a path that begins with "/".
func removeDots(b []byte) []byte {
	out := b[:0]
	for i := 0; i < len(b); {
		// b[i] is the slash before a segment; j is where the segment ends.
		j := i + 1
		for j < len(b) && b[j] != '/' {
			j++
		}
		last := j == len(b)
		switch seg := b[i+1 : j]; {
		case len(seg) == 1 && seg[0] == '.':
			if last {
				out = append(out, '/')
			}
		case len(seg) == 2 && seg[0] == '.' && seg[1] == '.':
			for len(out) > 0 {
				c := out[len(out)-1]
				out = out[:len(out)-1]
				if c == '/' {
					break
				}
			}
			if last {
				out = append(out, '/')
			}
		default:
			out = append(out, b[i:j]...)
		}
		i = j
	}
	if len(out) == 0 {
		out = append(out, '/')
	}
	return out
}

func mergeSlashes(b []byte) []byte {
	out := b[:0]
	for i, c := range b {
		if c == '/' && i > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	return out
}

// HasEscapedSlash reports whether a canonical path still holds "%2F" or "%5C".
func HasEscapedSlash(path string) bool {
	return strings.Contains(path, "%2F") || strings.Contains(path, "%5C")
}

// HasDotParameter reports whether a canonical path holds a segment that is "."
// or ".." before a path parameter ("/..;x/"): servers that cut parameters off
// first would go up there, others would not, and no rule can mean both.
func HasDotParameter(path string) bool {
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '/' || path[i+1] != '.' {
			continue
		}
		rest := path[i+2:]
		if rest[0] == '.' {
			rest = rest[1:]
		}
		if strings.HasPrefix(rest, ";") || strings.HasPrefix(rest, "%3B") {
			return true
		}
	}
	return false
}

// CanonicalLiteral brings a path, or part of one, that an operator wrote to
// the spelling of canonical paths, so that "/caf%c3%a9" and "/café" are found:
// escapes as in CanonicalPath, nothing else touched.
func CanonicalLiteral(s string) (string, error) {
	p, _, err := CanonicalPath("/"+strings.ReplaceAll(s, " ", "%20"), PathOptions{
		KeepDots: true, KeepSlashes: true, EscapedSlashes: KeepEscapedSlashes,
	})
	if err != nil {
		return "", err
	}
	b := make([]byte, 0, len(p))
	for i := 1; i < len(p); i++ {
		if p[i] != '%' {
			b = append(b, p[i])
			continue
		}
		if v := unhex(p[i+1])<<4 | unhex(p[i+2]); unreserved(v) {
			b = append(b, v)
		} else {
			b = appendEscape(b, v)
		}
		i += 2
	}
	return string(b), nil
}

// CanonicalAuthority brings a Host header or :authority to the one form that
// routes are found by: ASCII lower case, no trailing dot, international names
// in their A-label form (UTS 46), IP addresses in their shortest form, the port
// as sent. User information, empty labels and ports that are no numbers from 1
// to 65535 are refused. hostname is authority without port and brackets.
// A name that is canonical already is returned without allocating.
func CanonicalAuthority(raw string) (authority, hostname string, err error) {
	if raw == "" {
		return "", "", ErrNoAuthority
	}
	if strings.IndexByte(raw, '@') >= 0 {
		return "", "", ErrAuthorityUser
	}
	host, port := raw, ""
	if raw[0] == '[' {
		end := strings.IndexByte(raw, ']')
		if end < 0 {
			return "", "", ErrAuthority
		}
		host, port = raw[1:end], raw[end+1:]
		if port != "" && port[0] != ':' {
			return "", "", ErrAuthority
		}
		ip, err := netip.ParseAddr(host)
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return "", "", ErrAuthority
		}
		hostname = ip.String()
		host = "[" + hostname + "]"
	} else {
		if i := strings.IndexByte(raw, ':'); i >= 0 {
			host, port = raw[:i], raw[i:]
		}
		if host, err = canonicalName(host); err != nil {
			return "", "", err
		}
		hostname = host
	}
	if port == ":" {
		port = ""
	}
	if port != "" && !validPort(port[1:]) {
		return "", "", ErrAuthorityPort
	}
	if n := len(host) + len(port); n == len(raw) && raw[:len(host)] == host {
		return raw, hostname, nil
	}
	return host + port, hostname, nil
}

func canonicalName(host string) (string, error) {
	for i := 0; i < len(host); i++ {
		if host[i] >= 0x80 {
			ascii, err := idna.Lookup.ToASCII(host)
			if err != nil {
				return "", fmt.Errorf("%w: not an international name", ErrAuthority)
			}
			host = ascii
			break
		}
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if host == "" || len(host) > 253 {
		return "", ErrAuthority
	}
	dot := true // a label may not be empty
	for i := 0; i < len(host); i++ {
		switch c := host[i]; {
		case c == '.':
			if dot {
				return "", ErrAuthority
			}
			dot = true
			continue
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return "", ErrAuthority
		}
		dot = false
	}
	if dot {
		return "", ErrAuthority
	}
	return host, nil
}

func validPort(p string) bool {
	if p == "" || len(p) > 5 || p[0] == '0' {
		return false
	}
	n := 0
	for i := 0; i < len(p); i++ {
		if p[i] < '0' || p[i] > '9' {
			return false
		}
		n = n*10 + int(p[i]-'0')
	}
	return n <= 65535
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
