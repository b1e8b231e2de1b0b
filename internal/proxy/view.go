package proxy

import (
	"iter"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"postern/internal/exchange"
)

// request shows an *http.Request as an exchange.View: the adapter of the
// reference codecs. It is the only place that reads the request's head.
type request struct {
	r        *http.Request
	received *ReceivedHead // HTTP/1.1: the head as it came

	authority, hostname string
	path                string
	rawQuery            string
	hasQuery            bool
	scheme              string
	protocol            string
	id                  string
	peer                exchange.Peer

	// dropUnderscores hides fields whose names hold "_".
	dropUnderscores bool
	// trailers are the announced trailer fields, sorted. Their values come
	// with the end of the body, into a map that others read then.
	trailers []string
}

// A badRequest is a request that cannot be brought to its canonical form.
type badRequest struct {
	status  int
	details string // response-code-details of the access log
	message string // for the visitor; holds nothing of the request
}

func (b *badRequest) Error() string { return b.message }

// newRequest makes the canonical view of r. The request id and the client
// address are filled in even if the request is refused, so that the refusal
// can be logged and shown. redirect says that the client is to be sent to the
// canonical path (unescape_and_redirect).
func newRequest(r *http.Request, s *Settings) (v *request, redirect bool, err *badRequest) {
	v = &request{r: r, scheme: "http", protocol: extendedProtocol(r), trailers: slices.Sorted(maps.Keys(r.Trailer))}
	info := ConnInfoFrom(r.Context())
	v.received = info.TakeHead(r)
	tls := r.TLS
	if info != nil {
		v.peer.Direct = peerOf(r, info)
		if tls == nil {
			tls = info.TLS
		}
	} else if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		v.peer.Direct = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	if tls != nil {
		v.scheme = "https"
		v.peer.Secure = true
		v.peer.ServerName = strings.ToLower(strings.TrimSuffix(tls.ServerName, "."))
		v.peer.Certificates = tls.PeerCertificates
	}
	v.received.dropUnderscoresFrom(s)
	v.dropUnderscores = s.Underscores == DropUnderscores

	trusted, addrErr := s.clientAddress(v)
	v.id = s.requestID(v)
	if trusted {
		// The last value is the one our trusted neighbour wrote.
		p := v.r.Header.Values("X-Forwarded-Proto")
		if n := len(p); n > 0 && (p[n-1] == "https" || p[n-1] == "http") {
			v.scheme = p[n-1]
			v.peer.Secure = v.peer.Secure || p[n-1] == "https"
		}
	}
	if addrErr != nil {
		return v, false, addrErr
	}

	var perr error
	if v.authority, v.hostname, perr = exchange.CanonicalAuthority(r.Host); perr != nil {
		return v, false, &badRequest{http.StatusBadRequest, "bad_host_header", perr.Error()}
	}
	raw, query, hasQuery := splitTarget(r)
	v.rawQuery, v.hasQuery = query, hasQuery
	if strings.IndexByte(query, '#') >= 0 {
		return v, false, &badRequest{http.StatusBadRequest, "path_normalization_failed", "query holds a raw '#'"}
	}
	if r.Method == http.MethodConnect && v.protocol == "" {
		v.path = "" // authority-form has none
	} else if v.path, redirect, perr = exchange.CanonicalPath(raw, s.Paths); perr != nil {
		return v, false, &badRequest{http.StatusBadRequest, "path_normalization_failed", perr.Error()}
	}
	if s.Underscores == RejectUnderscores && v.hasUnderscores() {
		return v, false, &badRequest{http.StatusBadRequest, "unexpected_underscore",
			"a header name holds an underscore"}
	}
	return v, redirect, nil
}

// splitTarget gives path and query of the request target as sent. An
// absolute-form target (RFC 9112 §3.2.2) loses scheme and authority, which
// net/http has put into r.Host.
func splitTarget(r *http.Request) (path, query string, hasQuery bool) {
	target := r.RequestURI
	if target == "" && r.URL != nil {
		target = r.URL.RequestURI() // made in a test, not received
	}
	if target != "" && target[0] != '/' && r.ProtoMajor < 2 { // :path has no such form (RFC 9113 §8.3.1)
		if i := strings.Index(target, "://"); i > 0 {
			target = target[i+3:]
			if i := strings.IndexAny(target, "/?"); i >= 0 {
				target = target[i:]
			} else {
				target = "/"
			}
			if target[0] == '?' {
				target = "/" + target
			}
		}
	}
	path, query, hasQuery = strings.Cut(target, "?")
	return path, query, hasQuery
}

