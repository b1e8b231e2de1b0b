package upstream

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// connectTimeout bounds connecting, TLS included (configuration.md §2.11).
const connectTimeout = 10 * time.Second

// connectError marks errors from before a connection stood: nothing was sent.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// dialHost connects to a host. All connections to upstreams begin here: it
// keeps the guard and the source address.
func (t *Target) dialHost(ctx context.Context, h *host) (net.Conn, error) {
	return t.dialPort(ctx, h, 0)
}

// dialPort is dialHost to another port, unless that is 0 or the host a socket.
func (t *Target) dialPort(ctx context.Context, h *host, port uint16) (net.Conn, error) {
	addr := h.addr
	if port != 0 && h.endpoint.network == "tcp" {
		ip, _, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, &connectError{err}
		}
		addr = net.JoinHostPort(ip, strconv.Itoa(int(port)))
	}
	d := net.Dialer{Timeout: connectTimeout}
	if t.guard != nil {
		d.ControlContext = t.guard.check
	}
	c, err := d.DialContext(ctx, h.endpoint.network, addr)
	if err != nil {
		return nil, &connectError{err}
	}
	return c, nil
}

// tlsConfigFor is how to speak TLS with a host.
func (t *Target) tlsConfigFor(h *host, alpn []string) *tls.Config {
	return t.tls.config(h.endpoint.tlsName, alpn)
}

func (t *Target) dialTLS(ctx context.Context, h *host, alpn []string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := t.dialHost(ctx, h)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, t.tlsConfigFor(h, alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &connectError{&tlsError{err}}
	}
	if c.ConnectionState().NegotiatedProtocol == "h2" {
		return c, nil // Transport speaks HTTP/2 on a *tls.Conn that chose it
	}
	return newResponseGuard(c), nil
}

// tlsError marks handshake errors, for explain.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// dialGuard refuses addresses that routes from the API or a cluster may not
// reach (decisions.md 27). It sees addresses after name resolution, at the
// moment of connecting, so that a name cannot change its mind in between.
type dialGuard struct{ allow []netip.Prefix }

// metadata services that are not link-local.
var metadataAddrs = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),
	netip.MustParseAddr("100.100.100.200"),
	netip.MustParseAddr("192.0.0.192"),
	netip.MustParseAddr("168.63.129.16"),
}

func (g *dialGuard) check(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("address %q is not an IP address: refused", address)
	}
	ip := ap.Addr().Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(ip) {
			return nil
		}
	}
	bad := ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified() || ip.IsMulticast()
	for _, m := range metadataAddrs {
		bad = bad || ip == m
	}
	if bad {
		return fmt.Errorf("%s is a loopback, link-local or metadata address, which this route may not reach; list it in upstream_dial_allow if it should", ip)
	}
	return nil
}
