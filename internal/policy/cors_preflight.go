package policy

import "go.yaml.in/yaml/v3"

var corsPreflight = &Criterion{
	Name:  "cors_preflight",
	Doc:   "True for a CORS preflight: method OPTIONS with Access-Control-Request-Method and Origin.",
	Value: "ignored; true by custom",
	Compile: func(*Scope, *yaml.Node) test {
		return func(in *Input) verdict {
			return pass(isPreflight(in), ReasonCORSRequest.set(), ReasonNonCORSRequest.set())
		}
	},
}

func isPreflight(in *Input) bool {
	return in.Method == "OPTIONS" && in.Header != nil &&
		in.Header("Access-Control-Request-Method") != "" && in.Header("Origin") != ""
}
