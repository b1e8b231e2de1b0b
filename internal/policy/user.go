package policy

import "go.yaml.in/yaml/v3"

var user = &Criterion{
	Name:    "user",
	Doc:     "True if the id of the signed-in user matches. The id is not the e-mail address.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {or: [user: {in: [u-17, u-23]}]}
cases:
  - {name: listed, user: {id: u-17}, expect: allow}
  - {name: not listed, user: {id: u-18}, expect: deny, reasons: [user-unauthorized]}
`,
	Identity: true,
	Compile:  compileUser,
}

func compileUser(s *Scope, n *yaml.Node) test {
	match := s.stringMatcher(n, "")
	if match == nil {
		return nil
	}
	ok, bad := ReasonUserOK.set(), ReasonUserUnauthorized.set()
	return func(in *Input) verdict {
		// A session without a user id names nobody, not even somebody else.
		return pass(in.UserID != "" && match(in.UserID), ok, bad)
	}
}
