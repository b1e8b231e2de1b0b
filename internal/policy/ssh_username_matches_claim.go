package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

var sshUsernameMatchesClaim = &Criterion{
	Name:    "ssh_username_matches_claim",
	Doc:     "True if the login name is one of the values of the named claim.",
	Value:   "a string: the name of a claim",
	Matcher: claimName,
	Example: `
policy:
  - allow: {and: [ssh_username_matches_claim: unix_names]}
defaults: {user: {id: ada, claims: {unix_names: [ada, deploy]}}}
cases:
  - {name: one of the names, ssh: {username: deploy}, expect: allow}
  - {name: another, ssh: {username: root}, expect: deny}
`,
	Identity: true,
	Compile:  compileSSHUsernameMatchesClaim,
}

func compileSSHUsernameMatchesClaim(s *Scope, n *yaml.Node) test {
	name, ok := text(n)
	if !ok {
		s.Errorf(n, "", "%s wants a string, the name of a claim, got %s", s.Criterion.Name, describe(n))
		return nil
	}
	lower := name
	if s.compiler.fold {
		lower = strings.ToLower(name)
	}
	return func(in *Input) verdict {
		values, found := in.Claims[name]
		if !found && lower != name {
			values = in.Claims[lower]
		}
		login, listed := loginName(in), false
		for _, v := range values {
			if t, isText := v.(string); isText && t == login {
				listed = true
				break
			}
		}
		return pass(listed, ReasonSSHUsernameOK.set(), ReasonSSHUsernameUnauthorized.set())
	}
}
