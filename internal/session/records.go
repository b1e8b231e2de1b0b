package session

import (
	"encoding/json"
	"errors"
	"fmt"

	"postern/internal/record"
)

// Record types (wire-contract.md §11).
const (
	SessionType        = "type.googleapis.com/session.Session"
	UserType           = "type.googleapis.com/user.User"
	ServiceAccountType = "type.googleapis.com/user.ServiceAccount"
	DirectoryUserType  = "pomerium.io/DirectoryUser"
	DirectoryGroupType = "pomerium.io/DirectoryGroup"
	LocalAccountType   = "postern/LocalAccount"
)

// Secondary indexes of sessions (decision 20).
const (
	// IndexIssuerSID finds sessions by SIDIndex(issuer, sid).
	IndexIssuerSID = "issuer_sid"
	// IndexIssuerSubject finds sessions by SubjectIndex(issuer, subject).
	IndexIssuerSubject = "issuer_subject"
	// IndexUser finds sessions by user id.
	IndexUser = "user"
	// IndexParent finds the program sessions made from a browser session.
	IndexParent = "parent"
	// IndexEmail finds local accounts by lower-case e-mail.
	IndexEmail = "email"
)

// SIDIndex is the IndexIssuerSID value of a session at a provider.
func SIDIndex(issuer, sid string) string { return issuer + "\n" + sid }

// SubjectIndex is the IndexIssuerSubject value of a person at a provider.
func SubjectIndex(issuer, subject string) string { return issuer + "\n" + subject }

// TypeOptions are the store options of this package's record types. Ids of
// sessions and service accounts, once deleted, are never written again:
// handles have no expiry, so nothing else would keep an old one dead
// (decision 19).
func TypeOptions() map[string]record.Options {
	return map[string]record.Options{
		SessionType: {
			Indexes:        []string{IndexIssuerSID, IndexIssuerSubject, IndexUser, IndexParent},
			Tombstone:      record.Forever,
			EndsWithServer: true,
		},
		UserType:           {},
		ServiceAccountType: {Tombstone: record.Forever, Indexes: []string{IndexUser}},
		DirectoryUserType:  {},
		DirectoryGroupType: {},
		LocalAccountType:   {Indexes: []string{IndexEmail}},
	}
}

func encode(typ, id string, v any, index map[string]string) (*record.Record, error) {
	if id == "" {
		return nil, fmt.Errorf("a %s without an id cannot be stored: give it one", typ)
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%s %q cannot be encoded: %w", typ, id, err)
	}
	return &record.Record{Type: typ, ID: id, Data: data, Index: index}, nil
}

var errDeletedRecord = errors.New("the record is deleted")

// decode refuses records that are deleted, of another type, or whose data
// names another id than the record does.
func decode[T any](rec *record.Record, typ string, id func(*T) *string) (*T, error) {
	switch {
	case rec == nil:
		return nil, record.ErrNotFound
	case rec.Deleted():
		return nil, fmt.Errorf("%s %q: %w", typ, rec.ID, errDeletedRecord)
	case rec.Type != typ:
		return nil, fmt.Errorf("record is a %s, not a %s", rec.Type, typ)
	}
	v := new(T)
	if err := json.Unmarshal(rec.Data, v); err != nil {
		// The decoder's message may quote data, which may hold tokens.
		return nil, fmt.Errorf("%s %q is malformed: delete it", typ, rec.ID)
	}
	switch p := id(v); *p {
	case "":
		*p = rec.ID
	case rec.ID:
	default:
		return nil, fmt.Errorf("%s %q names another id in its data: delete it", typ, rec.ID)
	}
	return v, nil
}

// Record gives the record of s, with its index values. Its Version is the one
// that s was read from, so that record.Writer.Update compares against it.
func (s *Session) Record() (*record.Record, error) {
	index := map[string]string{}
	if s.UserID != "" {
		index[IndexUser] = s.UserID
	}
	if s.ParentSessionID != "" {
		index[IndexParent] = s.ParentSessionID
	}
	if t := s.IDToken; t != nil && t.Issuer != "" {
		if t.Subject != "" {
			index[IndexIssuerSubject] = SubjectIndex(t.Issuer, t.Subject)
		}
		if s.IDPSessionID != "" {
			index[IndexIssuerSID] = SIDIndex(t.Issuer, s.IDPSessionID)
		}
	}
	rec, err := encode(SessionType, s.ID, s, index)
	if err == nil {
		rec.Version = s.RecordVersion
	}
	return rec, err
}

