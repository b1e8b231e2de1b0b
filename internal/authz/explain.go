package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/session"
)

// Explanation tells why a request is decided as it is: the outcome, every rule
// and criterion with what it saw, where that came from and how old it is, and
// what would have to change. It holds no credential, and every text in it is
// bounded.
type Explanation struct {
	Outcome string `json:"outcome"` // allow, deny, login, device, error
	Status  int    `json:"status"`  // HTTP status of the answer
	// Message says what was decided without a policy, or "".
	Message string       `json:"message,omitempty"`
	At      time.Time    `json:"at"`
	Request AskedRequest `json:"request"`
	Route   *AskedRoute  `json:"route,omitempty"` // nil: no route matches
	Who     AskedPerson  `json:"who"`
	Trace   policy.Trace `json:"trace"`
}

// AskedRequest is the request that was judged.
type AskedRequest struct {
	ID     string `json:"id,omitempty"`
	Method string `json:"method"`
	Host   string `json:"host"`
	Path   string `json:"path"`
	IP     string `json:"ip,omitempty"`
}

// AskedRoute is the route that it belongs to.
type AskedRoute struct {
	ID   string `json:"id"`
	Name string `json:"name,omitempty"`
	From string `json:"from"`
}

// AskedPerson is who asks.
type AskedPerson struct {
	SignedIn         bool   `json:"signed_in"`
	UserID           string `json:"user_id,omitempty"`
	Email            string `json:"email,omitempty"`
	SessionID        string `json:"session_id,omitempty"`
	ServiceAccountID string `json:"service_account_id,omitempty"`
	ImpersonatedBy   string `json:"impersonated_by,omitempty"` // user id
}

// Explain judges a request as Decide does and tells every step. It writes no
// decision log, counts nothing and changes nothing.
func (e *Engine) Explain(ctx context.Context, req *Request) (Explanation, error) {
	if req == nil || req.View == nil || req.Env == nil {
		return Explanation{}, errNoEnv
	}
	d := e.judge(ctx, req, e.now())
	x := d.Explain(ctx)
	if d.Outcome == Error && d.engine == nil {
		return x, d.Err
	}
	return x, nil
}

// Explain tells how d came about, from the same person, records and time. The
// request must still be there.
func (d *Decision) Explain(ctx context.Context) (x Explanation) {
	x = Explanation{Outcome: d.Outcome.String(), Status: d.Status, Message: d.Message, At: d.began}
	x.Trace.Policies, x.Trace.Reasons = []policy.PolicyTrace{}, d.Why.Names()
	if d.engine == nil || d.req == nil || d.req.View == nil {
		return x
	}
	e, req, w := d.engine, d.req, d.who
	v := req.View
	x.Request = AskedRequest{ID: v.RequestID(), Method: v.Method(), Host: v.Authority(), Path: v.Path()}
	if p := v.Peer(); p != nil && p.ClientIP.IsValid() {
		x.Request.IP = p.ClientIP.String()
	}
	if w == nil {
		w = anonymous
	}
	x.Who = personOf(w)
	if rt := req.Route; rt != nil {
		x.Route = &AskedRoute{ID: rt.ID, Name: rt.Name, From: rt.From.Raw}
	}
	set := req.Env.settings(req.Route)
	switch {
	case req.Internal:
		x.Message = "The path is one of Postern's own, which no policy of a route decides."
		return x
	case req.Route == nil:
		x.Message = "No route has this host and path."
		return x
	case req.Route.AuthorizationOff:
		x.Message = "The route serves sign-in itself and is open to everybody."
		return x
	case d.Preflight:
		x.Message = "A CORS preflight to an MCP server is answered before any policy."
		return x
	case set.route != req.Route, d.Outcome == Error && d.Policy.Err == nil, !d.judged:
		return x
	}
	s := scratchPool.Get().(*scratch)
	defer s.release()
	defer func() {
		if p := recover(); p != nil {
			// The decision stands; only its steps cannot be told.
			x.Message = "The steps of the decision could not be told."
			x.Trace = policy.Trace{Policies: []policy.PolicyTrace{}, Reasons: d.Why.Names()}
			e.logger.LogAttrs(ctx, slog.LevelError, "panic while explaining", slog.String("type", fmt.Sprintf("%T", p)))
		}
	}()
	s.fill(ctx, e, req, w, d.began)
	x.Trace = set.set.Explain(&s.in)
	x.Trace.Each(func(c *policy.CriterionTrace) { w.source(c, d.began) })
	return x
}

