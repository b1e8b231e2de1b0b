package upstream

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"postern/internal/exchange"
)

// hopByHop are fields that end at this hop (RFC 9110 §7.6.1), and those that
// are made anew from what they say: Host, lengths, Expect, Trailer.
var hopByHop = map[string]bool{
	"connection":          true,
	"keep-alive":          true,
	"proxy-connection":    true,
	"proxy-authenticate":  true,
	"proxy-authorization": true,
	"te":                  true,
	"trailer":             true,
	"transfer-encoding":   true,
	"upgrade":             true,
	"http2-settings":      true,
	"content-length":      true,
	"host":                true,
	"expect":              true,
}

// outgoing is a request made from a View.
type outgoing struct {
	req     *http.Request
	body    *requestBody // nil without one
	upgrade string       // protocol asked for, in lower case
	key     string       // Sec-WebSocket-Key that we made for an extended CONNECT
}

// newRequest builds what is sent: the judged path and the raw query as they
// are, the client's fields without hop-by-hop ones, and edits applied in the
// order that exchange.HeaderEdits states.
func newRequest(ctx context.Context, ep *endpoint, edits *exchange.HeaderEdits, v exchange.View, x exchange.Exchange, o *Options) (*outgoing, error) {
	out := &outgoing{}
	method := v.Method()
	upgrade, err := wantedUpgrade(v, o.Upgrades)
	if err != nil {
		return nil, err
	}
	out.upgrade = upgrade
	if method == http.MethodConnect {
		if v.Protocol() == "" || upgrade == "" {
			return nil, &Error{Kind: ErrBadRequest, Detail: "CONNECT needs a tunnel route"}
		}
		method = http.MethodGet // RFC 8441 §5: to HTTP/1.1 it is an upgrade
	}

	u := &url.URL{Scheme: ep.scheme, Host: ep.addr}
	target, query, hasQuery := edits.Path, edits.RawQuery, edits.HasQuery
	if target == "" {
		target, query, hasQuery = v.Path(), v.RawQuery(), v.HasQuery()
	}
	if err := setTarget(u, method, target, query, hasQuery); err != nil {
		return nil, err
	}
	req := (&http.Request{
		Method:     method,
		URL:        u,
		Host:       edits.Host,
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
		Header:     make(http.Header, 16),
	}).WithContext(ctx)
	if req.Host == "" {
		req.Host = ep.host
	}
	out.req = req

	h := headerWriter{h: req.Header}
	connection := connectionNames(v)
	trailersWanted, expect := false, false
	for name, value := range v.Headers() {
		lower := strings.ToLower(name)
		if hopByHop[lower] || connection[lower] || strings.HasPrefix(lower, ":") {
			switch lower {
			case "te":
				trailersWanted = trailersWanted || httpguts.HeaderValuesContainsToken([]string{value}, "trailers")
			case "expect":
				expect = expect || strings.EqualFold(value, "100-continue")
			}
			continue
		}
		if edits.Strip.Has(name) {
			continue
		}
		if lower == "cookie" && edits.Cookie != nil {
			if value = edits.Cookie(value); value == "" {
				continue
			}
		}
		h.add(name, value)
	}
	for _, f := range edits.Set {
		if !hopByHop[strings.ToLower(f.Name)] {
			h.set(f.Name, f.Value)
		}
	}
	for _, f := range edits.Add {
		if !hopByHop[strings.ToLower(f.Name)] {
			h.add(f.Name, f.Value)
		}
	}
	if edits.FinalRemove != nil {
		for name := range req.Header {
			if edits.FinalRemove.Has(name) {
				delete(req.Header, name)
			}
		}
	}

	if size := v.BodySize(); size != 0 && upgrade == "" {
		out.body = newRequestBody(x.Body())
		req.ContentLength = size
		if size < 0 && v.Proto() != exchange.HTTP2 && v.Proto() != exchange.HTTP3 {
			req.TransferEncoding = []string{"chunked"} // do not wait to see whether it is empty
		}
		req.Body = out.body
		req.GetBody = out.body.again
		if expect {
			out.body.expect = true
			req.Header["Expect"] = []string{"100-continue"}
		}
		if size < 0 {
			out.body.trailers = trailerNames(v, edits)
			req.Trailer = out.body.trailers
		}
	}
	if trailersWanted {
		req.Header["Te"] = []string{"trailers"} // gRPC insists
	}
	if upgrade != "" {
		req.Header["Connection"] = []string{"Upgrade"}
		req.Header["Upgrade"] = []string{upgrade}
		if v.Protocol() != "" {
			raw := make([]byte, 16)
			rand.Read(raw)
			out.key = base64.StdEncoding.EncodeToString(raw)
			req.Header["Sec-Websocket-Key"] = []string{out.key}
		}
	}
	// Transport would send a POST again that has one of these, in this
	// spelling, on the client's word that the upstream understands it.
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if values, ok := req.Header[name]; ok {
			delete(req.Header, name)
			req.Header[strings.ToLower(name)] = values
		}
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // else Transport says its own name
	}
	for name, values := range req.Header {
		for _, value := range values {
			if !exchange.IsToken(name) || !exchange.IsFieldValue(value) {
				return nil, &Error{Kind: ErrBadRequest, Detail: "a request header holds characters that may not be forwarded"}
			}
		}
	}
	return out, nil
}

