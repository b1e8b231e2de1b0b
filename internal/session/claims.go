package session

import (
	"sort"
)

// Claims are statements about a person, flattened: nested objects become
// dotted keys and every value is a list (wire-contract.md §3.3).
type Claims map[string][]any

// maxClaimDepth bounds nesting, so that a hostile token costs little.
const maxClaimDepth = 16

// FlattenClaims turns the claims of a token or UserInfo answer into Claims.
// Null values are left out; what nests deeper than 16 levels is dropped.
// Where "a.b" exists both literally and nested, the lists are joined, the
// literal key first.
func FlattenClaims(claims map[string]any) Claims {
	out := make(Claims, len(claims))
	flattenInto(out, "", claims, 0)
	return out
}

func flattenInto(out Claims, prefix string, m map[string]any, depth int) {
	if depth > maxClaimDepth {
		return
	}
	// Leaves first and names sorted, so that joining is deterministic.
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if _, nested := m[name].(map[string]any); nested {
			continue
		}
		key := prefix + name
		switch v := m[name].(type) {
		case nil:
		case []any:
			if out[key] == nil {
				out[key] = []any{}
			}
			out[key] = append(out[key], v...)
		case []string:
			if out[key] == nil {
				out[key] = []any{}
			}
			for _, s := range v {
				out[key] = append(out[key], s)
			}
		default:
			out[key] = append(out[key], v)
		}
	}
	for _, name := range names {
		if nested, ok := m[name].(map[string]any); ok {
			flattenInto(out, prefix+name+".", nested, depth+1)
		}
	}
}

// tokenClaims say something about one token rather than about the person.
var tokenClaims = [...]string{"iss", "sub", "exp", "iat"}

// Renew gives the claims after a refresh: the fresh ones, whole, so that what
// the provider no longer says is gone; only iss, sub, exp and iat stay those of
// the sign-in (wire-contract.md §3.3).
func (c Claims) Renew(fresh Claims) Claims {
	out := make(Claims, len(fresh)+len(tokenClaims))
	for k, v := range fresh {
		out[k] = v
	}
	for _, k := range tokenClaims {
		delete(out, k)
		if v, has := c[k]; has {
			out[k] = v
		}
	}
	return out
}

// String is the first string value of a claim, or "".
func (c Claims) String(name string) string {
	for _, v := range c[name] {
		if s, ok := v.(string); ok {
			return s
		}
	}
	return ""
}
