package policy

var httpMethod = &Criterion{
	Name:  "http_method",
	Doc:   "True if the method of the request matches, exactly as sent.",
	Value: "string matcher",
	Compile: stringCriterion(func(in *Input) string { return in.Method },
		ReasonHTTPMethodOK, ReasonHTTPMethodUnauthorized),
}
