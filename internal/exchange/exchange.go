// Package exchange is the vocabulary that codecs and the request pipeline
// share: a request as every codec shows it (View), the way back (Exchange),
// who is at the other end (Peer), and header changes compiled ahead of the
// request (HeaderEdits).
//
// Nothing here knows net/http, so that HTTP/1.1, HTTP/2, HTTP/3 and the fast
// path can all drive one pipeline. Strings handed out by a View may alias the
// codec's buffer: they are borrowed until the exchange ends, and whatever
// outlives it must be cloned with strings.Clone.
package exchange

import (
	"crypto/x509"
	"io"
	"iter"
	"net"
	"net/netip"
)

// Proto is the HTTP version a request arrived with.
type Proto uint8

// The HTTP versions a codec may report.
const (
	HTTP10 Proto = iota + 1
	HTTP11
	HTTP2
	HTTP3
)

// String gives the name used in logs, for example "HTTP/1.1".
func (p Proto) String() string {
	switch p {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	case HTTP3:
		return "HTTP/3"
	}
	return "HTTP/?"
}

// View is a request as every codec shows it. It is read-only and canonical:
// the path and the authority have been normalised once, and that form is what
// routes match, policy judges and the upstream receives.
type View interface {
	// Method is the request method exactly as sent.
	Method() string
	// Scheme is "https" or "http", as the client sees the connection.
	Scheme() string
	// Proto is the HTTP version of the downstream connection.
	Proto() Proto
	// Protocol is the :protocol of an extended CONNECT (RFC 8441), else "".
	Protocol() string
	// Authority is the canonical host[:port] of the request: lower case, no
	// trailing dot, port kept as sent.
	Authority() string
	// Hostname is Authority without port and without IPv6 brackets.
	Hostname() string
	// RawTarget is the request target as received, for logs only.
	RawTarget() string
	// Path is the canonical path (see Canonical), still percent-encoded.
	Path() string
	// RawQuery is the query without "?", untouched. HasQuery tells "/x?" from "/x".
	RawQuery() string
	HasQuery() bool
	// Header gives the first value of name (any case), or "".
	Header(name string) string
	// Values yields every value of name (any case), duplicates included.
	Values(name string) iter.Seq[string]
	// Headers yields all header fields in the order received, with names as
	// received where the codec knows them.
	Headers() iter.Seq2[string, string]
	// BodySize is the declared body length in bytes: 0 none, -1 unknown.
	BodySize() int64
	// RequestID identifies this request in logs, pages and the response.
	RequestID() string
	// Peer tells who is at the other end of the connection.
	Peer() *Peer
}

// Peer is the client at the other end.
type Peer struct {
	// Direct is the address of the TCP or UDP peer.
	Direct netip.AddrPort
	// ClientIP is the client's address after PROXY protocol and trusted
	// hops; it serves policy, limits and the access log. The zero Addr means
	// that it could not be determined and matches nothing.
	ClientIP netip.Addr
	// Secure says that the client's connection is TLS (or is vouched for by
	// a trusted proxy).
	Secure bool
	// ServerName is the SNI of the TLS handshake, or "".
	ServerName string
	// Certificates is the chain the client presented, leaf first; nil without one.
	Certificates []*x509.Certificate
	// CertificateState says whether the chain satisfies the configured client CA.
	CertificateState CertificateState
}

// CertificateState is the outcome of checking a client certificate against
// the client CA that applies to the request.
type CertificateState uint8

// The zero CertificateState is "no client CA configured".
const (
	CertificateNotAsked CertificateState = iota
	CertificateValid
	CertificateMissing
	CertificateInvalid
)

// BodySource reads the request body from the client. Size is as View.BodySize.
type BodySource interface {
	io.Reader
	// Trailers yields the request's trailer fields once Read returned io.EOF.
	Trailers() iter.Seq2[string, string]
}

// HeaderSeq yields header fields (name, value) of a response.
type HeaderSeq = iter.Seq2[string, string]

// Exchange is the way back to the client, implemented once per codec.
// Begin is called at most once; Write, Flush and Finish only after Begin.
type Exchange interface {
	// Body is the request body, or nil if there is none.
	Body() BodySource
	// Inform sends a 1xx response other than 101.
	Inform(status int, h HeaderSeq) error
	// Begin sends the response head. size is the body length, -1 if unknown.
	Begin(status int, h HeaderSeq, size int64) error
	// Write sends body bytes; they may be buffered until Flush or Finish.
	Write(p []byte) (int, error)
	Flush() error
	// Finish ends the response, with trailers if there are any (nil: none).
	Finish(trailers HeaderSeq) error
	// Abort ends the exchange visibly broken: connection closed or stream reset.
	Abort(err error)
	// Tunnel sends a 101 (or 200 for CONNECT) head and hands over the raw
	// client connection; buffered bytes already read come first. The caller
	// then owns the connection and must close it.
	Tunnel(status int, h HeaderSeq) (net.Conn, error)
}
