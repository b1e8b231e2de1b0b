package authz

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/maypok86/otter/v2"

	"postern/internal/exchange"
	"postern/internal/route"
	"postern/internal/session"
)

// Names of the identity headers (wire-contract.md §4).
const (
	HeaderAssertion    = "X-Pomerium-Jwt-Assertion"
	HeaderAssertionFor = "X-Pomerium-Jwt-Assertion-For"
)

// assertionLife is how long an assertion is valid after it was issued, and
// maxReuse how long a signed one is handed out again at most (decision 5).
const (
	assertionLife = 300 * time.Second
	maxReuse      = 60 * time.Second
)

// assertionKey holds everything that a signed assertion depends on and is
// compared whole. The cache belongs to one Env, which adds signing key,
// settings and generation; who stands for the versions of session, user and
// directory records.
type assertionKey struct {
	who   *who
	route *route.Route
	host  string
}

// signed is an assertion with the headers that go with it.
type signed struct {
	jwt    string
	fields []exchange.Field // the assertion, then the claim headers
	at     time.Time
}

const maxAssertions = 16384

func newAssertionCache() *otter.Cache[assertionKey, *signed] {
	return otter.Must(&otter.Options[assertionKey, *signed]{MaximumSize: maxAssertions})
}

// claimHeader is one entry of jwt_claims_headers.
type claimHeader struct{ name, claim string }

// assertion gives the signed assertion for a caller on a route, from the cache
// where one is young enough.
func (env *Env) assertion(now time.Time, w *who, rt *route.Route, host string) (*signed, error) {
	return env.assertionUnder(now, w, env.settings(rt), rt, host)
}

func (env *Env) assertionUnder(now time.Time, w *who, set *routeSettings, rt *route.Route, host string) (*signed, error) {
	key := assertionKey{w, rt, host}
	if set.reuse > 0 {
		if s, ok := env.assertions.GetIfPresent(key); ok {
			if age := now.Sub(s.at); age >= 0 && age < set.reuse {
				return s, nil
			}
		}
	}
	claims := env.claims(w, set)
	payload := make(map[string]any, len(claims)+5)
	for k, v := range claims {
		payload[k] = v
	}
	iat := now.Unix()
	payload["iss"] = set.issuer(host)
	payload["aud"] = host
	payload["jti"] = uuid.NewString()
	payload["iat"] = iat
	payload["exp"] = iat + int64(assertionLife/time.Second)
	b, err := json.Marshal(payload)
	if err != nil {
		return nil, fmt.Errorf("the assertion cannot be encoded: %w", err)
	}
	jwt, err := env.signing[0].sign(b)
	if err != nil {
		return nil, err
	}
	s := &signed{jwt: jwt, at: now}
	s.fields = append(s.fields, exchange.Field{Name: HeaderAssertion, Value: jwt})
	for _, h := range env.claimHeaders {
		s.fields = append(s.fields, exchange.Field{Name: h.name, Value: claimText(payload, w, h.claim)})
	}
	if set.reuse > 0 {
		key.host = strings.Clone(host) // the view's strings are borrowed
		env.assertions.Set(key, s)
	}
	return s, nil
}

func (s *routeSettings) issuer(host string) string {
	if s.issuerURI {
		return "https://" + host + "/"
	}
	return host
}

// baseClaims are the claims that nothing can override (wire-contract.md §4.2).
var baseClaims = map[string]bool{
	"iss": true, "aud": true, "jti": true, "iat": true, "exp": true, "sub": true, "user": true,
	"email": true, "groups": true, "sid": true, "name": true,
}

// claims are those of the assertion, without iss, aud, jti, iat and exp.
func (env *Env) claims(w *who, set *routeSettings) map[string]any {
	groups, _ := set.groupClaim(w)
	out := map[string]any{
		"sub":    w.userID,
		"user":   w.userID,
		"email":  w.email,
		"groups": groups,
		"sid":    w.id,
		"name":   personName(w),
	}
	for _, h := range env.claimHeaders {
		if baseClaims[h.claim] {
			continue
		}
		if list, ok := w.claim(h.claim); ok {
			out[h.claim] = joinClaim(list)
		}
	}
	return out
}

// groupClaim gives the groups of the assertion, ids then names, never nil,
// and how many ids the filter took away.
func (set *routeSettings) groupClaim(w *who) (groups []string, removed int) {
	groups = []string{}
	if len(w.groups) == 0 {
		// Without directory groups, the session's own claim, which the filter
		// does not touch: it holds names, not ids.
		if s := w.caller.Session; s != nil {
			for _, v := range s.Claims["groups"] {
				groups = append(groups, scalarText(v))
			}
		}
		return groups, 0
	}
	for _, id := range w.groups {
		if set.groupsFilter == nil || set.groupsFilter[id] {
			groups = append(groups, id)
		}
	}
	removed = len(w.groups) - len(groups)
	kept := groups
	for _, g := range w.caller.Groups {
		if g.Name != "" && g.Name != g.ID && slices.Contains(kept, g.ID) {
			groups = append(groups, g.Name)
		}
	}
	return groups, removed
}

