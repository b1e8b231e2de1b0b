package policy

var email = &Criterion{
	Name:     "email",
	Doc:      "True if the e-mail address of the signed-in user matches: the directory's, else the one given at sign-in. Case counts.",
	Value:    "string matcher",
	Identity: true,
	Compile: stringCriterion(func(in *Input) string { return in.Email },
		ReasonEmailOK, ReasonEmailUnauthorized),
}
