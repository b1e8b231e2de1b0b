package authz

import (
	"bytes"
	"context"
	"crypto/rand"
	"iter"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/route"
	"postern/internal/session"
	"postern/internal/store/memory"
	"postern/internal/telemetry"
)

// view is a request made by hand.
type view struct {
	method, authority, path, query string
	headers                        []exchange.Field
	peer                           exchange.Peer
}

func request(method, url string, headers ...string) *view {
	_, rest, _ := strings.Cut(url, "://")
	host, path, _ := strings.Cut(rest, "/")
	path, query, _ := strings.Cut(path, "?")
	v := &view{method: method, authority: host, path: "/" + path, query: query}
	v.peer.Direct = netip.MustParseAddrPort("192.0.2.7:4711")
	v.peer.ClientIP = netip.MustParseAddr("192.0.2.10")
	for i := 0; i+1 < len(headers); i += 2 {
		v.headers = append(v.headers, exchange.Field{Name: headers[i], Value: headers[i+1]})
	}
	return v
}

func (v *view) Method() string        { return v.method }
func (v *view) Scheme() string        { return "https" }
func (v *view) Proto() exchange.Proto { return exchange.HTTP2 }
func (v *view) Protocol() string      { return "" }
func (v *view) Authority() string     { return v.authority }
func (v *view) Hostname() string      { h, _, _ := strings.Cut(v.authority, ":"); return h }
func (v *view) RawTarget() string     { return v.path }
func (v *view) Path() string          { return v.path }
func (v *view) RawQuery() string      { return v.query }
func (v *view) HasQuery() bool        { return v.query != "" }
func (v *view) BodySize() int64       { return 0 }
func (v *view) RequestID() string     { return "req-1" }
func (v *view) Peer() *exchange.Peer  { return &v.peer }

func (v *view) Header(name string) string {
	for _, h := range v.headers {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

func (v *view) Values(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, h := range v.headers {
			if strings.EqualFold(h.Name, name) && !yield(h.Value) {
				return
			}
		}
	}
}

func (v *view) Headers() iter.Seq2[string, string] { return exchange.Fields(v.headers) }

// house is an engine over a memory store with live replicas.
type house struct {
	t       testing.TB
	store   *flakyStore
	keys    *session.Keys
	secret  []byte
	engine  *Engine
	env     *Env
	table   *route.Table
	log     *bytes.Buffer
	options Options
	gen     atomic.Pointer[Current]
	sources Sources
	waits   []func(ctx context.Context) error
}

// flakyStore is a store that can be cut off.
type flakyStore struct {
	record.Store
	mu   sync.Mutex
	down bool
}

func (s *flakyStore) cut(down bool) { s.mu.Lock(); s.down = down; s.mu.Unlock() }

func (s *flakyStore) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return nil, record.ErrUnavailable
	}
	return s.Store.Get(ctx, typ, id)
}

func (s *flakyStore) Watch(ctx context.Context, typ string, after record.Cursor) (record.Stream, error) {
	st, err := s.Store.Watch(ctx, typ, after)
	if err != nil {
		return nil, err
	}
	return &flakyStream{st, s}, nil
}

type flakyStream struct {
	record.Stream
	store *flakyStore
}

func (s *flakyStream) Next(ctx context.Context) (record.Event, error) {
	ev, err := s.Stream.Next(ctx)
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	if s.store.down {
		return record.Event{}, record.ErrUnavailable
	}
	return ev, err
}

type routeSpec struct {
	from, policy string
	access       route.Access
}

