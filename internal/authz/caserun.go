package authz

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"iter"
	"strings"
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/policy/policytest"
	"postern/internal/record"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/store/memory"
)

// Cases answers policy test cases by the whole decision: records in a store,
// a credential, a route, Decide. So statuses, internal paths and the joining
// of identities in a test are those of the running program (decision 34). SSH
// cases are judged by the policy alone.
type Cases struct{ Keys *session.Keys }

var _ policytest.Evaluator = Cases{}

// caseHost is the host of the route that a case's policy is put on; the host
// in the case's URL is what the policy sees.
const caseHost = "https://app.example.com"

// Evaluate answers one case.
func (r Cases) Evaluate(c *policytest.Case) (policytest.Answer, error) {
	if c.SSH != nil {
		return policytest.Local{}.Evaluate(c)
	}
	ctx := context.Background()
	store := memory.New()
	defer func() { _ = store.Close() }()
	in, err := policytest.Input(c)
	if err != nil {
		return policytest.Answer{}, err
	}
	who, err := storeCase(ctx, store, c)
	if err != nil {
		return policytest.Answer{}, err
	}
	rt, err := caseRoute(c)
	if err != nil {
		return policytest.Answer{}, err
	}
	engine, err := New(Sources{
		Sessions:        direct[session.Session]{store, session.SessionType, session.DecodeSession},
		ServiceAccounts: direct[session.ServiceAccount]{store, session.ServiceAccountType, session.DecodeServiceAccount},
		Users:           direct[session.User]{store, session.UserType, session.DecodeUser},
		DirectoryUsers:  direct[session.DirectoryUser]{store, session.DirectoryUserType, session.DecodeDirectoryUser},
		DirectoryGroups: direct[session.DirectoryGroup]{store, session.DirectoryGroupType, session.DecodeDirectoryGroup},
		Devices: func(_ context.Context, who *session.Caller) ([]policy.Device, error) {
			return in.Devices, nil
		},
		Now: func() time.Time { return c.Now },
	})
	if err != nil {
		return policytest.Answer{}, err
	}
	defer engine.Close()
	engine.explain = c.Settings.Route.ShowErrorDetails
	engine.external = func(x *policy.Input) {
		x.Record, x.RecordIdentity = in.Record, in.RecordIdentity
		own := x.RecordByID
		x.RecordByID = func(typ, id string) (map[string]any, error) {
			if data, err := own(typ, id); data != nil || err != nil {
				return data, err
			}
			return c.RecordByID(typ, id), nil
		}
	}
	mtls := c.Settings.DownstreamMTLS
	env, err := NewEnv(Options{
		Keys:            r.Keys,
		Routes:          []*route.Route{rt},
		CertificateRule: mtls != nil && mtls.Enforcement != "policy",
		Openers:         []CredentialOpener{func(*Request) (Credential, bool) { return who, who.Carrier != CarrierNone }},
	})
	if err != nil {
		return policytest.Answer{}, err
	}
	internal, _ := policy.InternalPath(in.RawPath)
	d := engine.Decide(ctx, &Request{
		View: &caseView{c: c, in: in, peer: casePeer(c, in)}, Route: rt, Internal: internal, Env: env, MCP: in.MCP,
	})
	return caseAnswer(&d), nil
}

// casePeer is the other end of the connection.
func casePeer(c *policytest.Case, in *policy.Input) exchange.Peer {
	p := exchange.Peer{ClientIP: in.ClientIP, Secure: true}
	if in.Certificate != nil {
		p.Certificates = []*x509.Certificate{in.Certificate}
	}
	if c.Settings.DownstreamMTLS != nil {
		switch in.CertificateState {
		case policy.CertificateMissing:
			p.CertificateState = exchange.CertificateMissing
		case policy.CertificateInvalid:
			p.CertificateState = exchange.CertificateInvalid
		default:
			p.CertificateState = exchange.CertificateValid
		}
	}
	return p
}

// caseRoute makes the route with the policies and settings of a case.
func caseRoute(c *policytest.Case) (*route.Route, error) {
	s := &c.Settings.Route
	shortcuts, err := s.Shortcuts().Policy()
	if err != nil {
		return nil, err
	}
	spec := route.Spec{From: caseHost, To: []string{"http://127.0.0.1"}, Access: route.Access{
		Public: s.Public, AnyUser: s.AnyUser, CORSPreflight: s.CORSPreflight,
		ShowErrorDetails: s.ShowErrorDetails, MCPServer: s.MCPServer,
	}}
	attach := func(a policy.Attached) {
		spec.Policies = append(spec.Policies, route.Attached{ID: a.ID, Namespace: a.Namespace, Enforced: a.Enforced,
			Explanation: a.Explanation, Remediation: a.Remediation, Policy: a.Policy})
	}
	if c.Own != nil {
		attach(policy.Attached{Policy: c.Own})
	}
	for _, a := range c.Attached {
		attach(a)
	}
	if shortcuts != nil {
		attach(policy.Attached{Policy: shortcuts})
	}
	rt, err := route.New(spec)
	if err != nil {
		return nil, err
	}
	_, err = route.NewTable([]*route.Route{rt}, route.Options{})
	return rt, err
}

