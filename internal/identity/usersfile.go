package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/session"
)

type fileUser struct {
	ID           string         `yaml:"id"`
	Email        string         `yaml:"email"`
	Name         string         `yaml:"name,omitempty"`
	Groups       []string       `yaml:"groups,omitempty"`
	Claims       map[string]any `yaml:"claims,omitempty"`
	PasswordHash string         `yaml:"password_hash"`
	Disabled     bool           `yaml:"disabled,omitempty"`
}

// ParseUsers reads a local_users_file: a YAML or JSON list of accounts (id,
// email, name, groups, claims, password_hash, disabled), or a mapping with
// that list under users. Unknown fields, bad ids, malformed or doubled
// addresses and bad hashes are errors naming the account.
func ParseUsers(text []byte) ([]session.LocalAccount, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	users, err := decodeUsers(text)
	if err != nil {
		return nil, fmt.Errorf("local_users_file is malformed: %w", err)
	}
	ids, emails := map[string]bool{}, map[string]bool{}
	var out []session.LocalAccount
	for i, u := range users {
		bad := func(what string) error {
			return fmt.Errorf("local_users_file: account %d (%q) %s", i+1, u.ID, what)
		}
		email := session.CanonicalEmail(u.Email)
		switch {
		case !GoodAccountID(u.ID):
			return nil, bad("needs an id of letters, digits, '.', '_' and '-', at most 128 of them")
		case ids[u.ID]:
			return nil, bad("has the id of another account; choose another")
		case email == "":
			return nil, bad("has no well-formed e-mail address; correct it")
		case emails[email]:
			return nil, bad("has the e-mail address of another account; keep one")
		}
		if _, err := parsePHC(u.PasswordHash); err != nil {
			return nil, bad("has a password_hash that " + err.Error())
		}
		ids[u.ID], emails[email] = true, true
		out = append(out, session.LocalAccount{
			ID: u.ID, Email: email, Name: u.Name, Groups: u.Groups, Claims: u.Claims,
			PasswordHash: session.Token(u.PasswordHash), Disabled: u.Disabled,
		})
	}
	return out, nil
}

func decodeUsers(text []byte) ([]fileUser, error) {
	strict := func(into any) error {
		d := yaml.NewDecoder(bytes.NewReader(text))
		d.KnownFields(true)
		if err := d.Decode(into); err != nil {
			return err
		}
		if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
			return errors.New("there is more than one document; keep one")
		}
		return nil
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 1 && doc.Content[0].Kind == yaml.MappingNode {
		var m struct {
			Users []fileUser `yaml:"users"`
		}
		err := strict(&m)
		return m.Users, err
	}
	var list []fileUser
	err := strict(&list)
	return list, err
}

// FormatUsers writes a local_users_file that ParseUsers reads.
func FormatUsers(accounts []session.LocalAccount) ([]byte, error) {
	list := make([]fileUser, 0, len(accounts))
	for _, a := range accounts {
		list = append(list, fileUser{a.ID, a.Email, a.Name, a.Groups, a.Claims, string(a.PasswordHash), a.Disabled})
	}
	return yaml.Marshal(map[string]any{"users": list})
}

// GoodAccountID says whether s can be the id of a local account: it becomes
// part of a user id, so it holds nothing that could make two ids look alike.
func GoodAccountID(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '.' || r == '_' || r == '-')
	}) < 0
}