// setTarget makes Transport write target and query byte for byte.
func setTarget(u *url.URL, method, target, query string, hasQuery bool) error {
	if target != "*" || method != http.MethodOptions {
		if !strings.HasPrefix(target, "/") {
			return &Error{Kind: ErrBadRequest, Detail: "the path to forward does not begin with a slash; check the rewrite settings of the route"}
		}
	}
	for i := 0; i < len(target); i++ {
		if c := target[i]; c <= ' ' || c == 0x7F || c == '#' || c == '?' {
			return &Error{Kind: ErrBadRequest, Detail: "the path to forward holds a character that may not stand in a path; check the rewrite settings of the route"}
		}
	}
	for i := 0; i < len(query); i++ {
		if c := query[i]; c <= ' ' || c == 0x7F || c == '#' {
			return &Error{Kind: ErrBadRequest, Detail: "the query holds a character that may not stand in a query"}
		}
	}
	u.RawQuery, u.ForceQuery = query, hasQuery
	if !strings.HasPrefix(target, "//") {
		u.Opaque = target
		return nil
	}
	// Opaque with two slashes would be written as an absolute URL.
	path, err := url.PathUnescape(target)
	if err != nil {
		return &Error{Kind: ErrBadRequest, Detail: "the path to forward holds a broken escape", Err: err}
	}
	u.Path, u.RawPath = path, target
	if u.EscapedPath() != target {
		return &Error{Kind: ErrBadRequest, Detail: "a path that begins with two slashes holds characters that cannot be forwarded unchanged"}
	}
	return nil
}

// wantedUpgrade gives the protocol that the request asks for and the route
// allows, or "" for an ordinary request.
func wantedUpgrade(v exchange.View, allowed []string) (string, error) {
	if p := v.Protocol(); p != "" {
		if containsFold(allowed, p) {
			return strings.ToLower(p), nil
		}
		return "", &Error{Kind: ErrUpgradeRefused, Detail: "extended CONNECT for a protocol that the route does not allow; set allow_websockets or allow_upgrades"}
	}
	if v.Proto() != exchange.HTTP11 || v.Header("Upgrade") == "" {
		return "", nil
	}
	asked := false
	for value := range v.Values("Connection") {
		asked = asked || httpguts.HeaderValuesContainsToken([]string{value}, "upgrade")
	}
	if !asked {
		return "", nil
	}
	refused := false
	for value := range v.Values("Upgrade") {
		for _, p := range strings.Split(value, ",") {
			p = strings.ToLower(strings.TrimSpace(p))
			if containsFold(allowed, p) {
				return p, nil
			}
			// Clients offer h2c with any first request; not taking it is normal.
			refused = refused || p != "" && p != "h2c"
		}
	}
	if refused {
		return "", &Error{Kind: ErrUpgradeRefused, Detail: "the request asks to upgrade to a protocol that the route does not allow; set allow_websockets, allow_spdy or allow_upgrades"}
	}
	return "", nil
}

func containsFold(list []string, s string) bool {
	for _, item := range list {
		if strings.EqualFold(item, s) {
			return true
		}
	}
	return false
}

// connectionNames are the fields that the client's Connection header names,
// in lower case. They are dropped from what the client sent, before ours are
// set: a client cannot name ours away.
func connectionNames(v exchange.View) map[string]bool {
	var names map[string]bool
	for value := range v.Values("Connection") {
		for _, name := range strings.Split(value, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" && name != "close" && name != "keep-alive" && name != "upgrade" {
				if names == nil {
					names = map[string]bool{}
				}
				names[name] = true
			}
		}
	}
	return names
}

// trailerNames are the trailers that the client announced and may send on.
func trailerNames(v exchange.View, edits *exchange.HeaderEdits) http.Header {
	h := http.Header{}
	for value := range v.Values("Trailer") {
		for _, name := range strings.Split(value, ",") {
			if name = strings.TrimSpace(name); trailerAllowed(name, edits) {
				h[http.CanonicalHeaderKey(name)] = nil
			}
		}
	}
	return h
}

// trailerAllowed reports whether a trailer of the client may go upstream: not
// what frames, routes or authenticates, and nothing that is stripped from or
// set in the head.
func trailerAllowed(name string, edits *exchange.HeaderEdits) bool {
	if !exchange.IsToken(name) || !httpguts.ValidTrailerHeader(http.CanonicalHeaderKey(name)) || hopByHop[strings.ToLower(name)] {
		return false
	}
	switch strings.ToLower(name) {
	case "cookie", "authorization", "set-cookie":
		return false
	}
	if edits.Strip.Has(name) || edits.FinalRemove.Has(name) {
		return false
	}
	folded := exchange.FoldName(name)
	for _, f := range edits.Set {
		if exchange.FoldName(f.Name) == folded {
			return false
		}
	}
	for _, f := range edits.Add {
		if exchange.FoldName(f.Name) == folded {
			return false
		}
	}
	return true
}

// headerWriter fills a header map with names as written, one spelling each:
// Transport writes map keys as they are.
type headerWriter struct{ h http.Header }

func (w headerWriter) key(name string) string {
	if _, ok := w.h[name]; ok {
		return name
	}
	if strings.EqualFold(name, "User-Agent") {
		return "User-Agent" // Transport looks for this spelling
	}
	for have := range w.h {
		if len(have) == len(name) && strings.EqualFold(have, name) {
			return have
		}
	}
	return name
}

func (w headerWriter) add(name, value string) {
	k := w.key(name)
	w.h[k] = append(w.h[k], value)
}

// set replaces a field in every spelling that an upstream could take for it
// ("X_Forwarded_For", where such names pass).
func (w headerWriter) set(name, value string) {
	for have := range w.h {
		if exchange.SameName(have, name) {
			delete(w.h, have)
		}
	}
	w.h[w.key(name)] = []string{value}
}

var errBodyStopped = errors.New("the exchange has ended")
