package server

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"postern/internal/authz"
	"postern/internal/certs"
	"postern/internal/config"
	"postern/internal/exchange"
	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/proxy"
	"postern/internal/record"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/telemetry"
)

// ExplainQuery asks why a request would be decided as it would: who makes it
// (one of User, Session, Described; none is nobody) and what it is.
type ExplainQuery struct {
	// User is a user id or e-mail address: the newest living session counts,
	// without one what the records say.
	User string `json:"user,omitempty"`
	// Session is the id of a session or service account.
	Session   string         `json:"session,omitempty"`
	Described *DescribedUser `json:"described,omitempty"`

	URL     string            `json:"url"`
	Method  string            `json:"method,omitempty"`
	IP      string            `json:"ip,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	// ClientCertificate is PEM, or "".
	ClientCertificate string `json:"client_certificate,omitempty"`
}

// DescribedUser is somebody made up.
type DescribedUser struct {
	ID     string           `json:"id,omitempty"`
	Email  string           `json:"email,omitempty"`
	Groups []string         `json:"groups,omitempty"` // null: no directory record
	Claims map[string][]any `json:"claims,omitempty"`
}

// errBadQuestion marks a question that cannot be asked.
var errBadQuestion = errors.New("the question cannot be asked")

// explainer answers questions about one generation.
type explainer struct {
	engine *authz.Engine
	env    *authz.Env
	table  *route.Table
	store  record.Reader
	paths  exchange.PathOptions
	// certificate judges a client certificate; nil: none is asked for.
	certificate func([]*x509.Certificate, *route.Route) exchange.CertificateState
	id          string // request id of the question
}

func (x *explainer) explain(ctx context.Context, q *ExplainQuery) (authz.Explanation, error) {
	bad := func(format string, args ...any) (authz.Explanation, error) {
		return authz.Explanation{}, fmt.Errorf("%w: %s", errBadQuestion, fmt.Sprintf(format, args...))
	}
	ask := authz.Question{Method: q.Method, URL: q.URL, Paths: x.paths, RequestID: x.id}
	if q.IP != "" {
		ip, err := netip.ParseAddr(q.IP)
		if err != nil {
			return bad("%q is not an IP address", q.IP)
		}
		ask.IP = ip
	}
	for name, value := range q.Headers {
		ask.Headers = append(ask.Headers, exchange.Field{Name: name, Value: value})
	}
	if q.ClientCertificate != "" {
		block, _ := pem.Decode([]byte(q.ClientCertificate))
		if block == nil {
			return bad("the client certificate is not PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return bad("the client certificate cannot be read: %v", err)
		}
		ask.Certificate = c
	}
	view, err := ask.View()
	if err != nil {
		return bad("%v", err)
	}
	m := x.table.Match(view)
	if p := view.Peer(); x.certificate != nil {
		p.CertificateState = x.certificate(p.Certificates, m.Route)
	}
	subject, err := subjectOf(ctx, x.store, q)
	if err != nil {
		return authz.Explanation{}, err
	}
	return x.engine.ExplainAs(ctx, &authz.Request{
		View: view, Route: m.Route, Internal: m.Own != route.OwnNone, SignInHost: m.SignIn, Env: x.env,
	}, subject)
}

// subjectOf finds whom a question names.
func subjectOf(ctx context.Context, store record.Reader, q *ExplainQuery) (authz.Subject, error) {
	switch {
	case q.Described != nil:
		d := q.Described
		return authz.Subject{Described: &authz.Described{UserID: d.ID, Email: d.Email, Groups: d.Groups, Claims: d.Claims}}, nil
	case q.Session != "":
		_, err := store.Get(ctx, session.ServiceAccountType, q.Session)
		switch {
		case err == nil:
			return authz.Subject{ServiceAccountID: q.Session}, nil
		case !errors.Is(err, record.ErrNotFound):
			return authz.Subject{}, err
		}
		return authz.Subject{SessionID: q.Session}, nil
	case q.User == "":
		return authz.Subject{}, nil
	}
	ids, err := userIDs(ctx, store, q.User)
	if err != nil {
		return authz.Subject{}, err
	}
	var newest *session.Session
	page, err := store.List(ctx, session.SessionType, record.Query{})
	if err != nil {
		return authz.Subject{}, err
	}
	now := time.Now()
	for _, rec := range page.Records {
		s, err := session.DecodeSession(rec)
		if err == nil && ids[s.UserID] && !s.Expired(now) && (newest == nil || s.IssuedAt.After(newest.IssuedAt)) {
			newest = s
		}
	}
	if newest != nil {
		return authz.Subject{SessionID: newest.ID}, nil
	}
	for id := range ids {
		return authz.Subject{UserID: id}, nil
	}
	return authz.Subject{}, fmt.Errorf("%w: no user record has the id or e-mail address %q; describe the person with --group and --claim instead", authz.ErrNoSubject, q.User)
}

// userIDs are the users of an id or e-mail address.
func userIDs(ctx context.Context, store record.Reader, user string) (map[string]bool, error) {
	ids := map[string]bool{}
	if _, err := store.Get(ctx, session.UserType, user); err == nil {
		ids[user] = true
	}
	for _, typ := range []string{session.UserType, session.DirectoryUserType} {
		page, err := store.List(ctx, typ, record.Query{})
		if err != nil {
			return nil, err
		}
		for _, rec := range page.Records {
			var who struct{ Email string }
			if json.Unmarshal(rec.Data, &who) == nil && who.Email != "" && strings.EqualFold(who.Email, user) {
				ids[rec.ID] = true
			}
		}
	}
	return ids, nil
}

// explainer answers questions by the generation that serves now.
func (s *Server) explainer() *explainer {
	g := s.current.Load()
	return &explainer{engine: s.engine, env: g.proxy.Env, table: g.proxy.Table, store: s.store,
		paths: g.proxy.Settings.Paths, certificate: g.proxy.ClientCertificate, id: newID()}
}

// askedBy writes the audit line of a question. It is written whatever
// log_level says.
func (s *Server) askedBy(kind, id, via string, q *ExplainQuery, outcome string, err error) {
	user := q.User
	if q.Described != nil {
		user = "described: " + q.Described.Email
	}
	attrs := []any{
		slog.Group("actor", "kind", kind, "id", id, "via", via), "action", "policy.explain",
		slog.Group("subject", "user", user, "session", q.Session),
		slog.Group("request", "method", q.Method, "url", withoutQuery(q.URL), "ip", q.IP), "outcome", outcome,
	}
	if err != nil {
		attrs = append(attrs, "error", err.Error())
	}
	telemetry.NewLogger(s.out, slog.LevelInfo).Info("audit", attrs...)
}

// withoutQuery cuts what a link may carry as a credential.
func withoutQuery(url string) string {
	url, _, _ = strings.Cut(url, "#")
	url, _, _ = strings.Cut(url, "?")
	return url
}

// explain is POST /v1/explain of the control API.
func (c *control) explain(w http.ResponseWriter, r *http.Request) {
	var q ExplainQuery
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("the body is not the JSON that is expected: %w", err))
		return
	}
	x, err := c.s.explainer().explain(r.Context(), &q)
	by := actorOf(r)
	c.s.askedBy(by.Kind, by.ID, by.Via, &q, x.Outcome, err)
	answerExplanation(w, &x, err)
}

func answerExplanation(w http.ResponseWriter, x *authz.Explanation, err error) {
	switch {
	case err == nil:
		answer(w, x)
	case errors.Is(err, errBadQuestion):
		refuse(w, http.StatusBadRequest, err)
	case errors.Is(err, authz.ErrNoSubject):
		refuse(w, http.StatusNotFound, err)
	default:
		refuse(w, http.StatusServiceUnavailable, err)
	}
}

// pathExplain answers administrators on the sign-in host.
const pathExplain = "/.pomerium/admin/explain"

// explainEndpoint is GET /.pomerium/admin/explain for callers who satisfy
// admin_policy. To everybody else there is no such page.
func (s *Server) explainEndpoint(c *compiled, renderer *pages.Renderer) proxy.Endpoint {
	handler := func(w http.ResponseWriter, r *http.Request, who *session.Caller) {
		w.Header().Set("Cache-Control", "no-store")
		if r.Method != http.MethodGet || !authz.Satisfies(c.admin, who, time.Now()) {
			renderer.Error(w, r, pages.ErrorPage{Kind: pages.NotFound, Source: pages.FromEndpoint,
				RequestID: w.Header().Get("X-Request-Id"), Time: time.Now(), Host: r.Host, Who: who.Email()})
			return
		}
		v := r.URL.Query()
		q := ExplainQuery{User: v.Get("user"), Session: v.Get("session"), URL: v.Get("url"), Method: v.Get("method"), IP: v.Get("ip")}
		if v.Has("email") || v.Has("group") {
			q.Described = &DescribedUser{ID: q.User, Email: v.Get("email"), Groups: v["group"]}
		}
		for _, h := range v["header"] {
			name, value, _ := strings.Cut(h, ":")
			if q.Headers == nil {
				q.Headers = map[string]string{}
			}
			q.Headers[name] = strings.TrimSpace(value)
		}
		x, err := s.explainer().explain(r.Context(), &q)
		s.askedBy("user", who.UserID(), "web", &q, x.Outcome, err)
		answerExplanation(w, &x, err)
	}
	return proxy.Endpoint{Path: pathExplain, SignInHostOnly: true, Handler: handler}
}

// Explain answers a question without a running server: by a configuration and
// the exported records (nil: none).
func Explain(ctx context.Context, cfg *config.Config, data *Export, q *ExplainQuery) (authz.Explanation, error) {
	c, problems := compile(cfg, nil)
	if config.Fatal(problems) {
		return authz.Explanation{}, problemList(problems)
	}
	secret := make([]byte, session.KeySize) // nothing made with it leaves here
	if _, err := rand.Read(secret); err != nil {
		return authz.Explanation{}, err
	}
	keys, err := session.NewKeys(session.NewSecret(secret), nil, session.Secret{})
	if err != nil {
		return authz.Explanation{}, err
	}
	env, err := authz.NewEnv(authz.Options{Generation: 1, Config: authz.Config{JWTClaimsHeaders: cfg.Authz.JWTClaimsHeaders}, Keys: keys,
		Routes: c.table.Routes(), CertificateRule: c.certRule, SignInURL: c.signIn})
	if err != nil {
		return authz.Explanation{}, err
	}
	settings, err := proxy.NewSettings(cfg.Proxy, c.cookies)
	if err != nil {
		return authz.Explanation{}, err
	}
	if data == nil {
		if data, err = ReadExport(nil); err != nil {
			return authz.Explanation{}, err
		}
	}
	engine, err := authz.NewStatic(data.store, time.Now)
	if err != nil {
		return authz.Explanation{}, err
	}
	defer engine.Close()
	x := explainer{engine: engine, env: env, table: c.table, store: data.store, paths: settings.Paths}
	if c.clientCAs {
		certificates, err := certs.New(c.certOptions(cfg, secret, nil))
		if err != nil {
			return authz.Explanation{}, err
		}
		x.certificate = certificates.VerifyClient
	}
	asked := *q
	if d := q.Described; d != nil && d.Groups == nil && d.Claims == nil {
		// Nothing is said of the person but a name: a local account knows more.
		for i := range c.accounts {
			if a := &c.accounts[i]; strings.EqualFold(a.Email, d.Email) || d.Email == "" && a.ID == d.ID {
				p := new(identity.Local).Identity(a)
				asked.Described = &DescribedUser{ID: p.UserID, Email: p.Email, Groups: p.Directory.GroupIDs, Claims: p.Claims}
			}
		}
	}
	return x.explain(ctx, &asked)
}
