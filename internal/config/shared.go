package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"hash"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// sharedPolicies are the policies of one configuration by what they say, so
// that routes with equal policies hold one. Only what compiled without any
// remark is shared, so that every remark keeps its own place.
type sharedPolicies struct {
	known map[itemKey]*policy.Policy
	// used are those of the route at work.
	used []sharedPolicy
}

type sharedPolicy struct {
	key    itemKey
	policy *policy.Policy
}

func newSharedPolicies() *sharedPolicies {
	return &sharedPolicies{known: map[itemKey]*policy.Policy{}}
}

// itemKey is the SHA-256 of what something in a document says.
type itemKey [sha256.Size]byte

// Bounds on the trees that are compared; larger policies, and those that
// aliases would make so, are compiled for every route.
const (
	maxSharedNodes = 2000
	maxSharedText  = 16 << 10
)

// policyKey tells what a tree says, and how its parts lie to each other, so
// that whoever shares a policy may tell the places of its rules.
func policyKey(file string, n *yaml.Node) (key itemKey, ok bool) {
	if n == nil {
		return key, false
	}
	w := keyWriter{hash: sha256.New(), line: n.Line, nodes: maxSharedNodes, text: maxSharedText}
	w.put("policy")
	w.put(file)
	ok = w.tree(n, 0)
	w.hash.Sum(key[:0])
	return key, ok
}

// keyWriter hashes trees.
type keyWriter struct {
	hash        hash.Hash
	line        int // from which lines count
	nodes, text int // that may still come
	size        [8]byte
}

func (w *keyWriter) number(i int) {
	binary.BigEndian.PutUint64(w.size[:], uint64(int64(i)))
	w.hash.Write(w.size[:])
}

func (w *keyWriter) put(s string) {
	w.number(len(s)) // lengths in front keep "a","bc" and "ab","c" apart
	w.hash.Write([]byte(s))
}

func (w *keyWriter) tree(n *yaml.Node, depth int) bool {
	w.nodes--
	w.text -= len(n.Value)
	if depth > maxDepth || w.nodes < 0 || w.text < 0 {
		return false
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias != nil && w.tree(n.Alias, depth+1)
	}
	w.number(int(n.Kind)<<8 | int(n.Style))
	w.number(n.Line - w.line)
	w.number(n.Column)
	w.number(len(n.Content))
	w.put(n.Tag)
	w.put(n.Value)
	for _, c := range n.Content {
		if !w.tree(c, depth+1) {
			return false
		}
	}
	return true
}

// find gives the policy known under a key, or keeps the one that compile
// makes, if it may be shared.
func (s *sharedPolicies) find(key itemKey, mayShare bool, compile func() (p *policy.Policy, share bool)) *policy.Policy {
	if mayShare {
		if p, ok := s.known[key]; ok {
			s.used = append(s.used, sharedPolicy{key, p})
			return p
		}
	}
	p, share := compile()
	if mayShare && share && p != nil {
		s.known[key] = p
		s.used = append(s.used, sharedPolicy{key, p})
	}
	return p
}

func shortcutsKey(s policy.Shortcuts) (key itemKey, ok bool) {
	b, err := json.Marshal(s)
	if err != nil || len(b) > maxSharedText {
		return key, false
	}
	return sha256.Sum256(append([]byte("shortcuts "), b...)), true
}
