package policy

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

var domain = &Criterion{
	Name:    "domain",
	Doc:     "True if the part of the e-mail address after its first @ (up to a second one) matches. An address without @ has no domain and matches nothing.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {or: [domain: example.com]}
cases:
  - {name: a colleague, user: {id: ada, email: ada@example.com}, expect: allow}
  - {name: a domain below is another, user: {id: eve, email: eve@x.example.com}, expect: deny}
`,
	Identity: true,
	Compile:  compileDomain,
}

func compileDomain(s *Scope, n *yaml.Node) test {
	match := s.stringMatcher(n, "")
	if match == nil {
		return nil
	}
	for _, v := range stringValues(n) {
		if t, ok := text(v); ok && strings.Contains(t, "@") {
			s.Warnf(v, "", "no domain holds an @, so %s never equals one; write what follows the @, or use email", quote(t))
		}
	}
	ok, bad := ReasonDomainOK.set(), ReasonDomainUnauthorized.set()
	return func(in *Input) verdict {
		_, rest, has := strings.Cut(in.Email, "@")
		rest, _, _ = strings.Cut(rest, "@")
		return pass(has && match(rest), ok, bad)
	}
}
