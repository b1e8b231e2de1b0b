package authz

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"postern/internal/policy"
	"postern/internal/record"
	"postern/internal/session"
)

// who is a caller put together from records. It is immutable; a change of any
// record makes a new one, so two equal pointers are the same person in the
// same state, and comparing them compares everything that went in.
type who struct {
	caller *session.Caller

	// The entries it was made from: a replica hands out the same pointer until
	// a record changes.
	session, parent, impersonated *record.Entry[session.Session]
	account                       *record.Entry[session.ServiceAccount]
	user                          *record.Entry[session.User]
	directory                     *record.Entry[session.DirectoryUser]
	groupsEpoch                   uint64
	described                     bool // made up for a question

	// What policy looks at (policy-language.md §5).
	id, userID, email string
	claims            map[string][]any
	groups            []string
	devices           []policy.Device
	until             time.Time
	routingKey        string
}

var anonymous = &who{caller: &session.Caller{}}

// errAnonymous says that a good credential leads to nobody (any more).
var errAnonymous = errors.New("nobody")

// unavailable wraps whatever keeps a record from being read: the answer is
// 503, never a guess.
func unavailable(what string, err error) error {
	return fmt.Errorf("%s cannot be read: %w", what, err)
}

// entry looks a record up. A record that is known not to exist is nil.
func entry[T any](ctx context.Context, in record.Lookup[T], what, id string, min uint64) (*record.Entry[T], error) {
	e, err := in.Lookup(ctx, id, min)
	switch {
	case err == nil && e != nil && e.Value != nil:
		return e, nil
	case errors.Is(err, record.ErrNotFound), errors.Is(err, record.ErrWrongServer):
		return nil, nil
	case err == nil:
		err = record.ErrUnavailable // an entry without a value tells nothing
	}
	return nil, unavailable(what, err)
}

// resolve finds who a credential stands for. The error is errAnonymous, or
// says which record type could not be read.
func (e *Engine) resolve(ctx context.Context, c *Credential, now time.Time) (*who, error) {
	var w who
	switch {
	case c.Handle != nil:
		if err := e.resolveSession(ctx, &w, c.Handle, now); err != nil {
			return nil, err
		}
	case c.ServiceAccountID != "":
		acct, err := entry(ctx, e.accounts, "the service account", c.ServiceAccountID, 0)
		if err != nil {
			return nil, err
		}
		if acct == nil || !acct.Value.Usable(now) {
			return nil, errAnonymous
		}
		w.account, w.id, w.userID, w.until = acct, acct.ID, acct.Value.UserID, acct.Value.ExpiresAt
	default:
		return nil, errAnonymous
	}
	if w.userID != "" {
		var err error
		if w.user, err = entry(ctx, e.users, "the user", w.userID, 0); err != nil {
			return nil, err
		}
		if w.directory, err = entry(ctx, e.directory, "the directory user", w.userID, 0); err != nil {
			return nil, err
		}
		if err := e.readOwnWrites(ctx, &w, now); err != nil {
			return nil, err
		}
	}
	w.groupsEpoch = e.groupsEpoch.Load()
	var last *who
	if c.memo != nil {
		last = c.memo.Load()
	}
	if last != nil && last.same(&w) && (w.directory == nil || len(w.directory.Value.GroupIDs) == 0 || e.groups.Ready() == nil) {
		return last, nil
	}
	made := &who{}
	*made = w
	if err := e.complete(ctx, made, c.Handle); err != nil {
		return nil, err
	}
	if c.memo != nil {
		c.memo.Store(made)
	}
	return made, nil
}

// resolveSession follows a handle to its session, through impersonation.
func (e *Engine) resolveSession(ctx context.Context, w *who, h *session.Handle, now time.Time) error {
	// The handle names the version that its session was written as: a copy
	// that is behind it reads through (trap 23).
	s, err := entry(ctx, e.sessions, "the session", h.ID, h.RecordVersion)
	if err != nil {
		return err
	}
	if s == nil || s.Value.Expired(now) {
		return errAnonymous
	}
	w.session, w.id, w.until = s, s.ID, s.Value.ExpiresAt
	evaluated := s.Value
	if id := s.Value.ParentSessionID; id != "" {
		// A program's session ends with the browser session it came from.
		if w.parent, err = entry(ctx, e.sessions, "the session", id, 0); err != nil {
			return err
		}
		if w.parent == nil || w.parent.Value.Expired(now) {
			return errAnonymous
		}
		w.until = earlier(w.until, w.parent.Value.ExpiresAt)
	}
	if id := s.Value.ImpersonateSessionID; id != "" {
		if w.impersonated, err = entry(ctx, e.sessions, "the session", id, 0); err != nil {
			return err
		}
		if w.impersonated == nil || w.impersonated.Value.Expired(now) {
			return errAnonymous
		}
		evaluated = w.impersonated.Value
		w.until = earlier(w.until, evaluated.ExpiresAt)
	}
	w.userID = evaluated.UserID
	return nil
}

