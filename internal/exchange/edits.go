package exchange

import "iter"

// HeaderEdits is what the door wants changed on the way to the upstream. The
// upstream client applies it when it writes the head, on a request from which
// hop-by-hop fields have already been left out: first Strip and Remove, then
// Set, then Add, and last FinalRemove, which wins over Set (configuration.md
// §3.6: remove_request_headers is applied at forwarding).
//
// Strip and FinalRemove are compiled ahead of the request and shared between
// requests: treat them as read-only. Set and Add belong to one exchange.
type HeaderEdits struct {
	// Host is the Host header or :authority to send; empty keeps the target's.
	Host string
	// Path is the judged path after rewriting. RawQuery goes after "?" if HasQuery.
	Path     string
	RawQuery string
	HasQuery bool

	// Strip reports names that must never pass from the client, in any
	// spelling. It is given the folded name (see FoldName).
	Strip *NameSet
	// Set replaces every field of that name. Names are kept as written.
	Set []Field
	// Add appends fields without removing others.
	Add []Field
	// FinalRemove drops names even if Set produced them.
	FinalRemove *NameSet
	// Cookie, if not nil, rewrites the client's Cookie header value (to take
	// the session cookie out); an empty result drops the header.
	Cookie func(value string) string
}

// Field is one header field.
type Field struct{ Name, Value string }

// NameSet is an immutable set of header names, compared folded, with optional
// prefixes ("x-pomerium-"). A nil *NameSet holds nothing.
type NameSet struct {
	names    map[string]struct{}
	prefixes []string
}

// NewNameSet makes a set of header names. A name ending in "*" is a prefix.
func NewNameSet(names ...string) *NameSet {
	s := &NameSet{names: make(map[string]struct{}, len(names))}
	for _, n := range names {
		f := FoldName(n)
		if p := len(f) - 1; p >= 0 && f[p] == '*' {
			s.prefixes = append(s.prefixes, f[:p])
			continue
		}
		s.names[f] = struct{}{}
	}
	return s
}

// Has reports whether name, in any spelling, is in the set.
func (s *NameSet) Has(name string) bool {
	if s == nil {
		return false
	}
	var buf [64]byte // header names are short: no allocation
	f := buf[:0]
	for i := 0; i < len(name); i++ {
		f = append(f, foldByte(name[i]))
	}
	if _, ok := s.names[string(f)]; ok {
		return true
	}
	for _, p := range s.prefixes {
		if len(f) >= len(p) && string(f[:len(p)]) == p {
			return true
		}
	}
	return false
}

func foldByte(c byte) byte {
	switch {
	case c == '_':
		return '-'
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	}
	return c
}

// FoldName brings a header name to the one spelling in which names are
// compared for stripping: ASCII lower case, "_" read as "-". An upstream that
// turns both X-User and X_User into the variable HTTP_X_USER (CGI, WSGI) must
// not be fooled by the spelling we did not look for.
func FoldName(name string) string {
	for i := 0; i < len(name); i++ {
		if c := name[i]; c == '_' || ('A' <= c && c <= 'Z') {
			b := []byte(name)
			for ; i < len(b); i++ {
				b[i] = foldByte(b[i])
			}
			return string(b)
		}
	}
	return name
}

// SameName reports whether two header names are one to whoever folds them.
func SameName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if foldByte(a[i]) != foldByte(b[i]) {
			return false
		}
	}
	return true
}

// Fields yields a slice of fields as a HeaderSeq.
func Fields(f []Field) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range f {
			if !yield(f[i].Name, f[i].Value) {
				return
			}
		}
	}
}
