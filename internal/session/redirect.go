package session

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// ErrRedirect is wrapped by every refusal of an address to send a browser to.
var ErrRedirect = errors.New("this address is not one we send a browser to")

// MaxRedirectSize bounds such an address in bytes.
const MaxRedirectSize = 8 << 10

// ParseRedirect accepts only an absolute https or http address that every
// browser reads the same way we do: a plain ASCII host name (punycode is what
// a browser sends) or IP address with an optional numeric port, no user
// information, no backslash, no control or blank character anywhere, no
// fragment-less tricks such as "https:/host" or "https:host".
func ParseRedirect(raw string) (*url.URL, error) {
	bad := func(why string) (*url.URL, error) {
		return nil, fmt.Errorf("%w: %s; start again from the application", ErrRedirect, why)
	}
	if raw == "" {
		return bad("it is empty")
	}
	if len(raw) > MaxRedirectSize {
		return bad("it is too long")
	}
	for i := 0; i < len(raw); i++ {
		if c := raw[i]; c <= ' ' || c == 0x7f || c >= 0x80 || c == '\\' {
			return bad("it holds a character that browsers read differently")
		}
	}
	rest, ok := strings.CutPrefix(raw, "https://")
	if !ok {
		if rest, ok = strings.CutPrefix(raw, "http://"); !ok {
			return bad("it does not begin with https:// or http://")
		}
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if err := plainAuthority(authority); err != nil {
		return bad(err.Error())
	}
	u, err := url.Parse(raw)
	if err != nil || u.User != nil || u.Opaque != "" || !sameHost(u.Host, authority) {
		return bad("it is malformed")
	}
	return u, nil
}

// plainAuthority accepts host[:port] of letters, digits, '-', '.', '_', or an
// IP address.
func plainAuthority(a string) error {
	host, port := a, ""
	if strings.HasPrefix(a, "[") {
		end := strings.IndexByte(a, ']')
		if end < 0 {
			return errors.New("its host is malformed")
		}
		ip, err := netip.ParseAddr(a[1:end])
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return errors.New("its host is malformed")
		}
		switch after := a[end+1:]; {
		case after == "":
			return nil
		case after[0] == ':':
			return plainPort(after[1:])
		}
		return errors.New("its host is malformed")
	}
	if i := strings.IndexByte(a, ':'); i >= 0 {
		host, port = a[:i], a[i+1:]
		if err := plainPort(port); err != nil {
			return err
		}
	}
	if host == "" || len(host) > 253 {
		return errors.New("its host is missing or too long")
	}
	for _, label := range strings.Split(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("its host is malformed")
		}
		for i := 0; i < len(label); i++ {
			c := label[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return errors.New("its host is malformed")
			}
		}
	}
	// A browser reads a name whose last label is a number as an IPv4 address
	// in any base ("0x7f.1"); only the plain form is unambiguous.
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last[0] >= '0' && last[0] <= '9' {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.Is4() {
			return errors.New("its host is an unusual form of a number")
		}
	}
	return nil
}

func plainPort(p string) error {
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 || p[0] == '0' {
		return errors.New("its port is malformed")
	}
	return nil
}

// CheckProgramRedirect accepts an address for a program's token: its host must
// equal an entry of programmatic_redirect_domain_whitelist exactly (case
// apart); "localhost" also covers loopback addresses; any port, http or https
// (wire-contract.md §6.1).
func CheckProgramRedirect(raw string, whitelist []string) (*url.URL, error) {
	u, err := ParseRedirect(raw)
	if err != nil {
		return nil, err
	}
	host := u.Hostname()
	for _, allowed := range whitelist {
		if strings.EqualFold(host, allowed) {
			return u, nil
		}
		if strings.EqualFold(allowed, "localhost") {
			if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
				return u, nil
			}
		}
	}
	return nil, fmt.Errorf("%w: its host is not listed in programmatic_redirect_domain_whitelist; ask the operator to add it", ErrRedirect)
}
