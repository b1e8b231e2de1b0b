package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/record"
	"postern/internal/session"
	"postern/internal/store/memory"
)

// Export is a set of records outside a store, for questions about them.
type Export struct{ store *exportReader }

// maxExport bounds an export, in bytes.
const maxExport = 256 << 20

// exportLists are the keys of an export and the record types of their lists.
var exportLists = []struct{ key, typ string }{
	{"users", session.UserType},
	{"directory_users", session.DirectoryUserType},
	{"groups", session.DirectoryGroupType},
	{"sessions", session.SessionType},
	{"service_accounts", session.ServiceAccountType},
}

const exportForm = "users, directory_users, groups, sessions, service_accounts, records"

// ReadExport reads records from YAML or JSON: a data file as People describes
// it, which may also have the lists sessions and service_accounts, and
// modified_at (RFC 3339) in each item. A list records holds {type, id,
// modified_at, data} of any type.
func ReadExport(text []byte) (*Export, error) {
	r := &exportReader{Store: memory.New(), modified: map[[2]string]time.Time{}}
	if len(text) > maxExport {
		return nil, fmt.Errorf("the data is larger than %d MiB; export less of it", maxExport>>20)
	}
	var doc map[string][]map[string]any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("the data is not an object of lists (%s): %w", exportForm, err)
	}
	known := map[string]bool{"records": true}
	for _, l := range exportLists {
		known[l.key] = true
		for i, item := range doc[l.key] {
			if err := r.addItem(l.typ, item); err != nil {
				return nil, fmt.Errorf("%s[%d]: %w", l.key, i, err)
			}
		}
	}
	for i, item := range doc["records"] {
		typ, _ := item["type"].(string)
		data, _ := item["data"].(map[string]any)
		if typ == "" || data == nil {
			return nil, fmt.Errorf("records[%d]: needs type, id and data", i)
		}
		if err := r.add(typ, item["id"], item["modified_at"], data); err != nil {
			return nil, fmt.Errorf("records[%d]: %w", i, err)
		}
	}
	for key := range doc {
		if !known[key] {
			return nil, fmt.Errorf("unknown list %q: use %s", key, exportForm)
		}
	}
	return &Export{r}, nil
}

// addItem takes an item of one of the lists, as a person may have written it.
func (r *exportReader) addItem(typ string, item map[string]any) error {
	id := item["id"]
	if claims, ok := item["claims"].(map[string]any); ok {
		item["claims"] = session.FlattenClaims(claims)
	}
	if typ == session.UserType {
		if id == nil {
			id = item["email"]
		}
		if groups, ok := item["groups"]; ok {
			delete(item, "groups")
			if err := r.add(session.DirectoryUserType, id, item["modified_at"], map[string]any{"group_ids": groups}); err != nil {
				return err
			}
		}
	}
	return r.add(typ, id, item["modified_at"], item)
}

// exportReader keeps the times that the export gives, which a store would set
// itself.
type exportReader struct {
	record.Store
	modified map[[2]string]time.Time
}

func (r *exportReader) add(typ string, id, modified any, data map[string]any) error {
	name, ok := id.(string)
	if !ok || name == "" {
		return errors.New("needs an id, a string")
	}
	own := map[string]any{}
	for k, v := range data {
		if k != "modified_at" {
			own[k] = v
		}
	}
	b, err := json.Marshal(own)
	if err != nil {
		return fmt.Errorf("%q cannot be read: %w", name, err)
	}
	var at time.Time
	switch v := modified.(type) {
	case nil:
	case time.Time:
		at = v
	case string:
		if at, err = time.Parse(time.RFC3339, v); err != nil {
			return fmt.Errorf("modified_at of %q is not a time such as 2026-03-02T10:00:00Z", name)
		}
	default:
		return fmt.Errorf("modified_at of %q is not a time such as 2026-03-02T10:00:00Z", name)
	}
	rec := &record.Record{Type: typ, ID: name, Data: b}
	if err := readable(rec); err != nil {
		return err
	}
	if _, err := r.Put(context.Background(), record.System("export"), rec); err != nil {
		return err
	}
	r.modified[[2]string{typ, name}] = at
	return nil
}

// readable refuses a record that would be passed over later.
func readable(rec *record.Record) (err error) {
	switch rec.Type {
	case session.UserType:
		_, err = session.DecodeUser(rec)
	case session.DirectoryUserType:
		_, err = session.DecodeDirectoryUser(rec)
	case session.DirectoryGroupType:
		_, err = session.DecodeDirectoryGroup(rec)
	case session.SessionType:
		_, err = session.DecodeSession(rec)
	case session.ServiceAccountType:
		_, err = session.DecodeServiceAccount(rec)
	}
	return err
}

func (r *exportReader) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	rec, err := r.Store.Get(ctx, typ, id)
	if err != nil {
		return nil, err
	}
	own := *rec
	own.ModifiedAt = r.modified[[2]string{typ, id}]
	return &own, nil
}
