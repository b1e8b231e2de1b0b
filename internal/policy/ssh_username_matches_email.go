package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

var sshUsernameMatchesEmail = &Criterion{
	Name:    "ssh_username_matches_email",
	Doc:     "True if the login name is the e-mail address of the signed-in user up to its first @.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {and: [ssh_username_matches_email: true]}
defaults: {user: {id: ada, email: ada@example.com}}
cases:
  - {name: her own name, ssh: {username: ada}, expect: allow}
  - {name: another, ssh: {username: root}, expect: deny}
`,
	Identity: true,
	Compile: func(*Scope, *yaml.Node) test {
		return func(in *Input) verdict {
			name, _, has := strings.Cut(in.Email, "@")
			return pass(has && name == loginName(in), ReasonSSHUsernameOK.set(), ReasonSSHUsernameUnauthorized.set())
		}
	},
}
