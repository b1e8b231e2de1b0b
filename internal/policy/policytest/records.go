package policytest

import (
	"cmp"
	"maps"
	"net/netip"
	"time"
)

// RecordByID finds one of the case's records by its id or, if the id is an
// address, by the longest prefix in $index.cidr that holds it, as custom
// scripts do (policy-language.md §11). nil: there is none.
func (c *Case) RecordByID(typ, id string) map[string]any {
	ip, _ := netip.ParseAddr(id)
	var found map[string]any
	longest := -1
	for i := range c.Records {
		r := &c.Records[i]
		if r.Type != typ {
			continue
		}
		if r.ID == id {
			return present(r.Data)
		}
		index, _ := r.Data["$index"].(map[string]any)
		cidr, _ := index["cidr"].(string)
		if p, err := netip.ParsePrefix(cidr); err == nil && ip.IsValid() && p.Contains(ip.Unmap()) && p.Bits() > longest {
			found, longest = present(r.Data), p.Bits()
		}
	}
	return found
}

// present tells a record without fields from none.
func present(data map[string]any) map[string]any {
	if data == nil {
		return map[string]any{}
	}
	return data
}

// identityRecord gives the records that the people of a case have.
func (c *Case) identityRecord(typ, id string) map[string]any {
	users := []*User{}
	if c.User != nil {
		users = append(users, c.User)
	}
	s := c.Session
	if s == nil {
		s = &Session{}
	}
	if other := s.Impersonate; other != nil && other.User != nil {
		users = append(users, other.User)
	}
	at := func(m *Moment) any {
		if m == nil {
			return nil
		}
		return m.UTC().Format(time.RFC3339Nano)
	}
	claims := func(values map[string]any) map[string]any {
		lists, out := map[string][]any{}, map[string]any{}
		flatten(lists, "", values)
		for name, list := range lists {
			out[name] = list
		}
		return out
	}
	record := func(fields map[string]any) map[string]any {
		maps.DeleteFunc(fields, func(_ string, v any) bool { return v == nil || v == "" })
		return fields
	}
	switch typ {
	case "type.googleapis.com/session.Session":
		if c.User == nil || c.ServiceAccount != nil {
			return nil
		}
		if other := s.Impersonate; other != nil && other.User != nil && id == cmp.Or(other.Session, "impersonated") {
			return record(map[string]any{"id": id, "user_id": other.User.ID, "claims": claims(other.Claims), "expires_at": at(other.ExpiresAt)})
		}
		if id == cmp.Or(s.ID, "session") {
			return record(map[string]any{"id": id, "user_id": c.User.ID, "claims": claims(s.Claims), "expires_at": at(s.ExpiresAt)})
		}
	case "type.googleapis.com/user.ServiceAccount":
		if a := c.ServiceAccount; a != nil && id == cmp.Or(a.ID, "service-account") {
			return record(map[string]any{"id": id, "user_id": a.UserID, "expires_at": at(a.ExpiresAt)})
		}
	case "type.googleapis.com/user.User":
		for _, u := range users {
			if u.ID == id && u.HasRecord() {
				return record(map[string]any{"id": id, "email": u.Email, "name": u.Name, "claims": claims(u.Claims)})
			}
		}
	case "pomerium.io/DirectoryUser":
		for _, u := range users {
			if email, groups, ok := u.DirectoryRecord(); ok && u.ID == id {
				ids := make([]any, len(groups))
				for i, g := range groups {
					ids[i] = g
				}
				return record(map[string]any{"id": id, "email": email, "group_ids": ids})
			}
		}
	}
	return nil
}
