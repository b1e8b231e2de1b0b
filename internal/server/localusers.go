package server

import (
	"context"
	"errors"
	"slices"
	"strings"

	"postern/internal/identity"
	"postern/internal/record"
	"postern/internal/session"
)

// fileActor signs what follows from a change of local_users_file.
var fileActor = record.Actor{Kind: "system", ID: "local_users_file", Via: "configuration"}

// syncAccounts brings records in line with local_users_file: groups and
// addresses count from the next request on, and the sessions of people who are
// no longer in the file, or are disabled, end.
func (s *Server) syncAccounts(ctx context.Context, c *compiled) {
	if c.provider.Provider != identity.LocalName && c.provider.Provider != "" && c.provider.Provider != "hosted" {
		return
	}
	living := map[string]session.LocalAccount{}
	page, err := s.store.List(ctx, session.LocalAccountType, record.Query{})
	if err != nil {
		s.log.Warn("local accounts could not be read", "error", err)
		return
	}
	for _, rec := range page.Records {
		if a, err := session.DecodeLocalAccount(rec); err == nil && !a.Disabled {
			living[identity.LocalName+"/"+a.ID] = *a
		}
	}
	for _, a := range c.accounts {
		if !a.Disabled {
			living[identity.LocalName+"/"+a.ID] = a
		}
	}
	for id, a := range living {
		rec, err := s.store.Get(ctx, session.DirectoryUserType, id)
		if err != nil {
			continue // written at the first sign-in
		}
		old, err := session.DecodeDirectoryUser(rec)
		if err != nil || slices.Equal(old.GroupIDs, a.Groups) && old.Email == a.Email && old.DisplayName == a.Name {
			continue
		}
		old.GroupIDs, old.Email, old.DisplayName = a.Groups, a.Email, a.Name
		if rec, err = old.Record(); err == nil {
			_, err = s.store.Update(ctx, fileActor, rec)
		}
		if err != nil && !errors.Is(err, record.ErrConflict) {
			s.log.Warn("the groups of a local account could not be renewed", "user", id, "error", err)
		}
	}
	sessions, err := s.store.List(ctx, session.SessionType, record.Query{})
	if err != nil {
		return
	}
	for _, rec := range sessions.Records {
		x, err := session.DecodeSession(rec)
		if err != nil || !strings.HasPrefix(x.UserID, identity.LocalName+"/") {
			continue
		}
		if _, ok := living[x.UserID]; ok {
			continue
		}
		if err := s.store.Delete(ctx, fileActor, session.SessionType, x.ID); err != nil {
			s.log.Warn("the session of a removed local account could not be ended", "user", x.UserID, "error", err)
		}
	}
}
