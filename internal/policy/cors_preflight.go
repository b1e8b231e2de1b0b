package policy

import "go.yaml.in/yaml/v3"

var corsPreflight = &Criterion{
	Name:    "cors_preflight",
	Doc:     "True for a CORS preflight: method OPTIONS with Access-Control-Request-Method and Origin.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {or: [cors_preflight: true, authenticated_user: true]}
cases:
  - name: a browser asks before it sends
    request: {method: OPTIONS, headers: {Origin: "https://b.test", Access-Control-Request-Method: POST}}
    expect: allow
  - {name: any other request, request: {method: OPTIONS}, expect: login}
`,
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
