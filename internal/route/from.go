package route

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"postern/internal/exchange"
)

// Protocol is what a route carries.
type Protocol uint8

// The protocols of a route, by the scheme of its from.
const (
	HTTP Protocol = iota
	TCP           // CONNECT
	UDP           // CONNECT-UDP
	SSH
)

// String gives the type name of the routes portal ("http", "tcp", ...).
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SSH:
		return "ssh"
	}
	return "http"
}

// From is the public address of a route, parsed.
type From struct {
	// Raw is the address as written.
	Raw      string
	Protocol Protocol
	// Scheme is "https", "http" or "ssh".
	Scheme string
	// Host is canonical: lower case, ASCII, IPv6 in brackets. It may hold "*".
	Host string
	// Port is the explicit port, 0 if none or if it is the scheme's default.
	Port uint16
	// Targets are the authorities of the bastion form
	// tcp+https://proxy/host:port/host2:port, canonical; nil otherwise.
	Targets []string
}

// Wildcard reports whether the host holds a "*".
func (f From) Wildcard() bool { return strings.IndexByte(f.Host, '*') >= 0 }

// Authority is host or host:port, as a browser would show it.
func (f From) Authority() string {
	if f.Port == 0 {
		return f.Host
	}
	return f.Host + ":" + strconv.Itoa(int(f.Port))
}

// String is the canonical spelling of the address.
func (f From) String() string {
	s := f.Scheme + "://" + f.Authority()
	switch f.Protocol {
	case TCP, UDP:
		s = f.Protocol.String() + "+" + s
	}
	for _, t := range f.Targets {
		s += "/" + t
	}
	return s
}

// ParseFrom reads the from of a route (configuration.md §3.1).
func ParseFrom(raw string) (From, error) {
	bad := func(format string, args ...any) (From, error) {
		return From{}, fmt.Errorf("from %q "+format, append([]any{raw}, args...)...)
	}
	scheme, rest, ok := strings.Cut(strings.TrimSpace(raw), "://")
	if !ok || scheme == "" {
		return bad("has no scheme: write https://host")
	}
	f := From{Raw: raw}
	defaultPort := uint16(443)
	switch strings.ToLower(scheme) {
	case "https":
		f.Scheme = "https"
	case "http":
		f.Scheme, defaultPort = "http", 80
	case "tcp+https":
		f.Scheme, f.Protocol = "https", TCP
	case "udp+https":
		f.Scheme, f.Protocol = "https", UDP
	case "ssh":
		f.Scheme, f.Protocol, defaultPort = "ssh", SSH, 22
	default:
		return bad("has the unknown scheme %q: use https, http, tcp+https, udp+https or ssh", scheme)
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i] // query and fragment are ignored
	}
	authority, path, hasPath := strings.Cut(rest, "/")
	if authority == "" {
		return bad("has no host: write %s://host", scheme)
	}
	host, port, err := splitFromAuthority(authority)
	if err != nil {
		return bad("has a bad host: %v", err)
	}
	f.Host = host
	if port != defaultPort || f.Protocol == TCP || f.Protocol == UDP {
		f.Port = port // a CONNECT names its port, even 443
	}
	switch f.Protocol {
	case TCP, UDP:
		if path = strings.Trim(path, "/"); path != "" {
			f.Port = port
			for seg := range strings.SplitSeq(path, "/") {
				canonical, _, err := exchange.CanonicalAuthority(seg)
				if err != nil || portOf(canonical) == "" {
					return bad("has the bad target %q: write host:port", seg)
				}
				f.Targets = append(f.Targets, canonical)
			}
		} else if port == 0 {
			return bad("has no port: write %s://host:port", scheme)
		}
	default:
		if hasPath && path != "" {
			return bad("has a path: use prefix, path or regex instead")
		}
	}
	return f, nil
}

// splitFromAuthority canonicalises a host that may hold wildcards.
func splitFromAuthority(a string) (host string, port uint16, err error) {
	// A letter that the canonical form keeps stands in for the wildcard.
	const stand = "wildcard0star"
	if strings.Contains(strings.ToLower(a), stand) {
		return "", 0, errors.New("reserved word in host")
	}
	canonical, _, err := exchange.CanonicalAuthority(strings.ReplaceAll(a, "*", stand))
	if err != nil {
		return "", 0, err
	}
	host = canonical
	if p := portOf(canonical); p != "" {
		n, _ := strconv.ParseUint(p, 10, 16) // checked by CanonicalAuthority
		port = uint16(n)
		host = canonical[:len(canonical)-len(p)-1]
	}
	return strings.ReplaceAll(host, stand, "*"), port, nil
}

// portOf gives the port of a canonical authority, or "".
func portOf(authority string) string {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.IndexByte(authority[i:], ']') >= 0 {
		return ""
	}
	return authority[i+1:]
}
