package proxy

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"postern/internal/authz"
	"postern/internal/exchange"
	"postern/internal/session"
)

// requestRules are the header rules of one route, compiled.
type requestRules struct {
	set    []setHeader
	remove *exchange.NameSet // applied last; wins over set
	bare   *exchange.NameSet // the same for a preflight, which carries no credential
}

type setHeader struct {
	name  string
	value *Template
}

// unsettable are the fields that frame a message or belong to the connection;
// set_request_headers has no say in them.
var unsettable = exchange.NewNameSet("Host", "Connection", "Keep-Alive", "Proxy-Connection",
	"Transfer-Encoding", "Content-Length", "Upgrade", "TE", "Trailer", "HTTP2-Settings", "Expect")

// credentialHeaders never go up with a CORS preflight (decision 6).
var credentialHeaders = []string{"Authorization", "Proxy-Authorization", "Cookie", "X-Pomerium-*",
	"X-Serverless-Authorization", "Impersonate-*"}

// newRequestRules compiles set_request_headers and remove_request_headers.
// withhold are names that must not reach this upstream even if the route sets
// them: the identity headers of a route that does not pass them (§6 trap 9).
func newRequestRules(set map[string]string, remove, withhold []string) (requestRules, error) {
	var rules requestRules
	for name, value := range set {
		if strings.HasPrefix(name, ":") || unsettable.Has(name) {
			continue
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return rules, fmt.Errorf("set_request_headers: %q is not a header name", name)
		}
		if !validHeaderValue(value) {
			return rules, fmt.Errorf("set_request_headers: the value of %s holds a control character; remove it", name)
		}
		rules.set = append(rules.set, setHeader{name, ParseTemplate(value)})
	}
	slices.SortFunc(rules.set, func(a, b setHeader) int { return strings.Compare(a.name, b.name) })
	for _, name := range remove {
		if !httpguts.ValidHeaderFieldName(name) {
			return rules, fmt.Errorf("remove_request_headers: %q is not a header name", name)
		}
	}
	names := slices.Concat(plainNames(remove), withhold)
	rules.remove = exchange.NewNameSet(names...)
	rules.bare = exchange.NewNameSet(append(names, credentialHeaders...)...)
	return rules, nil
}

// plainNames keeps an operator's "X-*", a legal header name, from becoming a
// prefix.
func plainNames(names []string) []string {
	var plain []string
	for _, n := range names {
		if !strings.HasSuffix(n, "*") {
			plain = append(plain, n)
		}
	}
	return plain
}

// edit fills the Set, Add and removal parts of e for an allowed request.
func (r *requestRules) edit(e *exchange.HeaderEdits, v exchange.View, d *authz.Decision) error {
	e.Strip = d.Strip
	e.FinalRemove = r.remove
	if d.Bare {
		e.FinalRemove = r.bare
	} else {
		e.Add = append(e.Add, d.Identity...)
	}
	for i := range r.set {
		h := &r.set[i]
		if d.Bare && h.value.Credentials() {
			continue
		}
		if holdsName(d.Identity, h.name) {
			continue // the signed identity is not for a route to overwrite
		}
		value, err := h.value.Expand(v, d)
		if err != nil {
			return err
		}
		e.Set = append(e.Set, exchange.Field{Name: h.name, Value: value})
	}
	return nil
}

func holdsName(fields []exchange.Field, name string) bool {
	for i := range fields {
		if strings.EqualFold(fields[i].Name, name) {
			return true
		}
	}
	return false
}

// ourCredential reports whether an Authorization value is meant for us and
// must not reach an upstream: "Pomerium ..." and "Bearer Pomerium-...".
func ourCredential(value string) bool {
	scheme, rest, _ := strings.Cut(strings.TrimLeft(value, " \t"), " ")
	if strings.EqualFold(scheme, "Pomerium") {
		return true
	}
	rest = strings.TrimLeft(rest, " \t")
	const mark = "Pomerium-"
	return strings.EqualFold(scheme, "Bearer") && len(rest) >= len(mark) && strings.EqualFold(rest[:len(mark)], mark)
}

// upward is the view of a request that goes to an upstream: what only we may
// say or see is gone, whatever else the header edits do.
type upward struct {
	exchange.View
	strip    *exchange.NameSet // besides HeaderEdits.Strip
	bare     bool
	query    string
	hasQuery bool
}

// alwaysStripped are never a client's to send; the door writes them itself
// where they apply.
var alwaysStripped = exchange.NewNameSet("X-Forwarded-Host", "X-Pomerium-*", "X-Envoy-*")

// bareStripped are dropped from a preflight besides.
var bareStripped = exchange.NewNameSet(append(slices.Clone(credentialHeaders), "X-Forwarded-Host", "X-Envoy-*",
	"Upgrade", // a tunnel would be a body without end, opened by nobody
	"Content-Length", "Transfer-Encoding", "Content-Type", "Content-Encoding", "Expect", "Trailer")...)

