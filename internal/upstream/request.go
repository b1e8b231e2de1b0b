package upstream

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

// outgoing is a request as it goes upstream.
type outgoing struct {
	ep    *endpoint
	edits *exchange.HeaderEdits
	v     exchange.View

	method        string
	target, query string // the judged path, rewritten, and the raw query
	hasQuery      bool
	host          string
	size          int64  // of the body; 0 none, -1 unknown
	upgrade       string // protocol asked for, in lower case
	key           string // Sec-WebSocket-Key that we made for an extended CONNECT
	trailers      bool   // the client takes trailers (TE)
	expect        bool   // the client waits for 100 (Continue)
}

// newRequest decides what is sent: the judged path and the raw query as they
// are, the client's fields without hop-by-hop ones, and edits applied in the
// order that exchange.HeaderEdits states.
func newRequest(ep *endpoint, edits *exchange.HeaderEdits, v exchange.View, o *Options) (*outgoing, error) {
	upgrade, err := wantedUpgrade(v, o.Upgrades)
	if err != nil {
		return nil, err
	}
	out := &outgoing{ep: ep, edits: edits, v: v, method: v.Method(), upgrade: upgrade, host: edits.Host}
	if out.method == http.MethodConnect {
		if v.Protocol() == "" || upgrade == "" {
			return nil, &Error{Kind: ErrBadRequest, Detail: "CONNECT needs a tunnel route"}
		}
		out.method = http.MethodGet // RFC 8441 §5: to HTTP/1.1 it is an upgrade
	}
	if out.host == "" {
		out.host = ep.host
	}
	if out.target, out.query, out.hasQuery = edits.Path, edits.RawQuery, edits.HasQuery; out.target == "" {
		out.target, out.query, out.hasQuery = v.Path(), v.RawQuery(), v.HasQuery()
	}
	if err := out.check(); err != nil {
		return nil, err
	}
	for value := range v.Values("Te") {
		out.trailers = out.trailers || httpguts.HeaderValuesContainsToken([]string{value}, "trailers")
	}
	if upgrade == "" {
		if out.size = v.BodySize(); out.size != 0 {
			for value := range v.Values("Expect") {
				out.expect = out.expect || strings.EqualFold(value, "100-continue")
			}
		}
	} else if v.Protocol() != "" {
		raw := make([]byte, 16)
		rand.Read(raw)
		out.key = base64.StdEncoding.EncodeToString(raw)
	}
	return out, nil
}

// check refuses what would not arrive as it was judged.
func (out *outgoing) check() error {
	if err := checkTarget(out.method, out.target, out.query); err != nil {
		return err
	}
	if !exchange.IsToken(out.method) || !exchange.IsFieldValue(out.host) || strings.ContainsAny(out.host, " \t") {
		return &Error{Kind: ErrBadRequest, Detail: "the method or the host to forward holds characters that may not stand there"}
	}
	return nil
}

