package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

var claim = &Criterion{
	Name:    "claim",
	Doc:     "claim/NAME is true if the list of values of that claim matches. A missing claim is an empty list. Nested claims have dotted names.",
	Value:   "list matcher",
	Matcher: listKind,
	Example: `
policy:
  - allow:
      or:
        - claim/team: core
        - claim/https://example.com/roles: {has: admin}
cases:
  - {name: team, user: {id: ada, claims: {team: [core]}}, expect: allow}
  - {name: name that is an address, user: {id: bob, claims: {"https://example.com/roles": admin}}, expect: allow}
  - {name: neither, user: {id: eve}, expect: deny, reasons: [claim-unauthorized]}
`,
	Identity: true,
	SubPath:  true,
	Compile:  compileClaim,
}

// compileClaim looks for the name literally. The steps into nested values
// that the language also names find nothing: stored claims are lists (§7).
func compileClaim(s *Scope, n *yaml.Node) test {
	match := s.listMatcher(n)
	if match == nil {
		return nil
	}
	name := s.SubPath
	if name == "" {
		s.Warnf(s.Key, "", "claim without a name finds no value; write claim/NAME")
	}
	lower := name
	if s.compiler.fold {
		// Configuration files were lower-cased as a whole by the reference.
		lower = strings.ToLower(name)
	}
	ok, bad := ReasonClaimOK.set(), ReasonClaimUnauthorized.set()
	return func(in *Input) verdict {
		var values []any
		if name != "" {
			var found bool
			if values, found = in.Claims[name]; !found && lower != name {
				values = in.Claims[lower]
			}
		}
		return pass(match.matches(values), ok, bad)
	}
}
