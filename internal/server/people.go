package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy/impact"
	"postern/internal/record"
	"postern/internal/session"
)

// People are the users and groups that an installation knows, without tokens:
// what questions about policies are asked over. It is what GET /v1/people
// answers, and what a data file holds.
type People struct {
	Users          []PersonRecord    `json:"users"`
	DirectoryUsers []DirectoryRecord `json:"directory_users"`
	Groups         []GroupRecord     `json:"groups"`
}

// PersonRecord is a user record. Groups is for files written by hand: it
// stands for a directory record.
type PersonRecord struct {
	ID     string         `json:"id"`
	Name   string         `json:"name,omitempty"`
	Email  string         `json:"email,omitempty"`
	Claims map[string]any `json:"claims,omitempty"`
	Groups *[]string      `json:"groups,omitempty"`
}

// DirectoryRecord is what a directory knows of a user.
type DirectoryRecord struct {
	ID          string   `json:"id"`
	Email       string   `json:"email,omitempty"`
	DisplayName string   `json:"display_name,omitempty"`
	GroupIDs    []string `json:"group_ids"`
}

// GroupRecord is a group of a directory.
type GroupRecord struct {
	ID    string `json:"id"`
	Name  string `json:"name,omitempty"`
	Email string `json:"email,omitempty"`
}

// ParsePeople reads a data file, YAML or JSON.
func ParsePeople(text []byte) (*People, error) {
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("not YAML or JSON: %w", err)
	}
	b, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("keys must be words: %w", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.DisallowUnknownFields()
	p := &People{}
	if err := dec.Decode(p); err != nil {
		return nil, fmt.Errorf("not a list of people (users, directory_users, groups): %w", err)
	}
	for i, u := range p.Users {
		if u.ID == "" && u.Email == "" {
			return nil, fmt.Errorf("users[%d] has neither id nor email: give both, as far as they are known", i)
		}
	}
	return p, nil
}

// Persons joins the records as a decision would (policy-language.md §5),
// sorted by e-mail address and id. Claims are those of the user record.
func (p *People) Persons() []impact.Person {
	byID := map[string]*impact.Person{}
	var order []*impact.Person
	at := func(id, email string) *impact.Person {
		key := id
		if key == "" {
			key = "\x00" + email
		}
		if byID[key] == nil {
			byID[key] = &impact.Person{ID: id}
			order = append(order, byID[key])
		}
		return byID[key]
	}
	for _, u := range p.Users {
		x := at(u.ID, u.Email)
		if u.ID == "" {
			x.ID = u.Email // somebody written by hand; a user id is never empty
		}
		x.Email, x.Name, x.Claims = u.Email, u.Name, session.FlattenClaims(u.Claims)
		if u.Groups != nil {
			x.HasDirectory, x.Groups = true, *u.Groups
		}
	}
	for _, d := range p.DirectoryUsers {
		x := at(d.ID, d.Email)
		x.HasDirectory, x.Groups = true, d.GroupIDs
		if d.Email != "" {
			x.Email = d.Email
		}
		if x.Name == "" {
			x.Name = d.DisplayName
		}
	}
	out := make([]impact.Person, len(order))
	for i, x := range order {
		out[i] = *x
	}
	slices.SortFunc(out, func(a, b impact.Person) int {
		if c := strings.Compare(a.Email, b.Email); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// people answers GET /v1/people.
func (c *control) people(w http.ResponseWriter, r *http.Request) {
	p, err := c.known(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, p)
}

func (c *control) known(ctx context.Context) (*People, error) {
	p := &People{Users: []PersonRecord{}, DirectoryUsers: []DirectoryRecord{}, Groups: []GroupRecord{}}
	each := func(typ string, take func(*record.Record)) error {
		page, err := c.s.store.List(ctx, typ, record.Query{})
		if err != nil {
			return err
		}
		for _, rec := range page.Records {
			take(rec)
		}
		return nil
	}
	if err := each(session.UserType, func(rec *record.Record) {
		if u, err := session.DecodeUser(rec); err == nil {
			one := PersonRecord{ID: u.ID, Name: u.Name, Email: u.Email, Claims: map[string]any{}}
			for name, list := range u.Claims {
				one.Claims[name] = list
			}
			p.Users = append(p.Users, one)
		}
	}); err != nil {
		return nil, err
	}
	if err := each(session.DirectoryUserType, func(rec *record.Record) {
		if d, err := session.DecodeDirectoryUser(rec); err == nil {
			p.DirectoryUsers = append(p.DirectoryUsers, DirectoryRecord{ID: d.ID, Email: d.Email, DisplayName: d.DisplayName, GroupIDs: append([]string{}, d.GroupIDs...)})
		}
	}); err != nil {
		return nil, err
	}
	err := each(session.DirectoryGroupType, func(rec *record.Record) {
		if g, err := session.DecodeDirectoryGroup(rec); err == nil {
			p.Groups = append(p.Groups, GroupRecord{ID: g.ID, Name: g.Name, Email: g.Email})
		}
	})
	return p, err
}
