package policy

var email = &Criterion{
	Name:    "email",
	Doc:     "True if the e-mail address of the signed-in user matches: the directory's, else the one given at sign-in. Case counts.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {or: [email: {in: [ada@example.com, grace@example.com]}]}
cases:
  - {name: listed, user: {id: ada, email: ada@example.com}, expect: allow, reasons: [email-ok]}
  - {name: not listed, user: {id: eve, email: eve@example.com}, expect: deny}
  - {name: signed out, expect: login}
`,
	Identity: true,
	Compile: stringCriterion(func(in *Input) string { return in.Email },
		ReasonEmailOK, ReasonEmailUnauthorized),
}
