package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"postern/internal/record"
	"postern/internal/session"
)

// LocalName is the idp_provider of Postern's own accounts and the prefix of
// their user ids.
const LocalName = "local"

// LocalPath is where the sign-in host shows the form.
const LocalPath = "/.pomerium/local"

// Local signs people in against accounts of our own (decision 15): those of
// local_users_file and those kept as records.
type Local struct {
	id       string
	formURL  string
	users    map[string]session.LocalAccount // by canonical e-mail
	listed   []session.LocalAccount
	records  record.Reader
	hasher   *hasher
	throttle *throttle
	dummy    string
	now      func() time.Time
	log      *slog.Logger
}

func newLocal(s Settings, d Deps) (*Local, error) {
	base := strings.TrimSuffix(s.AuthenticateURL, "/")
	if base == "" {
		return nil, errors.New("local accounts need a sign-in host: set authenticate_service_url or an https route")
	}
	l := &Local{
		formURL: base + LocalPath, users: map[string]session.LocalAccount{}, listed: d.LocalUsers,
		records: d.Accounts, hasher: d.Guard.hasher, throttle: d.Guard.throttle, now: d.Now, log: d.Log,
	}
	l.id = providerID(LocalName, Settings{AuthenticateURL: s.AuthenticateURL}, "", nil, nil)
	params := defaultArgon
	for i, a := range d.LocalUsers {
		email := session.CanonicalEmail(a.Email)
		if email == "" {
			return nil, fmt.Errorf("local_users_file: the e-mail of account %q is not well formed; correct it", a.ID)
		}
		if _, dup := l.users[email]; dup {
			return nil, fmt.Errorf("local_users_file: two accounts have the e-mail %s; keep one", email)
		}
		h, err := parsePHC(string(a.PasswordHash))
		if err != nil {
			return nil, fmt.Errorf("local_users_file: the password_hash of account %q %w", a.ID, err)
		}
		if i == 0 {
			params = h.params
		}
		l.users[email] = a
	}
	// A stranger's attempt costs what a member's costs.
	l.dummy = unmatchable(params)
	return l, nil
}

// ID implements Provider.
func (l *Local) ID() string { return l.id }

// AuthURL implements Provider: the form is ours, on the sign-in host.
func (l *Local) AuthURL(_ context.Context, req AuthRequest) (string, error) {
	return l.formURL + "?" + url.Values{"state": {req.State}}.Encode(), nil
}

// Exchange implements Provider. Local accounts have no codes.
func (l *Local) Exchange(context.Context, Return) (*Identity, error) {
	return nil, &Error{Kind: Permanent, Doing: "exchange the code", Err: errors.New("local accounts sign in with the form")}
}

// maxPassword bounds what is hashed, in bytes.
const maxPassword = 1024

// CheckPassword implements PasswordChecker. An account that exists and one
// that does not take the same road: same throttling, one lookup, one hash.
func (l *Local) CheckPassword(ctx context.Context, email, password, source string) (*Identity, error) {
	who := session.CanonicalEmail(email)
	name := who
	if name == "" {
		name = "malformed" // all of them together: they are nobody
	}
	if err := l.throttle.admit(ctx, name, source, l.now()); err != nil {
		return nil, err
	}
	account, err := l.find(ctx, who)
	if err != nil {
		return nil, err
	}
	hash := l.dummy
	if account != nil {
		hash = string(account.PasswordHash)
	}
	release, err := l.hasher.acquire(ctx)
	if err != nil {
		return nil, err
	}
	good := len(password) <= maxPassword && matches(hash, password)
	release()
	if !good || account == nil || account.Disabled {
		l.throttle.failed(name, source, l.now())
		return nil, ErrPassword
	}
	l.throttle.succeeded(name, source)
	return l.Identity(account), nil
}

// find gives the one account of an address: the file's, else the record's.
// Two records with one address are none.
func (l *Local) find(ctx context.Context, email string) (*session.LocalAccount, error) {
	var fromRecords *session.LocalAccount
	if l.records != nil && email != "" {
		recs, err := l.records.Find(ctx, session.LocalAccountType, session.IndexEmail, email)
		if err != nil && !errors.Is(err, record.ErrNotFound) {
			return nil, &Error{Kind: Temporary, Doing: "look up local accounts", Err: err}
		}
		if len(recs) > 1 {
			l.log.Error("two local accounts share an e-mail address; remove one with postern users", "email", email)
		} else if len(recs) == 1 {
			if fromRecords, err = session.DecodeLocalAccount(recs[0]); err != nil {
				return nil, &Error{Kind: Temporary, Doing: "read a local account", Err: err}
			}
		}
	}
	if a, ok := l.users[email]; ok {
		return &a, nil
	}
	return fromRecords, nil
}

// Identity is the person of an account, with the directory record that makes
// its groups count.
func (l *Local) Identity(a *session.LocalAccount) *Identity {
	id := userID(LocalName, a.ID)
	claims := map[string]any{}
	for k, v := range a.Claims {
		claims[k] = v
	}
	email := session.CanonicalEmail(a.Email)
	claims["sub"], claims["email"], claims["email_verified"] = id, email, true
	if a.Name != "" {
		claims["name"] = a.Name
	}
	groups := append([]string{}, a.Groups...)
	return &Identity{
		UserID: id, Subject: a.ID, Issuer: LocalName, Name: a.Name, Email: email, EmailSaid: true, Claims: session.FlattenClaims(claims),
		Directory: &session.DirectoryUser{ID: id, GroupIDs: groups, DisplayName: a.Name, Email: email},
	}
}

// Accounts lists every account that can sign in now, the file's first. It is
// what the directory records of local accounts are made from.
func (l *Local) Accounts(ctx context.Context) ([]session.LocalAccount, error) {
	seen := map[string]bool{}
	var out []session.LocalAccount
	for _, a := range l.listed {
		seen[a.ID] = true
		if !a.Disabled {
			out = append(out, a)
		}
	}
	if l.records == nil {
		return out, nil
	}
	page, err := l.records.List(ctx, session.LocalAccountType, record.Query{})
	if err != nil {
		return nil, err
	}
	for _, rec := range page.Records {
		a, err := session.DecodeLocalAccount(rec)
		if err != nil {
			return nil, err
		}
		if !a.Disabled && !seen[a.ID] {
			out = append(out, *a)
		}
	}
	return out, nil
}