func personOf(w *who) AskedPerson {
	c := w.caller
	if c.Anonymous() {
		return AskedPerson{}
	}
	p := AskedPerson{SignedIn: true, UserID: w.userID, Email: w.email}
	if c.ServiceAccount != nil {
		p.ServiceAccountID = c.ID
	} else {
		p.SessionID = c.ID
	}
	if c.ImpersonatedBy != nil {
		p.ImpersonatedBy = c.ImpersonatedBy.UserID
	}
	return p
}

// source says where the values of a criterion come from and how old they are.
func (w *who) source(c *policy.CriterionTrace, now time.Time) {
	session := w.session
	if w.impersonated != nil {
		session = w.impersonated
	}
	signedIn := func(what string) (string, time.Time) {
		switch {
		case w.account != nil:
			return "service account", w.account.ModifiedAt
		case session == nil:
			return "", time.Time{}
		case w.described:
			return "description", time.Time{}
		}
		// A session's record changes with every use; what it says of the person
		// is as old as the last token.
		at := session.Value.IssuedAt
		if r := session.Value.RefreshedAt; r.After(at) {
			at = r
		}
		return what, at
	}
	var at time.Time
	switch c.Origin.Kind {
	case policy.FromRequest:
		c.Source = "request"
	case policy.FromConnection:
		c.Source = "client certificate"
	case policy.FromClock:
		c.Source = "clock"
	case policy.FromRecord:
		c.Source = "record of type " + c.Origin.Name
	case policy.FromSession, policy.FromDevices:
		c.Source, at = signedIn("session")
	case policy.FromEmail:
		switch {
		case w.directory != nil && w.directory.Value.Email != "":
			c.Source, at = "directory record", w.directory.ModifiedAt
		case w.user != nil:
			c.Source, at = "user record", w.user.ModifiedAt
		}
	case policy.FromGroups:
		if w.directory != nil {
			c.Source, at = "directory record", w.directory.ModifiedAt
		} else if w != anonymous {
			c.Source = "no directory record"
		}
	case policy.FromClaim:
		name := c.Origin.Name
		if w.user != nil {
			_, exact := w.user.Value.Claims[name]
			_, lower := w.user.Value.Claims[strings.ToLower(name)]
			if exact || lower {
				c.Source, at = "user record", w.user.ModifiedAt
				break
			}
		}
		c.Source, at = signedIn("token of the session")
	}
	if w.described && (c.Source == "directory record" || c.Source == "user record") && at.IsZero() {
		c.Source = "description"
	}
	if !at.IsZero() {
		c.ModifiedAt, c.Age = at, age(now.Sub(at))
	}
}

