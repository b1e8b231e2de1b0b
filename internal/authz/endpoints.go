package authz

import (
	"encoding/json"
	"net/http"
	"strings"

	"postern/internal/session"
)

// Endpoints are authz's own pages of one generation (wire-contract.md §2).
type Endpoints struct {
	engine *Engine
	env    *Env
}

// Endpoints gives the handlers of env's generation.
func (e *Engine) Endpoints(env *Env) *Endpoints { return &Endpoints{e, env} }

// Keys answers GET /.well-known/pomerium/jwks.json: the public halves of the
// signing keys (RFC 7517).
func (p *Endpoints) Keys(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	p.env.keySet.serve(w, r, "application/json")
}

// HPKEKey answers GET /.well-known/pomerium/hpke-public-key: 32 raw bytes.
func (p *Endpoints) HPKEKey(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	p.env.hpke.serve(w, r, "application/octet-stream")
}

// Discovery answers /.well-known/pomerium: where keys, callback and sign-out
// are. The issuer keeps the port of the request's host.
func (p *Endpoints) Discovery(w http.ResponseWriter, r *http.Request, _ *session.Caller) {
	w.Header().Set("Access-Control-Allow-Origin", "*")
	self := "https://" + r.Host
	callback := self
	if u := p.env.signInURL; u != nil {
		callback = "https://" + u.Host
	}
	b, err := json.Marshal(map[string]string{
		"issuer":                           self + "/",
		"authentication_callback_endpoint": callback + "/oauth2/callback",
		"jwks_uri":                         self + "/.well-known/pomerium/jwks.json",
		"frontchannel_logout_uri":          self + "/.pomerium/sign_out",
	})
	if err != nil {
		http.Error(w, "could not encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(append(b, '\n'))
}

// JWT answers GET /.pomerium/jwt with the caller's own assertion, where the
// runtime flag pomerium_jwt_endpoint is on.
func (p *Endpoints) JWT(w http.ResponseWriter, r *http.Request, c *session.Caller) {
	if !p.env.jwtEndpoint {
		http.Error(w, "not found", http.StatusNotFound)
		return
	}
	if !getOrHead(w, r) {
		return
	}
	if c.Anonymous() {
		http.Error(w, "sign in first", http.StatusUnauthorized)
		return
	}
	host := r.Host
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	fresh := *p.env.global
	fresh.reuse = 0
	s, err := p.env.assertionUnder(p.engine.now(), whoOf(c), &fresh, nil, strings.Trim(host, "[]"))
	if err != nil {
		http.Error(w, "the assertion could not be signed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/jwt")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if r.Method != http.MethodHead {
		_, _ = w.Write([]byte(s.jwt))
	}
}

func getOrHead(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	w.Header().Set("Allow", "GET, HEAD")
	http.Error(w, "method not allowed: use GET", http.StatusMethodNotAllowed)
	return false
}

// serve answers a conditional GET (RFC 9110 §13.1.2) of a public document.
func (d *document) serve(w http.ResponseWriter, r *http.Request, kind string) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	if !getOrHead(w, r) {
		return
	}
	h.Set("Cache-Control", "max-age=60")
	h.Set("ETag", d.etag)
	h.Set("X-Content-Type-Options", "nosniff")
	for _, tag := range strings.Split(strings.Join(r.Header.Values("If-None-Match"), ","), ",") {
		if tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/"); tag == "*" || tag == d.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Type", kind)
	if r.Method != http.MethodHead {
		_, _ = w.Write(d.body)
	}
}