// storeCase writes the records of a case and gives the credential that its
// request carries.
func storeCase(ctx context.Context, store record.Store, c *policytest.Case) (Credential, error) {
	end := c.Now.Add(time.Hour)
	if sa := c.ServiceAccount; sa != nil {
		// With a service account, the user only supplies records.
		if err := storeUser(ctx, store, c.User); err != nil {
			return Credential{}, err
		}
		a := &session.ServiceAccount{ID: cmp.Or(sa.ID, "service-account"), UserID: sa.UserID}
		if sa.ExpiresAt != nil {
			a.ExpiresAt = sa.ExpiresAt.Time
		}
		return Credential{Carrier: CarrierAuthorization, ServiceAccountID: a.ID}, put(ctx, store, a.Record)
	}
	if c.User == nil {
		return Credential{}, nil
	}
	if err := storeUser(ctx, store, c.User); err != nil {
		return Credential{}, err
	}
	given := c.Session
	if given == nil {
		given = &policytest.Session{}
	}
	s := &session.Session{ID: cmp.Or(given.ID, "session"), UserID: c.User.ID, ExpiresAt: end, Claims: session.FlattenClaims(given.Claims)}
	if given.ExpiresAt != nil {
		s.ExpiresAt = given.ExpiresAt.Time
	}
	if i := given.Impersonate; i != nil {
		s.ImpersonateSessionID = cmp.Or(i.Session, "impersonated")
		if i.User != nil {
			other := &session.Session{ID: s.ImpersonateSessionID, UserID: i.User.ID, ExpiresAt: end, Claims: session.FlattenClaims(i.Claims)}
			if i.ExpiresAt != nil {
				other.ExpiresAt = i.ExpiresAt.Time
			}
			if err := errors.Join(storeUser(ctx, store, i.User), put(ctx, store, other.Record)); err != nil {
				return Credential{}, err
			}
		}
	}
	h := &session.Handle{ID: s.ID, UserID: s.UserID, Audience: []string{"app.example.com"}}
	return Credential{Carrier: CarrierCookie, Handle: h}, put(ctx, store, s.Record)
}

func storeUser(ctx context.Context, store record.Store, u *policytest.User) error {
	if u == nil || u.ID == "" {
		return nil
	}
	if u.HasRecord() {
		r := &session.User{ID: u.ID, Name: u.Name, Email: u.Email, Claims: session.FlattenClaims(u.Claims)}
		if err := put(ctx, store, r.Record); err != nil {
			return err
		}
	}
	if email, groups, ok := u.DirectoryRecord(); ok {
		return put(ctx, store, (&session.DirectoryUser{ID: u.ID, Email: email, GroupIDs: groups}).Record)
	}
	return nil
}

func put(ctx context.Context, store record.Store, make func() (*record.Record, error)) error {
	rec, err := make()
	if err == nil {
		_, err = store.Put(ctx, record.System("policy test"), rec)
	}
	return err
}

func caseAnswer(d *Decision) policytest.Answer {
	a := policytest.Answer{
		Status: d.Status, Allow: d.Policy.Allow.Value, Deny: d.Policy.Deny.Value,
		Reasons:    d.Policy.Allow.Reasons.Union(d.Policy.Deny.Reasons).Names(),
		DeviceType: d.Policy.DeviceType(),
	}
	switch d.Outcome {
	case Allow:
		a.Outcome = policy.Allow
	case SignIn:
		a.Outcome = policy.Login
	case StepUp:
		a.Outcome = policy.Enroll
	case Error:
		a.Outcome = policy.Error
	}
	if d.Preflight {
		a.Outcome, a.Allow = policy.Allow, true // answered, not refused
	}
	for _, x := range d.Details {
		if x.Remediation != "" {
			a.Remediation = append(a.Remediation, x.Remediation)
		}
	}
	return a
}

// direct is a Lookup that always asks the store.
type direct[T any] struct {
	from   record.Reader
	typ    string
	decode record.Decode[T]
}

func (l direct[T]) Lookup(ctx context.Context, id string, _ uint64) (*record.Entry[T], error) {
	e, err := readThrough(ctx, l.from, l.typ, id, l.decode)
	if err == nil && e == nil {
		err = record.ErrNotFound
	}
	return e, err
}

func (l direct[T]) OnChange(func(record.Change[T])) (cancel func()) { return func() {} }

func (l direct[T]) Ready() error { return nil }

// caseView shows a case's request. Its path is the case's own: what is
// canonical is not a policy's concern.
type caseView struct {
	c    *policytest.Case
	in   *policy.Input
	peer exchange.Peer
}

func (v *caseView) Method() string            { return v.in.Method }
func (v *caseView) Scheme() string            { return "https" }
func (v *caseView) Proto() exchange.Proto     { return exchange.HTTP11 }
func (v *caseView) Protocol() string          { return "" }
func (v *caseView) Authority() string         { return v.in.Host }
func (v *caseView) RawTarget() string         { return v.in.RawPath }
func (v *caseView) Path() string              { return v.in.RawPath }
func (v *caseView) RawQuery() string          { return v.in.RawQuery }
func (v *caseView) HasQuery() bool            { return v.in.RawQuery != "" }
func (v *caseView) Header(name string) string { return v.in.Header(name) }
func (v *caseView) BodySize() int64           { return 0 }
func (v *caseView) RequestID() string         { return "policy-test" }
func (v *caseView) Peer() *exchange.Peer      { return &v.peer }

func (v *caseView) Hostname() string {
	host, _, _ := strings.Cut(v.in.Host, ":")
	return host
}

func (v *caseView) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for n, value := range v.c.Request.Headers {
			if strings.EqualFold(n, name) && !yield(value) {
				return
			}
		}
	}
}

func (v *caseView) Headers() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for n, value := range v.c.Request.Headers {
			if !yield(n, value) {
				return
			}
		}
	}
}
