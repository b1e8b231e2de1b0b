package config

import (
	"encoding/json"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// sharedPolicies are the policies of one configuration by what they say, so
// that routes with equal policies hold one. Only what compiled without any
// remark is shared, so that every remark keeps its own place; the places in
// the rules of a shared policy are those of the first route that has it.
type sharedPolicies map[string]*policy.Policy

// maxShared bounds the text that is compared; longer policies, and those that
// aliases would make so, are compiled for every route.
const maxShared = 16 << 10

// policyKey writes down what a tree says; "" if that is too long.
func policyKey(n *yaml.Node) string {
	var b strings.Builder
	if !writeKey(&b, n, 0) {
		return ""
	}
	return b.String()
}

func writeKey(b *strings.Builder, n *yaml.Node, depth int) bool {
	if n == nil || depth > 64 || b.Len() > maxShared {
		return false
	}
	switch n.Kind {
	case yaml.AliasNode:
		return writeKey(b, n.Alias, depth+1)
	case yaml.ScalarNode:
		b.WriteString(n.ShortTag())
		b.WriteString(strconv.Itoa(len(n.Value)))
		b.WriteByte(':')
		b.WriteString(n.Value)
		return true
	}
	if n.Kind == yaml.MappingNode {
		b.WriteByte('{')
	} else {
		b.WriteByte('[') // a list, or the document around its one part
	}
	for _, item := range n.Content {
		if !writeKey(b, item, depth+1) {
			return false
		}
	}
	b.WriteByte(']')
	return true
}

// find gives the policy known under a key, or keeps the one that compile
// makes, if it may be shared.
func (s sharedPolicies) find(key string, compile func() (p *policy.Policy, share bool)) *policy.Policy {
	if key != "" {
		if p, ok := s[key]; ok {
			return p
		}
	}
	p, share := compile()
	if key != "" && share && p != nil {
		s[key] = p
	}
	return p
}

func shortcutsKey(s policy.Shortcuts) string {
	b, err := json.Marshal(s)
	if err != nil || len(b) > maxShared {
		return ""
	}
	return "shortcuts " + string(b)
}