// personName is the session's name claim, else the user's.
func personName(w *who) string {
	if s := w.caller.Session; s != nil && len(s.Claims["name"]) > 0 {
		return joinClaim(s.Claims["name"])
	}
	if u := w.caller.User; u != nil {
		if len(u.Claims["name"]) > 0 {
			return joinClaim(u.Claims["name"])
		}
		return u.Name
	}
	return ""
}

// claim looks in the session, then in the user record; the literal name, then
// lower case (decision 22: the file's keys are folded).
func (w *who) claim(name string) ([]any, bool) {
	for _, n := range []string{name, strings.ToLower(name)} {
		if s := w.caller.Session; s != nil {
			if v, ok := s.Claims[n]; ok {
				return v, true
			}
		}
		if u := w.caller.User; u != nil {
			if v, ok := u.Claims[n]; ok {
				return v, true
			}
		}
	}
	return nil, false
}

// claimText is the value of a claim header: "" for a missing claim, and for
// one that no header can carry.
func claimText(payload map[string]any, w *who, claim string) string {
	var text string
	switch v := payload[claim].(type) {
	case string:
		text = v
	case []string:
		text = strings.Join(v, ",")
	case int64:
		text = strconv.FormatInt(v, 10)
	default:
		list, _ := w.claim(claim)
		text = joinClaim(list)
	}
	for i := 0; i < len(text); i++ {
		// A changed value could be somebody else's name: none is safer.
		if c := text[i]; c < 0x20 && c != '\t' || c == 0x7f {
			return ""
		}
	}
	return text
}

func joinClaim(list []any) string {
	if len(list) == 1 {
		return scalarText(list[0])
	}
	parts := make([]string, len(list))
	for i, v := range list {
		parts[i] = scalarText(v)
	}
	return strings.Join(parts, ",")
}

func scalarText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case nil:
		return ""
	case json.Number:
		return v.String()
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// identity gives the header fields that an allowed request carries upstream.
func (env *Env) identity(now time.Time, req *Request, w *who) ([]exchange.Field, error) {
	rt := req.Route
	set := env.settings(rt)
	var fields []exchange.Field
	if set.pass {
		s, err := env.assertion(now, w, rt, req.View.Hostname())
		if err != nil {
			return nil, err
		}
		fields = s.fields
		if f := assertionFor(req.View); f != "" {
			fields = append(slices.Clip(fields), exchange.Field{Name: HeaderAssertionFor, Value: f})
		}
	}
	if rt == nil {
		return fields, nil
	}
	if rt.RoutingKey && w.id != "" {
		fields = append(slices.Clip(fields), exchange.Field{Name: "X-Pomerium-Routing-Key", Value: w.routingKey})
	}
	if rt.Kubernetes && rt.KubernetesToken != "" {
		if w.email == "" || !headerSafe(w.email) {
			// Without a name to impersonate the API server would take the
			// request for the service account's own.
			return nil, errNoImpersonation
		}
		fields = append(slices.Clip(fields),
			exchange.Field{Name: "Authorization", Value: "Bearer " + rt.KubernetesToken},
			exchange.Field{Name: "Impersonate-User", Value: w.email})
		groups, _ := set.groupClaim(w)
		for _, g := range groups {
			if headerSafe(g) {
				fields = append(fields, exchange.Field{Name: "Impersonate-Group", Value: g})
			}
		}
	}
	return fields, nil
}

func headerSafe(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == 0x7f {
			return false
		}
	}
	return s != ""
}

// assertionFor passes on what an outer proxy said, unverified
// (wire-contract.md §4.4).
func assertionFor(v exchange.View) string {
	if f := v.Header(HeaderAssertionFor); f != "" {
		return f
	}
	return v.Header(HeaderAssertion)
}

// IdentityClaims are the claims of the assertion that c would get on rt (nil:
// no route), without iss, aud, exp, iat and jti: what
// /.pomerium/user shows.
func (env *Env) IdentityClaims(c *session.Caller, rt *route.Route) map[string]any {
	return env.claims(whoOf(c), env.settings(rt))
}

// whoOf wraps a caller that arrives from outside.
func whoOf(c *session.Caller) *who {
	if c.Anonymous() {
		return anonymous
	}
	w := &who{caller: c, id: c.ID, userID: c.UserID(), email: c.Email()}
	if c.Directory != nil {
		w.groups = c.Directory.GroupIDs
	}
	return w
}

// Assertion gives the signed assertion of an allowed request, for templates
// (${pomerium.jwt}), whether or not identity headers are passed. Nothing is
// signed before it is called.
func (d *Decision) Assertion() (string, error) {
	if d.Outcome != Allow || d.req == nil {
		return "", errNotAllowed
	}
	s, err := d.req.Env.assertion(d.engine.now(), d.who, d.req.Route, d.req.View.Hostname())
	if err != nil {
		return "", err
	}
	return s.jwt, nil
}
