package authn

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

// accountSource is a provider that is its own directory.
type accountSource interface {
	Accounts(ctx context.Context) ([]session.LocalAccount, error)
	Identity(a *session.LocalAccount) *identity.Identity
}

// directoryRecords are the records by which groups of a person count.
func directoryRecords(dir *session.DirectoryUser) ([]*record.Record, error) {
	rec, err := dir.Record()
	if err != nil {
		return nil, err
	}
	rec.Version = 0
	out := []*record.Record{rec}
	for _, id := range dir.GroupIDs {
		if id == "" {
			continue
		}
		g := session.DirectoryGroup{ID: id, Name: id}
		rec, err := g.Record()
		if err != nil {
			return nil, err
		}
		out = append(out, rec)
	}
	return out, nil
}

// SyncAccounts makes directory, user and session records say what local
// accounts say now: changed groups, names and claims count at once, and an
// account that is gone or disabled loses its sessions. It is called when a
// generation starts and after accounts were changed.
func (s *Service) SyncAccounts(ctx context.Context) error {
	for _, p := range s.providers {
		if src, ok := p.(accountSource); ok {
			if err := s.syncAccounts(ctx, p, src); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) syncAccounts(ctx context.Context, p identity.Provider, src accountSource) error {
	by := record.System("local_accounts")
	accounts, err := src.Accounts(ctx)
	if err != nil {
		return err
	}
	want := map[string]*identity.Identity{}
	for i := range accounts {
		id := src.Identity(&accounts[i])
		want[id.UserID] = id
	}
	prefix := identity.LocalName + "/"
	page, err := s.store.List(ctx, session.DirectoryUserType, record.Query{
		Match: func(rec *record.Record) bool { return strings.HasPrefix(rec.ID, prefix) },
	})
	if err != nil {
		return err
	}
	have := map[string]*record.Record{}
	for _, rec := range page.Records {
		have[rec.ID] = rec
	}
	for userID := range have {
		if want[userID] != nil {
			continue
		}
		if n, err := s.EndUserSessions(ctx, by, userID); err != nil {
			return err
		} else if n > 0 {
			s.log.InfoContext(ctx, "a local account is gone; its sessions were ended", "user", userID, "sessions", n)
		}
		if err := s.store.Delete(ctx, by, session.DirectoryUserType, userID); err != nil {
			return err
		}
	}
	for userID, id := range want {
		recs, err := directoryRecords(id.Directory)
		if err != nil {
			return err
		}
		if old := have[userID]; old == nil || !sameJSON(old.Data, recs[0].Data) {
			if _, err := s.store.Put(ctx, by, recs...); err != nil {
				return err
			}
		}
		if err := s.syncUser(ctx, by, p, id); err != nil {
			return err
		}
	}
	return nil
}

// syncUser renews the user record and the sessions of somebody who has signed
// in before.
func (s *Service) syncUser(ctx context.Context, by record.Actor, p identity.Provider, id *identity.Identity) error {
	rec, err := s.store.Get(ctx, session.UserType, id.UserID)
	if errors.Is(err, record.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	user, err := session.DecodeUser(rec)
	if err == nil && user.Name == id.Name && user.Email == id.Email && sameClaims(user.Claims, id.Claims) {
		return nil
	}
	if err := s.putUser(ctx, by, p.ID(), id); err != nil {
		return err
	}
	recs, err := s.store.Find(ctx, session.SessionType, session.IndexUser, id.UserID)
	if err != nil && !errors.Is(err, record.ErrNotFound) {
		return err
	}
	for _, rec := range recs {
		err := s.patchSession(ctx, by, rec.ID, func(*session.Session) (map[string]any, error) {
			return map[string]any{"claims": id.Claims}, nil
		})
		if err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

// patchSession sets some fields of a session record, leaving all others as
// somebody else may have written them. A session that is gone stays gone.
func (s *Service) patchSession(ctx context.Context, by record.Actor, id string, fields func(*session.Session) (map[string]any, error)) error {
	_, err := record.Modify(ctx, s.store, by, session.SessionType, id, func(rec *record.Record) error {
		cur, err := session.DecodeSession(rec)
		if err != nil {
			return err
		}
		set, err := fields(cur)
		if err != nil {
			return err
		}
		rec.Data, err = session.PatchData(rec.Data, set)
		return err
	})
	return err
}

// gone says that a record was deleted, by whatever way.
func gone(err error) bool {
	return errors.Is(err, record.ErrNotFound) || errors.Is(err, record.ErrDeleted)
}

func sameJSON(a, b json.RawMessage) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	ja, errA := json.Marshal(x)
	jb, errB := json.Marshal(y)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}

func sameClaims(a, b session.Claims) bool {
	ja, errA := json.Marshal(a)
	jb, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(ja, jb)
}