// DecodeSession reads a session record.
func DecodeSession(rec *record.Record) (*Session, error) {
	s, err := decode(rec, SessionType, func(s *Session) *string { return &s.ID })
	if err == nil {
		s.RecordVersion = rec.Version
	}
	return s, err
}

// Record gives the record of u.
func (u *User) Record() (*record.Record, error) {
	rec, err := encode(UserType, u.ID, u, nil)
	if err == nil {
		rec.Version = u.RecordVersion
	}
	return rec, err
}

// DecodeUser reads a user record.
func DecodeUser(rec *record.Record) (*User, error) {
	u, err := decode(rec, UserType, func(u *User) *string { return &u.ID })
	if err == nil {
		u.RecordVersion = rec.Version
	}
	return u, err
}

// Record gives the record of a.
func (a *ServiceAccount) Record() (*record.Record, error) {
	index := map[string]string{}
	if a.UserID != "" {
		index[IndexUser] = a.UserID
	}
	rec, err := encode(ServiceAccountType, a.ID, a, index)
	if err == nil {
		rec.Version, rec.Namespace = a.RecordVersion, a.NamespaceID
	}
	return rec, err
}

// DecodeServiceAccount reads a service-account record.
func DecodeServiceAccount(rec *record.Record) (*ServiceAccount, error) {
	a, err := decode(rec, ServiceAccountType, func(a *ServiceAccount) *string { return &a.ID })
	if err == nil {
		a.RecordVersion = rec.Version
	}
	return a, err
}

// Record gives the record of d.
func (d *DirectoryUser) Record() (*record.Record, error) {
	if d.GroupIDs == nil {
		d = &DirectoryUser{ID: d.ID, GroupIDs: []string{}, DisplayName: d.DisplayName, Email: d.Email, RecordVersion: d.RecordVersion}
	}
	rec, err := encode(DirectoryUserType, d.ID, d, nil)
	if err == nil {
		rec.Version = d.RecordVersion
	}
	return rec, err
}

// DecodeDirectoryUser reads a directory user record.
func DecodeDirectoryUser(rec *record.Record) (*DirectoryUser, error) {
	d, err := decode(rec, DirectoryUserType, func(d *DirectoryUser) *string { return &d.ID })
	if err == nil {
		d.RecordVersion = rec.Version
	}
	return d, err
}

// Record gives the record of g.
func (g *DirectoryGroup) Record() (*record.Record, error) {
	rec, err := encode(DirectoryGroupType, g.ID, g, nil)
	if err == nil {
		rec.Version = g.RecordVersion
	}
	return rec, err
}

// DecodeDirectoryGroup reads a directory group record.
func DecodeDirectoryGroup(rec *record.Record) (*DirectoryGroup, error) {
	g, err := decode(rec, DirectoryGroupType, func(g *DirectoryGroup) *string { return &g.ID })
	if err == nil {
		g.RecordVersion = rec.Version
	}
	return g, err
}

// Record gives the record of a.
func (a *LocalAccount) Record() (*record.Record, error) {
	index := map[string]string{}
	if a.Email != "" {
		index[IndexEmail] = CanonicalEmail(a.Email)
	}
	rec, err := encode(LocalAccountType, a.ID, a, index)
	if err == nil {
		rec.Version = a.RecordVersion
	}
	return rec, err
}

// DecodeLocalAccount reads a local account record.
func DecodeLocalAccount(rec *record.Record) (*LocalAccount, error) {
	a, err := decode(rec, LocalAccountType, func(a *LocalAccount) *string { return &a.ID })
	if err == nil {
		a.RecordVersion = rec.Version
	}
	return a, err
}

// PatchData sets top-level fields of a record's data and leaves all others as
// they are, also those this version does not know. A nil value removes the
// field. Writers of a few fields use it with record.Writer.Update, so that
// they never write over somebody else's (wire-contract.md §15, trap 22).
func PatchData(data json.RawMessage, set map[string]any) (json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, errors.New("record data is malformed: delete the record")
	}
	for name, v := range set {
		if v == nil {
			delete(fields, name)
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("field %q cannot be encoded: %w", name, err)
		}
		fields[name] = raw
	}
	return json.Marshal(fields)
}
