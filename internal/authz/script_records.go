package authz

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"unicode"

	"postern/internal/record"
	"postern/internal/session"
)

// recordByID finds a record for a custom script (policy-language.md §11): one
// of the identity records, or of external data. nil: there is none.
func (e *Engine) recordByID(ctx context.Context, typ, id string) (map[string]any, error) {
	switch typ {
	case session.SessionType:
		return scriptRecord(ctx, e.sessions, "the session", id, (*session.Session).Record)
	case session.UserType:
		return scriptRecord(ctx, e.users, "the user", id, (*session.User).Record)
	case session.ServiceAccountType:
		return scriptRecord(ctx, e.accounts, "the service account", id, (*session.ServiceAccount).Record)
	case session.DirectoryUserType:
		return scriptRecord(ctx, e.directory, "the directory user", id, (*session.DirectoryUser).Record)
	case session.DirectoryGroupType:
		return scriptRecord(ctx, e.groups, "the directory group", id, (*session.DirectoryGroup).Record)
	}
	return nil, nil
}

func scriptRecord[T any](ctx context.Context, in record.Lookup[T], what, id string, encode func(*T) (*record.Record, error)) (map[string]any, error) {
	found, err := entry(ctx, in, what, id, 0)
	if err != nil || found == nil {
		return nil, err
	}
	rec, err := encode(found.Value)
	if err != nil {
		return nil, err
	}
	return scriptView(rec.Data)
}

// scriptView gives the data of a record with field names in snake case. The
// names of claims stay as they are, and tokens are left out: a script may
// print, and none needs them.
func scriptView(data json.RawMessage) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return nil, err
	}
	return snakeFields(fields).(map[string]any), nil
}

func snakeFields(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, value := range v {
			switch name {
			case "oauthToken", "raw":
			case "claims":
				out[name] = value
			default:
				out[snake(name)] = snakeFields(value)
			}
		}
		return out
	case []any:
		for i := range v {
			v[i] = snakeFields(v[i])
		}
	}
	return v
}

func snake(name string) string {
	var b strings.Builder
	for _, r := range name {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// scriptHeaders gives the header lines that scripts may see: all but the
// credentials of Postern itself, for a script may print or send what it sees.
func (s *scratch) scriptHeaders(yield func(name, value string) bool) {
	for name, value := range s.view.Headers() {
		switch {
		case strings.EqualFold(name, "X-Pomerium-Authorization"):
			continue
		case strings.EqualFold(name, "Authorization") && authorizationIsOurs(s.view):
			continue
		case strings.EqualFold(name, "Cookie"):
			if value = foreignCookies(value, &s.env.cookies); value == "" {
				continue
			}
		}
		if !yield(name, value) {
			return
		}
	}
}

// foreignCookies is a Cookie header without Postern's own.
func foreignCookies(header string, names *session.CookieNames) string {
	var kept []string
	for pair := range strings.SplitSeq(header, ";") {
		pair = strings.TrimSpace(pair)
		if name, _, _ := strings.Cut(pair, "="); pair != "" && !names.Ours(strings.TrimSpace(name)) {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "; ")
}

// foreignQuery is a query without the session that a program may put there.
func foreignQuery(query string) string {
	ours := false
	eachSessionParam(query, func(string) { ours = true })
	if !ours {
		return query
	}
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		pairIsOurs := false
		eachSessionParam(pair, func(string) { pairIsOurs = true })
		if !pairIsOurs {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}