// age is a length of time in words, in its largest unit.
func age(d time.Duration) string {
	for _, u := range []struct {
		length time.Duration
		name   string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}} {
		if n := int(d / u.length); n == 1 {
			return "1 " + u.name
		} else if n > 1 {
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return "less than a minute"
}

// brief is what the authorize log keeps of an explanation.
type brief struct {
	Outcome string                   `json:"outcome"`
	Status  int                      `json:"status"`
	Reasons []string                 `json:"reasons"`
	Decided []*policy.CriterionTrace `json:"decided"`
	Changes [][]policy.Change        `json:"changes,omitempty"`
}

// maxBrief bounds the criteria in a line of the authorize log.
const maxBrief = 8

func (d *Decision) explainBriefly() any {
	x := d.Explain(context.Background())
	decided := x.Trace.Deciding()
	return brief{x.Outcome, x.Status, x.Trace.Reasons, decided[:min(len(decided), maxBrief)], x.Trace.Changes}
}

// Subject names whose request a question is about. The zero Subject is
// nobody: not signed in.
type Subject struct {
	// SessionID or ServiceAccountID: as that session is now.
	SessionID, ServiceAccountID string
	// UserID: as this user would be after signing in, by the user and
	// directory records there are.
	UserID string
	// Described: somebody made up.
	Described *Described
}

// Described is a person made up for a question.
type Described struct {
	UserID, Email, Name string
	Groups              []string // nil: no directory record
	Claims              map[string][]any
}

// ErrNoSubject says that whom a question names is not there.
var ErrNoSubject = errors.New("nobody is there to ask about")

// ExplainAs explains a request as if it came from somebody. Credentials in
// the request count for nothing.
func (e *Engine) ExplainAs(ctx context.Context, req *Request, s Subject) (Explanation, error) {
	if req == nil || req.View == nil || req.Env == nil {
		return Explanation{}, errNoEnv
	}
	w, err := e.subject(ctx, s)
	if err != nil {
		return Explanation{}, err
	}
	asked := *req
	asked.as = w
	return e.Explain(ctx, &asked)
}

func (e *Engine) subject(ctx context.Context, s Subject) (*who, error) {
	now := e.now()
	var credential Credential
	switch {
	case s.SessionID != "":
		credential.Handle = &session.Handle{ID: s.SessionID}
	case s.ServiceAccountID != "":
		credential.ServiceAccountID = s.ServiceAccountID
	case s.UserID != "":
		w := &who{userID: s.UserID, session: &record.Entry[session.Session]{Value: &session.Session{UserID: s.UserID, IssuedAt: now}}}
		var err error
		if w.user, err = entry(ctx, e.users, "the user", s.UserID, 0); err != nil {
			return nil, err
		}
		if w.directory, err = entry(ctx, e.directory, "the directory user", s.UserID, 0); err != nil {
			return nil, err
		}
		if w.user == nil && w.directory == nil {
			return nil, fmt.Errorf("%w: there is no user or directory record with the id %q; see postern sessions list", ErrNoSubject, s.UserID)
		}
		return w, e.complete(ctx, w, nil)
	case s.Described != nil:
		p := s.Described
		w := &who{described: true, userID: p.UserID,
			session: &record.Entry[session.Session]{Value: &session.Session{UserID: p.UserID}},
			user:    &record.Entry[session.User]{Value: &session.User{ID: p.UserID, Email: p.Email, Name: p.Name, Claims: p.Claims}}}
		if p.Groups != nil {
			w.directory = &record.Entry[session.DirectoryUser]{Value: &session.DirectoryUser{ID: p.UserID, GroupIDs: p.Groups}}
		}
		return w, e.complete(ctx, w, nil)
	default:
		return anonymous, nil
	}
	w, err := e.resolve(ctx, &credential, now)
	if errors.Is(err, errAnonymous) {
		return nil, fmt.Errorf("%w: no living session or service account has this id; see postern sessions list", ErrNoSubject)
	}
	return w, err
}

// stand takes the subject of a question for who is asking.
func (e *Engine) stand(w *who, d *Decision) *who {
	d.who, d.Caller = w, w.caller
	d.Depends.SessionID, d.Depends.UserID = w.id, w.userID
	return w
}

// statusText names a status, ours included.
func statusText(status int) string {
	switch status {
	case 450:
		return "Device Unauthorized"
	case 495:
		return "SSL Certificate Error"
	}
	return http.StatusText(status)
}

// StatusText names the status of the answer.
func (x *Explanation) StatusText() string { return statusText(x.Status) }
