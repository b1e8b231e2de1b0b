package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

// AccountChange creates a local account or changes one: what is empty stays.
type AccountChange struct {
	AccountInfo
	Password string `json:"password,omitempty"`
	// Create says that the account must not exist yet.
	Create bool `json:"create,omitempty"`
}

// minPassword is the least length of a password in characters (NIST SP
// 800-63B §3.1.1.2: length is what counts).
const minPassword = 8

// Apply carries the change out on a list of accounts.
func (c AccountChange) Apply(list []session.LocalAccount) ([]session.LocalAccount, error) {
	email := session.CanonicalEmail(c.Email)
	if email == "" {
		return nil, fmt.Errorf("%q is not a well-formed e-mail address: give one such as ada@example.com", c.Email)
	}
	at := slices.IndexFunc(list, func(a session.LocalAccount) bool { return strings.EqualFold(a.Email, email) })
	switch {
	case c.Create && at >= 0:
		return nil, fmt.Errorf("%s has an account already; use postern users password to set a new password", email)
	case !c.Create && at < 0:
		return nil, fmt.Errorf("%s has no account; use postern users add", email)
	case c.Create && c.Password == "":
		return nil, errors.New("a new account needs a password")
	}
	if c.Password != "" && len([]rune(c.Password)) < minPassword {
		return nil, fmt.Errorf("the password has fewer than %d characters; choose a longer one", minPassword)
	}
	now := time.Now().UTC()
	if c.Create {
		id := c.ID
		if id == "" {
			id = accountID(email, list)
		}
		list = append(slices.Clone(list), session.LocalAccount{ID: id, Email: email, CreatedAt: now})
		at = len(list) - 1
	} else {
		list = slices.Clone(list)
	}
	a := &list[at]
	a.UpdatedAt = now
	if c.Name != "" {
		a.Name = c.Name
	}
	if c.Groups != nil {
		a.Groups = c.Groups
	}
	a.Disabled = a.Disabled || c.Disabled // a new password opens nothing
	if c.Password != "" {
		hash, err := identity.HashPassword(c.Password)
		if err != nil {
			return nil, err
		}
		a.PasswordHash = hash
	}
	return list, nil
}

// accountID makes an id that is readable, from the part before the @.
func accountID(email string, list []session.LocalAccount) string {
	name, _, _ := strings.Cut(email, "@")
	base := strings.Map(func(r rune) rune {
		if r == '.' || r == '_' || r == '-' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' {
			return r
		}
		return '-'
	}, strings.ToLower(name))
	if !identity.GoodAccountID(base) {
		base = "account"
	}
	for n := 1; ; n++ {
		id := base
		if n > 1 {
			id = fmt.Sprintf("%s-%d", base, n)
		}
		if !slices.ContainsFunc(list, func(a session.LocalAccount) bool { return a.ID == id }) {
			return id
		}
	}
}

func (c *control) localAccounts(ctx context.Context) ([]session.LocalAccount, error) {
	page, err := c.s.store.List(ctx, session.LocalAccountType, record.Query{})
	if err != nil {
		return nil, err
	}
	var out []session.LocalAccount
	for _, rec := range page.Records {
		if a, err := session.DecodeLocalAccount(rec); err == nil {
			out = append(out, *a)
		}
	}
	return out, nil
}

// syncAccounts lets a change of accounts count at once, before the answer: who
// was removed or disabled is signed out.
func (s *Server) syncAccounts(ctx context.Context) {
	g := s.current.Load()
	if g == nil {
		return
	}
	if err := g.authn.SyncAccounts(context.WithoutCancel(ctx)); err != nil {
		s.log.Warn("changed accounts do not count everywhere yet; it is tried again", "error", err)
	}
}

// putUser creates or changes an account. The first account of an installation
// comes this way only (decision 15).
func (c *control) putUser(w http.ResponseWriter, r *http.Request) {
	var change AccountChange
	if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("the body is not the JSON that is expected: %w", err))
		return
	}
	list, err := c.localAccounts(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	changed, err := change.Apply(list)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	i := slices.IndexFunc(changed, func(a session.LocalAccount) bool {
		return strings.EqualFold(a.Email, session.CanonicalEmail(change.Email))
	})
	rec, err := changed[i].Record()
	if err == nil {
		_, err = c.s.store.Update(r.Context(), actorOf(r), rec)
	}
	switch {
	case errors.Is(err, record.ErrConflict):
		refuse(w, http.StatusConflict, errors.New("somebody else changed this account at the same time; try again"))
	case err != nil:
		refuse(w, http.StatusServiceUnavailable, err)
	default:
		c.s.syncAccounts(r.Context())
		answer(w, map[string]string{"id": changed[i].ID})
	}
}

func (c *control) deleteUser(w http.ResponseWriter, r *http.Request) {
	var q struct{ Email string }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("the body is not the JSON that is expected: %w", err))
		return
	}
	list, err := c.localAccounts(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	i := slices.IndexFunc(list, func(a session.LocalAccount) bool { return strings.EqualFold(a.Email, q.Email) || a.ID == q.Email })
	if i < 0 {
		refuse(w, http.StatusNotFound, fmt.Errorf("there is no account %s; see postern users list", q.Email))
		return
	}
	if err := c.s.store.Delete(r.Context(), actorOf(r), session.LocalAccountType, list[i].ID); err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	c.s.syncAccounts(r.Context())
	answer(w, map[string]bool{"ok": true})
}