func checkTarget(method, target, query string) error {
	if (target != "*" || method != http.MethodOptions) && !strings.HasPrefix(target, "/") {
		return &Error{Kind: ErrBadRequest, Detail: "the path to forward does not begin with a slash; check the rewrite settings of the route"}
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
	return nil
}

var errFieldBytes = &Error{Kind: ErrBadRequest, Detail: "a request header holds characters that may not be forwarded"}

// fields gives add the request's fields in order: what the client sent, without
// hop-by-hop fields and what edits take away, then what edits set and add.
// Names keep their spelling. Host, lengths, TE, Expect and Upgrade are not
// among them.
func (out *outgoing) fields(add func(name, value string)) error {
	edits := out.edits
	named := connectionNames(out.v)
	for name, value := range out.v.Headers() {
		if name == "" || name[0] == ':' || http1.HopByHop(name) || edits.Strip.Has(name) || edits.FinalRemove.Has(name) ||
			named != nil && named[strings.ToLower(name)] || isSet(edits.Set, name) {
			continue
		}
		if edits.Cookie != nil && len(name) == 6 && strings.EqualFold(name, "cookie") {
			if value = edits.Cookie(value); value == "" {
				continue
			}
		}
		if out.key != "" && strings.EqualFold(name, "Sec-Websocket-Key") {
			continue
		}
		if !exchange.IsToken(name) || !exchange.IsFieldValue(value) {
			return errFieldBytes
		}
		add(name, value)
	}
	for i, list := range [2][]exchange.Field{edits.Set, edits.Add} {
		for j, f := range list {
			// Of two fields that are set, the later one counts.
			if http1.HopByHop(f.Name) || edits.FinalRemove.Has(f.Name) || i == 0 && isSet(list[j+1:], f.Name) {
				continue
			}
			if !exchange.IsToken(f.Name) || !exchange.IsFieldValue(f.Value) {
				return errFieldBytes
			}
			add(f.Name, f.Value)
		}
	}
	return nil
}

// isSet reports whether a list holds a field of that name, in any spelling
// that an upstream could take for it ("X_Forwarded_For", where such names
// pass).
func isSet(list []exchange.Field, name string) bool {
	for i := range list {
		if exchange.SameName(list[i].Name, name) {
			return true
		}
	}
	return false
}

// appendHead writes the head of an HTTP/1.1 request.
func (out *outgoing) appendHead(b []byte) ([]byte, error) {
	b = append(b, out.method...)
	b = append(b, ' ')
	b = append(b, out.target...)
	if out.hasQuery {
		b = append(b, '?')
		b = append(b, out.query...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, out.host...)
	b = append(b, "\r\n"...)
	field := func(name, value string) {
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	}
	if err := out.fields(field); err != nil {
		return nil, err
	}
	if out.trailers {
		field("TE", "trailers") // gRPC insists
	}
	switch {
	case out.size > 0:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, out.size, 10)
		b = append(b, "\r\n"...)
	case out.size < 0:
		field("Transfer-Encoding", "chunked")
		if names := out.announced(); len(names) > 0 {
			field("Trailer", strings.Join(names, ", "))
		}
	case out.upgrade == "" && (meansBody(out.method) || out.v.Header("Content-Length") != ""):
		field("Content-Length", "0")
	}
	if out.expect {
		field("Expect", "100-continue")
	}
	if out.upgrade != "" {
		field("Connection", "Upgrade")
		field("Upgrade", out.upgrade)
		if out.key != "" {
			field("Sec-WebSocket-Key", out.key)
		}
	}
	return append(b, "\r\n"...), nil
}

// meansBody: the method is for sending something, so that its lack is said
// (RFC 9110 §8.6); some servers answer 411 otherwise.
func meansBody(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// forTransport makes what Transport sends. body is nil without one.
func (out *outgoing) forTransport(ctx context.Context, body *requestBody) (*http.Request, error) {
	u := &url.URL{Scheme: out.ep.scheme, Host: out.ep.addr}
	if err := setTarget(u, out.target, out.query, out.hasQuery); err != nil {
		return nil, err
	}
	req := (&http.Request{
		Method: out.method, URL: u, Host: out.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, 16),
	}).WithContext(ctx)
	h := headerWriter{h: req.Header}
	if err := out.fields(h.add); err != nil {
		return nil, err
	}
	if body != nil {
		req.ContentLength = out.size
		req.Body = body
		req.GetBody = body.again
		if out.expect {
			body.expect = true
			req.Header["Expect"] = []string{"100-continue"}
		}
		if out.size < 0 {
			body.trailers = http.Header{}
			for _, name := range out.announced() {
				body.trailers[http.CanonicalHeaderKey(name)] = nil
			}
			req.Trailer = body.trailers
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
	if out.trailers {
		req.Header["Te"] = []string{"trailers"} // gRPC insists
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // else Transport says its own name
	}
	return req, nil
}

// setTarget makes Transport write target and query byte for byte.
func setTarget(u *url.URL, target, query string, hasQuery bool) error {
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

// announced are the trailers that the client announced and may send on.
func (out *outgoing) announced() []string {
	var names []string
	for value := range out.v.Values("Trailer") {
		for _, name := range strings.Split(value, ",") {
			if name = strings.TrimSpace(name); trailerAllowed(name, out.edits) {
				names = append(names, name)
			}
		}
	}
	return names
}

// trailerAllowed reports whether a trailer of the client may go upstream: not
// what frames, routes or authenticates, and nothing that is stripped from or
// set in the head.
func trailerAllowed(name string, edits *exchange.HeaderEdits) bool {
	if !exchange.IsToken(name) || !httpguts.ValidTrailerHeader(http.CanonicalHeaderKey(name)) || http1.HopByHop(name) {
		return false
	}
	switch strings.ToLower(name) {
	case "cookie", "authorization", "set-cookie":
		return false
	}
	if edits.Strip.Has(name) || edits.FinalRemove.Has(name) {
		return false
	}
	return !isSet(edits.Set, name) && !isSet(edits.Add, name)
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

var errBodyStopped = errors.New("the exchange has ended")