func ppl(t testing.TB, text string) *policy.Policy {
	t.Helper()
	p, _, err := policy.Parse("policy.yaml", []byte(text), policy.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func compileTable(t testing.TB, specs []routeSpec) *route.Table {
	t.Helper()
	var routes []*route.Route
	for _, s := range specs {
		rs := route.Spec{From: s.from, To: []string{"http://127.0.0.1:1"}, Access: s.access}
		if s.policy != "" {
			rs.Policies = []route.Attached{{Policy: ppl(t, s.policy)}}
		}
		rt, err := route.New(rs)
		if err != nil {
			t.Fatal(err)
		}
		routes = append(routes, rt)
	}
	table, err := route.NewTable(routes, route.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func newKeys(t testing.TB) (*session.Keys, []byte) {
	t.Helper()
	secret := make([]byte, session.KeySize)
	_, _ = rand.Read(secret)
	keys, err := session.NewKeys(session.NewSecret(secret), nil, session.Secret{})
	if err != nil {
		t.Fatal(err)
	}
	return keys, secret
}

func newHouse(t testing.TB, specs []routeSpec, adjust ...func(*Options)) *house {
	t.Helper()
	h := &house{t: t, store: &flakyStore{Store: memory.New()}, log: &bytes.Buffer{}}
	h.keys, h.secret = newKeys(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		running.Wait()
		_ = h.store.Close()
	})
	for typ, o := range session.TypeOptions() {
		if err := h.store.SetOptions(ctx, typ, o); err != nil {
			t.Fatal(err)
		}
	}
	h.sources = Sources{
		Sessions:        replica(ctx, &running, h, session.SessionType, session.DecodeSession),
		ServiceAccounts: replica(ctx, &running, h, session.ServiceAccountType, session.DecodeServiceAccount),
		Users:           replica(ctx, &running, h, session.UserType, session.DecodeUser),
		DirectoryUsers:  replica(ctx, &running, h, session.DirectoryUserType, session.DecodeDirectoryUser),
		DirectoryGroups: replica(ctx, &running, h, session.DirectoryGroupType, session.DecodeDirectoryGroup),
		Store:           h.store,
	}
	for _, wait := range h.waits {
		if err := wait(ctx); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if h.engine, err = New(h.sources); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.engine.Close)
	h.options = Options{Keys: h.keys, Generation: 1, Config: Config{AssertionReuse: time.Minute}}
	for _, a := range adjust {
		a(&h.options)
	}
	h.engine.SetCurrent(func() Current { return *h.gen.Load() })
	h.swap(specs)
	return h
}

func replica[T any](ctx context.Context, running *sync.WaitGroup, h *house, typ string, decode record.Decode[T]) *record.Replica[T] {
	r := record.NewReplica(h.store, typ, decode, record.ReplicaOptions{})
	running.Add(1)
	go func() {
		defer running.Done()
		_ = r.Run(ctx)
	}()
	h.waits = append(h.waits, r.WaitSynced)
	return r
}

// swap puts a new generation in place.
func (h *house) swap(specs []routeSpec) {
	h.t.Helper()
	h.table = compileTable(h.t, specs)
	h.options.Routes = h.table.Routes()
	h.options.Generation++
	h.options.Log = telemetry.NewAuthorizeLog(telemetry.NewSink(h.log, 0), slog.LevelInfo, nil)
	env, err := NewEnv(h.options)
	if err != nil {
		h.t.Fatal(err)
	}
	h.env = env
	h.gen.Store(&Current{Env: env, Match: h.table.Match})
	h.engine.Swapped()
}

func (h *house) request(v *view) *Request {
	m := h.table.Match(v)
	return &Request{View: v, Route: m.Route, Internal: m.Own != route.OwnNone, SignInHost: m.SignIn, Env: h.env}
}

func (h *house) decide(v *view) Decision {
	return h.engine.Decide(context.Background(), h.request(v))
}

func (h *house) put(recs ...interface {
	Record() (*record.Record, error)
}) []*record.Record {
	h.t.Helper()
	var list []*record.Record
	for _, r := range recs {
		rec, err := r.Record()
		if err != nil {
			h.t.Fatal(err)
		}
		list = append(list, rec)
	}
	out, err := h.store.Put(context.Background(), record.System("test"), list...)
	if err != nil {
		h.t.Fatal(err)
	}
	h.settle(out...)
	return out
}

func (h *house) remove(typ, id string) {
	h.t.Helper()
	if err := h.store.Delete(context.Background(), record.System("test"), typ, id); err != nil {
		h.t.Fatal(err)
	}
}

// settle waits until the replicas show what was written.
func (h *house) settle(recs ...*record.Record) {
	h.t.Helper()
	for _, r := range recs {
		eventually(h.t, "the replica follows", func() bool {
			switch r.Type {
			case session.SessionType:
				return shows(h.sources.Sessions, r)
			case session.UserType:
				return shows(h.sources.Users, r)
			case session.DirectoryUserType:
				return shows(h.sources.DirectoryUsers, r)
			case session.DirectoryGroupType:
				return shows(h.sources.DirectoryGroups, r)
			case session.ServiceAccountType:
				return shows(h.sources.ServiceAccounts, r)
			}
			return true
		})
	}
}

func shows[T any](in record.Lookup[T], rec *record.Record) bool {
	e, ok := in.(*record.Replica[T]).Get(rec.ID)
	return ok && e.Version >= rec.Version
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

// person puts a session with its user and directory records, and gives the
// signed handle for host.
func (h *house) person(id, email, host string, groups ...string) session.Token {
	h.t.Helper()
	s := &session.Session{ID: "s-" + id, UserID: id, IssuedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		Claims: session.Claims{"name": {"Session " + id}, "team": {"red", "blue"}}}
	list := []interface {
		Record() (*record.Record, error)
	}{&session.User{ID: id, Email: email, Name: "User " + id}, s}
	if groups != nil {
		list = append(list, &session.DirectoryUser{ID: id, GroupIDs: groups})
	}
	h.put(list...)
	return h.handle(s.ID, id, host)
}

func (h *house) handle(id, user, host string) session.Token {
	return session.SignHandle(h.keys, &session.Handle{ID: id, UserID: user, Issuer: "auth.example.com",
		Audience: []string{session.HostAudience(host)}, IssuedAt: time.Unix(1_700_000_000, 0)}) // always the same token
}

func cookie(token session.Token) string { return "__Host-_pomerium=" + string(token) }

func (d Decision) field(name string) string {
	for _, f := range d.Identity {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

func (d Decision) has(name string) bool {
	for _, f := range d.Identity {
		if strings.EqualFold(f.Name, name) {
			return true
		}
	}
	return false
}

func yes() *bool { b := true; return &b }

func routeAccess(idp string) route.Access { return route.Access{IDPID: idp} }

// behind is a synced copy that holds nothing yet.
type behind[T any] struct{}

func (behind[T]) Lookup(context.Context, string, uint64) (*record.Entry[T], error) {
	return nil, record.ErrNotFound
}
func (behind[T]) OnChange(func(record.Change[T])) (cancel func()) { return func() {} }
func (behind[T]) Ready() error                                    { return nil }