// earlier gives the earlier of two times, the zero one being never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// youth is how long after a sign-in the copies of users and directory may lag
// behind the session that was written together with them.
const youth = 10 * time.Second

// readOwnWrites reads the user and directory records from the store itself
// when a session was just made and a copy does not hold them yet: the person
// who signed in a moment ago must not be refused for want of an e-mail.
func (e *Engine) readOwnWrites(ctx context.Context, w *who, now time.Time) error {
	if e.store == nil || w.session == nil || w.user != nil && w.directory != nil ||
		now.Sub(w.session.Value.IssuedAt).Abs() > youth {
		return nil
	}
	var err error
	if w.user == nil {
		if w.user, err = readThrough(ctx, e.store, session.UserType, w.userID, session.DecodeUser); err != nil {
			return err
		}
	}
	if w.directory == nil {
		w.directory, err = readThrough(ctx, e.store, session.DirectoryUserType, w.userID, session.DecodeDirectoryUser)
	}
	return err
}

func readThrough[T any](ctx context.Context, from record.Reader, typ, id string, decode record.Decode[T]) (*record.Entry[T], error) {
	rec, err := from.Get(ctx, typ, id)
	if errors.Is(err, record.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, unavailable("a record of type "+typ, err)
	}
	v, err := decode(rec)
	if err != nil {
		return nil, unavailable("a record of type "+typ, err)
	}
	return &record.Entry[T]{ID: rec.ID, Version: rec.Version, ModifiedAt: rec.ModifiedAt, Namespace: rec.Namespace, Value: v}, nil
}

// same tells whether w was made from the same state of every record.
func (w *who) same(x *who) bool {
	return w.session == x.session && w.parent == x.parent && w.impersonated == x.impersonated &&
		w.account == x.account && w.user == x.user && w.directory == x.directory &&
		w.groupsEpoch == x.groupsEpoch
}

// complete fills in what policy and upstreams see.
func (e *Engine) complete(ctx context.Context, w *who, h *session.Handle) error {
	c := &session.Caller{ID: w.id, Handle: h}
	var claims session.Claims
	switch {
	case w.account != nil:
		c.ServiceAccount = w.account.Value
	case w.impersonated != nil:
		c.Session, c.ImpersonatedBy = w.impersonated.Value, w.session.Value
	default:
		c.Session = w.session.Value
	}
	if c.Session != nil {
		claims = c.Session.Claims
	}
	if w.user != nil {
		c.User = w.user.Value
	}
	if w.directory != nil {
		c.Directory = w.directory.Value
		w.groups = c.Directory.GroupIDs
		for _, id := range w.groups {
			g, err := entry(ctx, e.groups, "the group", id, 0)
			if err != nil {
				return err
			}
			if g != nil {
				c.Groups = append(c.Groups, g.Value)
			}
		}
	}
	w.caller = c
	w.email = c.Email()
	w.claims = claims
	if c.User != nil && len(c.User.Claims) > 0 {
		// The user record's list replaces the session's of the same name.
		merged := make(map[string][]any, len(claims)+len(c.User.Claims))
		for k, v := range claims {
			merged[k] = v
		}
		for k, v := range c.User.Claims {
			merged[k] = v
		}
		w.claims = merged
	}
	if c.Session != nil {
		if e.devices != nil {
			d, err := e.devices(ctx, c)
			if err != nil {
				return unavailable("a device", err)
			}
			w.devices = d
		} else {
			for _, d := range c.Session.DeviceCredentials {
				if d.ID != "" && !d.Unavailable {
					w.devices = append(w.devices, policy.Device{ID: d.ID, Type: d.TypeID})
				}
			}
		}
	}
	sum := sha256.Sum256([]byte(w.id))
	w.routingKey = hex.EncodeToString(sum[:])
	return nil
}
