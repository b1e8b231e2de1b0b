package policy

import "go.yaml.in/yaml/v3"

var authenticatedUser = &Criterion{
	Name:    "authenticated_user",
	Doc:     "True for everybody who is signed in. A session that names no user does not count.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {or: [authenticated_user: true]}
cases:
  - {name: signed in, user: {id: ada}, expect: allow}
  - {name: signed out, expect: login}
`,
	Identity: true,
	Compile: func(*Scope, *yaml.Node) test {
		return func(in *Input) verdict {
			return pass(in.UserID != "", ReasonUserOK.set(), ReasonUserUnauthorized.set())
		}
	},
}