func newUpward(v exchange.View, d *authz.Decision) *upward {
	u := &upward{View: v, strip: alwaysStripped, bare: d.Bare, query: v.RawQuery(), hasQuery: v.HasQuery()}
	if d.Bare {
		u.strip = bareStripped
	}
	if d.StripQuery || strings.Contains(u.query, "pomerium_session") || strings.IndexByte(u.query, '%') >= 0 {
		if stripped := authz.StripSessionQuery(u.query); stripped != u.query {
			u.query, u.hasQuery = stripped, stripped != ""
		}
	}
	return u
}

func (u *upward) keeps(name, value string) bool {
	return !u.strip.Has(name) &&
		!(len(name) == len("Authorization") && strings.EqualFold(name, "Authorization") && ourCredential(value))
}

func (u *upward) RawQuery() string { return u.query }
func (u *upward) HasQuery() bool   { return u.hasQuery }

func (u *upward) BodySize() int64 {
	if u.bare {
		return 0
	}
	return u.View.BodySize()
}

func (u *upward) Header(name string) string {
	for v := range u.Values(name) {
		return v
	}
	return ""
}

func (u *upward) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for value := range u.View.Values(name) {
			if u.keeps(name, value) && !yield(value) {
				return
			}
		}
	}
}

func (u *upward) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for name, value := range u.View.Headers() {
			if u.keeps(name, value) && !yield(name, value) {
				return
			}
		}
	}
}

// stripCookies takes our cookies out of a Cookie header, by exact name, and
// leaves the others byte for byte.
func stripCookies(names session.CookieNames) func(string) string {
	return func(value string) string {
		found := false
		for part := range strings.SplitSeq(value, ";") {
			found = found || ourCookie(names, part)
		}
		if !found {
			return value
		}
		var b strings.Builder
		for part := range strings.SplitSeq(value, ";") {
			if ourCookie(names, part) {
				continue
			}
			if b.Len() > 0 {
				b.WriteByte(';')
			} else {
				part = strings.TrimLeft(part, " \t")
			}
			b.WriteString(part)
		}
		return strings.TrimSpace(b.String())
	}
}

// ourCookie reports whether a "name=value" pair is one of our cookies. A pair
// without name, "=value", is written back by browsers as its value alone, so
// that "=ours=x" would come back as "ours=x" (RFC 6265bis §5.7).
func ourCookie(names session.CookieNames, pair string) bool {
	pair, _, _ = strings.Cut(pair, ";")
	pair = strings.TrimLeft(pair, "= \t")
	name, _, _ := strings.Cut(pair, "=")
	return names.Ours(strings.TrimSpace(name))
}

// ResponseRules are what set_response_headers and rewrite_response_headers do
// to a response, compiled. A nil *ResponseRules does nothing.
type ResponseRules struct {
	set      []exchange.Field
	rewrites []RewriteResponseHeader
}

// NewResponseRules compiles the rules. A header named "disable" empties the
// set (configuration.md §2.12).
func NewResponseRules(set map[string]string, rewrites []RewriteResponseHeader) (*ResponseRules, error) {
	r := &ResponseRules{rewrites: rewrites}
	for name, value := range set {
		if strings.EqualFold(name, "disable") {
			r.set = nil
			break
		}
		if !httpguts.ValidHeaderFieldName(name) {
			return nil, fmt.Errorf("set_response_headers: %q is not a header name", name)
		}
		if !validHeaderValue(value) {
			return nil, fmt.Errorf("set_response_headers: the value of %s holds a control character; remove it", name)
		}
		r.set = append(r.set, exchange.Field{Name: name, Value: value})
	}
	for _, w := range rewrites {
		if !httpguts.ValidHeaderFieldName(w.Header) {
			return nil, fmt.Errorf("rewrite_response_headers: %q is not a header name", w.Header)
		}
		if !validHeaderValue(w.Value) {
			return nil, fmt.Errorf("rewrite_response_headers: the value for %s holds a control character; remove it", w.Header)
		}
	}
	slices.SortFunc(r.set, func(a, b exchange.Field) int { return strings.Compare(a.Name, b.Name) })
	return r, nil
}

// Fields are the headers that every response gets.
func (r *ResponseRules) Fields() []exchange.Field {
	if r == nil {
		return nil
	}
	return r.set
}

// appendTo appends the response fields h, edited, to dst: values rewritten,
// our cookies and whatever the rules set dropped, then what the rules set.
func (r *ResponseRules) appendTo(dst []exchange.Field, h exchange.HeaderSeq, cookies session.CookieNames) []exchange.Field {
	set := r.Fields()
	for name, value := range h {
		if holdsName(set, name) {
			continue
		}
		if len(name) == len("Set-Cookie") && strings.EqualFold(name, "Set-Cookie") && ourCookie(cookies, value) {
			continue
		}
		if r != nil {
			for i := range r.rewrites {
				w := &r.rewrites[i]
				if rest, ok := strings.CutPrefix(value, w.Prefix); ok && strings.EqualFold(name, w.Header) {
					value = w.Value + rest
					break
				}
			}
		}
		dst = append(dst, exchange.Field{Name: name, Value: value})
	}
	return append(dst, set...)
}

// validHeaderValue refuses what could end a header line or hide in one.
func validHeaderValue(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 0x20 && c != '\t') || c == 0x7F {
			return false
		}
	}
	return true
}
