package proxy

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"

	"postern/internal/exchange"
)

// ConnInfo is what Serve knows about one accepted connection. It is made when
// the connection is accepted and its handshake done, and is found from a
// request's context with ConnInfoFrom. Everything but the queue of received
// heads and abandon is read-only.
type ConnInfo struct {
	// Direct is the address of the peer as connections and logs know it: the
	// source named by the PROXY header where that is required, else the other
	// end of the socket. Unmapped (IPv4 stays IPv4).
	Direct netip.AddrPort
	// Proxy is the other end of the socket where a PROXY header named Direct;
	// the zero AddrPort otherwise.
	Proxy netip.AddrPort
	// Local is the address the connection was accepted on.
	Local netip.AddrPort
	// TLS is the state after the handshake, nil on a clear connection. It
	// holds the chain the client presented, unverified: see certs.
	TLS *tls.ConnectionState

	quic    *quicConn // nil on TCP
	tunnels *tunnels  // of the server
	altSvc  string    // what answers on this connection say of HTTP/3; "" nothing

	mu    sync.Mutex
	heads []*ReceivedHead

	abandoned atomic.Bool
}

// abandon lets nothing more be read from an HTTP/1.1 connection: a request's
// body was not read to its end, and what comes may be the rest of it. net/http
// would take that for the next request where the handler answered while it
// was reading (full duplex).
func (c *ConnInfo) abandon() {
	if c != nil {
		c.abandoned.Store(true)
	}
}

// ReceivedHead is a request head as it came over the wire, which net/http
// does not keep: field order, field name case, multiplicity.
type ReceivedHead struct {
	Method string
	Target string
	// Fields are in the order received, with names as received.
	Fields []exchange.Field
}

// openTunnels are those of the server that the connection belongs to; nil
// where there is none.
func (c *ConnInfo) openTunnels() *tunnels {
	if c == nil {
		return nil
	}
	return c.tunnels
}

type connInfoKey struct{}

// ConnInfoFrom gives the connection a request context belongs to, or nil if
// the request did not come through Serve.
func ConnInfoFrom(ctx context.Context) *ConnInfo {
	info, _ := ctx.Value(connInfoKey{}).(*ConnInfo)
	return info
}

// TakeHead gives the head of r as received. It must be called once per
// request, before the handler returns, and is nil for HTTP/2 (names are lower
// case there, and order does not matter) or where r did not come through the
// guard.
func (c *ConnInfo) TakeHead(r *http.Request) *ReceivedHead {
	if c == nil || r.ProtoMajor != 1 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.heads) > 0 {
		h := c.heads[0]
		c.heads[0] = nil
		c.heads = c.heads[1:]
		if h.Method == r.Method && h.Target == r.RequestURI {
			return h
		}
	}
	return nil
}

func (c *ConnInfo) pushHead(h *ReceivedHead) {
	c.mu.Lock()
	c.heads = append(c.heads, h)
	c.mu.Unlock()
}