// extendedProtocol is the :protocol of an extended CONNECT (RFC 8441), which
// the HTTP/2 of net/http shows as a header and quic-go as Proto.
func extendedProtocol(r *http.Request) string {
	if r.Method != http.MethodConnect {
		return ""
	}
	if r.ProtoMajor == 3 && r.Proto != "HTTP/3.0" {
		return r.Proto
	}
	return r.Header.Get(":protocol")
}

func (v *request) hasUnderscores() bool {
	for name := range v.r.Header {
		if strings.IndexByte(name, '_') >= 0 {
			return true
		}
	}
	for _, name := range v.trailers {
		if strings.IndexByte(name, '_') >= 0 {
			return true
		}
	}
	return false
}

// dropUnderscoresFrom leaves out, from a received head, what Settings drop.
func (h *ReceivedHead) dropUnderscoresFrom(s *Settings) {
	if h == nil || s.Underscores != DropUnderscores {
		return
	}
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if strings.IndexByte(f.Name, '_') < 0 {
			kept = append(kept, f)
		}
	}
	h.Fields = kept
}

// Method is GET for an extended CONNECT: that is what it means (RFC 8441 §5),
// so that a rule for WebSockets holds over every HTTP version.
func (v *request) Method() string {
	if v.protocol != "" {
		return http.MethodGet
	}
	return v.r.Method
}

func (v *request) Scheme() string       { return v.scheme }
func (v *request) Protocol() string     { return v.protocol }
func (v *request) Authority() string    { return v.authority }
func (v *request) Hostname() string     { return v.hostname }
func (v *request) RawTarget() string    { return v.r.RequestURI }
func (v *request) Path() string         { return v.path }
func (v *request) RawQuery() string     { return v.rawQuery }
func (v *request) HasQuery() bool       { return v.hasQuery }
func (v *request) RequestID() string    { return v.id }
func (v *request) Peer() *exchange.Peer { return &v.peer }

func (v *request) Proto() exchange.Proto {
	switch {
	case v.r.ProtoMajor == 2:
		return exchange.HTTP2
	case v.r.ProtoMajor == 3:
		return exchange.HTTP3
	case v.r.ProtoMinor == 0:
		return exchange.HTTP10
	}
	return exchange.HTTP11
}

func (v *request) BodySize() int64 {
	if v.r.Body == nil || v.r.Body == http.NoBody || v.r.Method == http.MethodConnect {
		return 0
	}
	return v.r.ContentLength
}

func (v *request) hides(name string) bool {
	return v.dropUnderscores && strings.IndexByte(name, '_') >= 0
}

func (v *request) Header(name string) string {
	if v.hides(name) {
		return ""
	}
	if strings.EqualFold(name, "Host") {
		return v.authority
	}
	if strings.EqualFold(name, "Trailer") {
		return v.trailerNames()
	}
	return v.r.Header.Get(name)
}

// trailerNames is the Trailer header, which net/http turns into a map.
func (v *request) trailerNames() string {
	return strings.Join(slices.DeleteFunc(slices.Clone(v.trailers), v.hides), ", ")
}

func (v *request) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if v.hides(name) {
			return
		}
		if strings.EqualFold(name, "Host") {
			yield(v.authority)
			return
		}
		if strings.EqualFold(name, "Trailer") {
			if t := v.trailerNames(); t != "" {
				yield(t)
			}
			return
		}
		for _, value := range v.r.Header.Values(name) {
			if !yield(value) {
				return
			}
		}
	}
}

// Headers yields every field but Host and the pseudo-fields, in the order
// received where the connection was HTTP/1.1 behind the guard.
func (v *request) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if v.received != nil {
			for _, f := range v.received.Fields {
				if strings.EqualFold(f.Name, "Host") {
					continue
				}
				if !yield(f.Name, f.Value) {
					return
				}
			}
			return
		}
		for name, values := range v.r.Header {
			if name == "" || name[0] == ':' || v.hides(name) {
				continue
			}
			for _, value := range values {
				if !yield(name, value) {
					return
				}
			}
		}
	}
}

// joined gives all values of a list header as one, "" if there are none.
func joined(v exchange.View, name string) string {
	var all string
	for value := range v.Values(name) {
		if all == "" {
			all = value
			continue
		}
		all += ", " + value
	}
	return all
}

// hasToken reports whether a comma-separated header holds token, in any case.
func hasToken(v exchange.View, name, token string) bool {
	for value := range v.Values(name) {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.TrimSpace(part), token) {
				return true
			}
		}
	}
	return false
}
