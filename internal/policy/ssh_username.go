package policy

var sshUsername = &Criterion{
	Name:    "ssh_username",
	Doc:     "True if the login name of the SSH connection matches. On HTTP routes the name is empty.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {and: [ssh_username: {in: [deploy, backup]}]}
cases:
  - {name: listed, ssh: {username: deploy}, expect: allow}
  - {name: not listed, ssh: {username: root}, expect: deny}
`,
	Compile: stringCriterion(loginName,
		ReasonSSHUsernameOK, ReasonSSHUsernameUnauthorized),
}

func loginName(in *Input) string {
	if in.SSH == nil {
		return ""
	}
	return in.SSH.Username
}
