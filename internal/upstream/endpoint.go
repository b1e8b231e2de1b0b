package upstream

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strings"
)

// endpoint is one place to send to, as configured. A name has a host for each
// of its addresses.
type endpoint struct {
	name    string // as the operator wrote it
	scheme  string // http, https or h3
	addr    string // host:port, for Transport
	host    string // Host header unless the route sets one
	tlsName string
	network string // tcp or unix
	weight  uint32 // 0: none given

	// Where it is: fixed if that needs no DNS, else name and port.
	fixed    string // IP:port, or the path of a socket
	dnsName  string
	dnsPort  string
	cleartxt bool // h2c
}

// newEndpoint reads one URL of `to`.
func newEndpoint(e Endpoint, index int) (*endpoint, error) {
	if e.URL == nil {
		return nil, errors.New("to: empty endpoint; write a URL such as https://app:8443")
	}
	u := e.URL
	ep := &endpoint{name: u.Redacted(), weight: e.Weight, network: "tcp"}
	port := "80"
	switch u.Scheme {
	case "http":
		ep.scheme = "http"
	case "h2c":
		ep.scheme, ep.cleartxt = "http", true
	case "https":
		ep.scheme, port = "https", "443"
	case "h3":
		ep.scheme, port = "h3", "443"
	case "unix", "http+unix", "https+unix":
		ep.network = "unix"
		ep.scheme = "http"
		if u.Scheme == "https+unix" {
			ep.scheme = "https"
		}
		if ep.fixed = socketPath(u); ep.fixed == "" {
			return nil, fmt.Errorf("to: %s names no socket; write %s:///path/to/socket", ep.name, u.Scheme)
		}
		// A name that resolves nowhere: only our own dialler knows it.
		ep.host, ep.tlsName = "localhost", "localhost"
		ep.addr = fmt.Sprintf("socket-%d.invalid:%s", index, port)
		return ep, nil
	case "tcp", "udp", "ssh":
		return nil, fmt.Errorf("to: %s: %s upstreams are not served yet; remove the route or use an http, https, h2c or unix upstream", ep.name, u.Scheme)
	default:
		return nil, fmt.Errorf("to: %s has an unknown scheme; use http, https, h2c, h3, unix or https+unix", ep.name)
	}
	host := u.Hostname()
	if host == "" {
		return nil, fmt.Errorf("to: %s names no host", ep.name)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	ep.host, ep.tlsName = u.Host, host
	ep.addr = net.JoinHostPort(strings.ToLower(host), port)
	switch ip, err := netip.ParseAddr(host); {
	case err == nil:
		ep.fixed = net.JoinHostPort(ip.String(), port)
	case strings.EqualFold(strings.TrimSuffix(host, "."), "localhost"):
		ep.fixed = net.JoinHostPort("127.0.0.1", port) // configuration.md §2.15
	default:
		ep.dnsName, ep.dnsPort = strings.ToLower(host), port
	}
	return ep, nil
}

// socketPath reads unix:///run/app.sock, and unix:/run/app.sock.
func socketPath(u *url.URL) string {
	p := u.Path
	if p == "" {
		p = u.Opaque
	}
	if p == "" || u.Host != "" && u.Host != "." {
		return ""
	}
	return path.Clean(p)
}
