package policytest

import (
	"fmt"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// policyText is a policy of a document as written, for tools that change it.
type policyText struct {
	file, path string
	node       *yaml.Node
	attached   int // index among the attached policies, -1 is the route's own
}

// texts lists the policies of a document that are trees.
func (f *documentFile) texts(file string) (list []policyText) {
	switch {
	case f.Policy.Node != nil:
		list = append(list, policyText{file, "policy", f.Policy.Node, -1})
	case f.PolicyText != nil:
		var n yaml.Node
		if yaml.Unmarshal([]byte(*f.PolicyText), &n) == nil {
			list = append(list, policyText{"policy.yaml", "", &n, -1})
		}
	}
	for i, p := range f.Policies {
		if p.PPL.Node != nil {
			list = append(list, policyText{file, fmt.Sprintf("policies[%d].ppl", i), p.PPL.Node, i})
		}
	}
	for i := range list {
		if tree, problems := policy.Resolve(list[i].file, list[i].node); len(problems) == 0 {
			list[i].node = tree
		}
	}
	return list
}
