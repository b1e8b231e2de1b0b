package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

var pomeriumRoutes = &Criterion{
	Name:    "pomerium_routes",
	Doc:     "True on the proxy's own paths, which are answered before any policy.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {and: [pomerium_routes: true]}
cases:
  - {name: a path of the proxy itself, request: {url: "https://a.test/ping"}, expect: allow}
  - {name: a path of the application, request: {url: "https://a.test/"}, expect: deny}
`,
	Compile: func(*Scope, *yaml.Node) test {
		return func(in *Input) verdict {
			internal, _ := InternalPath(in.RawPath)
			return pass(internal, ReasonPomeriumRoute.set(), ReasonNonPomeriumRoute.set())
		}
	},
}

// InternalPath tells whether a canonical, still encoded path is answered
// before any policy, and whether it then needs a session (§9).
func InternalPath(path string) (internal, needsSession bool) {
	if rest, ok := strings.CutPrefix(path, "/.pomerium"); ok && (rest == "" || rest[0] == '/') {
		switch rest {
		case "/jwt", "/user", "/webauthn", "/routes", "/api/v1/routes",
			"/mcp/authorize", "/mcp/connect", "/mcp/routes":
			return true, true
		}
		return true, false
	}
	if rest, ok := strings.CutPrefix(path, "/.well-known/pomerium"); ok && (rest == "" || rest[0] == '/') {
		return true, false
	}
	return path == "/ping" || path == "/healthz", false
}
