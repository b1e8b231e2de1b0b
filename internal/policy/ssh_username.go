package policy

var sshUsername = &Criterion{
	Name:  "ssh_username",
	Doc:   "True if the login name of the SSH connection matches. On HTTP routes the name is empty.",
	Value: "string matcher",
	Compile: stringCriterion(loginName,
		ReasonSSHUsernameOK, ReasonSSHUsernameUnauthorized),
}

func loginName(in *Input) string {
	if in.SSH == nil {
		return ""
	}
	return in.SSH.Username
}
