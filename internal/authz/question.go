package authz

import (
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"postern/internal/exchange"
)

// Question is a request written down, for Explain: what a client would send,
// without a credential.
type Question struct {
	Method  string // "": GET
	URL     string // https://host/path?query
	IP      netip.Addr
	Headers []exchange.Field
	// Certificate is the client certificate presented, nil: none. Whether it is
	// trusted is for the asker to say, in the View's Peer.
	Certificate *x509.Certificate
	RequestID   string
	// Paths are the path options of the installation.
	Paths exchange.PathOptions
}

// View brings the question into the canonical form in which requests are
// judged. The error says what no server would accept.
func (q *Question) View() (exchange.View, error) {
	scheme, rest, ok := strings.Cut(q.URL, "://")
	if !ok {
		scheme, rest = "https", q.URL
	}
	if scheme != "https" && scheme != "http" {
		return nil, fmt.Errorf("%q is not an address of an HTTP request; write https://host/path", q.URL)
	}
	rest, _, _ = strings.Cut(rest, "#")
	at := strings.IndexAny(rest, "/?")
	if at < 0 {
		at = len(rest)
	}
	host, target := rest[:at], rest[at:]
	path, query, hasQuery := strings.Cut(target, "?")
	v := &askedView{q: q, scheme: scheme, query: query, hasQuery: hasQuery, method: q.Method}
	if v.method == "" {
		v.method = http.MethodGet
	}
	var err error
	if v.authority, v.hostname, err = exchange.CanonicalAuthority(host); err != nil {
		return nil, fmt.Errorf("%q: %w; write https://host/path", q.URL, err)
	}
	if path == "" {
		path = "/"
	}
	var unescaped bool
	if v.path, unescaped, err = exchange.CanonicalPath(path, q.Paths); err == nil && unescaped {
		err = errors.New("the client would be redirected to " + v.path + "; ask about that")
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", q.URL, err)
	}
	v.peer = exchange.Peer{ClientIP: q.IP, Direct: netip.AddrPortFrom(q.IP, 0), Secure: scheme == "https"}
	if q.Certificate != nil {
		v.peer.Certificates = []*x509.Certificate{q.Certificate}
	}
	return v, nil
}

// askedView shows a question as a request.
type askedView struct {
	q                                                *Question
	method, scheme, authority, hostname, path, query string
	hasQuery                                         bool
	peer                                             exchange.Peer
}

func (v *askedView) Method() string                     { return v.method }
func (v *askedView) Scheme() string                     { return v.scheme }
func (v *askedView) Proto() exchange.Proto              { return exchange.HTTP11 }
func (v *askedView) Protocol() string                   { return "" }
func (v *askedView) Authority() string                  { return v.authority }
func (v *askedView) Hostname() string                   { return v.hostname }
func (v *askedView) RawTarget() string                  { return v.path }
func (v *askedView) Path() string                       { return v.path }
func (v *askedView) RawQuery() string                   { return v.query }
func (v *askedView) HasQuery() bool                     { return v.hasQuery }
func (v *askedView) BodySize() int64                    { return 0 }
func (v *askedView) RequestID() string                  { return v.q.RequestID }
func (v *askedView) Peer() *exchange.Peer               { return &v.peer }
func (v *askedView) Headers() iter.Seq2[string, string] { return exchange.Fields(v.q.Headers) }

func (v *askedView) Header(name string) string {
	if i := slices.IndexFunc(v.q.Headers, func(f exchange.Field) bool { return strings.EqualFold(f.Name, name) }); i >= 0 {
		return v.q.Headers[i].Value
	}
	return ""
}

func (v *askedView) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, f := range v.q.Headers {
			if strings.EqualFold(f.Name, name) && !yield(f.Value) {
				return
			}
		}
	}
}
