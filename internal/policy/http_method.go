package policy

var httpMethod = &Criterion{
	Name:    "http_method",
	Doc:     "True if the method of the request matches, exactly as sent.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {and: [http_method: {in: [GET, HEAD]}]}
cases:
  - {name: reading, expect: allow}
  - {name: writing, request: {method: POST}, expect: deny}
`,
	Compile: stringCriterion(func(in *Input) string { return in.Method },
		ReasonHTTPMethodOK, ReasonHTTPMethodUnauthorized),
}
