package policy

import "go.yaml.in/yaml/v3"

var groups = &Criterion{
	Name:    "groups",
	Doc:     "True if the ids of the user's directory groups match. Names of groups and claims do not count; without a directory record nothing matches.",
	Value:   "list matcher",
	Matcher: listKind,
	Example: `
policy:
  - allow: {or: [groups: {has: engineering}]}
cases:
  - {name: a member, user: {id: ada, groups: [engineering]}, expect: allow}
  - {name: no member, user: {id: eve, groups: []}, expect: deny}
  - {name: unknown to the directory, user: {id: bob}, expect: deny}
`,
	Identity: true,
	Compile:  compileGroups,
}

func compileGroups(s *Scope, n *yaml.Node) test {
	match := s.listMatcher(n)
	if match == nil {
		return nil
	}
	for i := range match.ops {
		if match.ops[i].kind == kindNumber {
			s.Warnf(n, "", "group ids are strings, so the number %s never equals one; put it in quotes", match.ops[i].number.digits)
		}
	}
	ok, bad := ReasonGroupsOK.set(), ReasonGroupsUnauthorized.set()
	return func(in *Input) verdict {
		return pass(in.HasDirectory && match.matchesText(in.Groups), ok, bad)
	}
}
