package policy

import (
	"net/url"
	"strings"
)

var httpPath = &Criterion{
	Name:    "http_path",
	Doc:     "True if the path of the request matches: everything before the first ?, percent-decoded once. Query, host and all else are not looked at.",
	Value:   "string matcher",
	Matcher: stringKind,
	Example: `
policy:
  - allow: {and: [http_path: {starts_with: /public/}]}
cases:
  - {name: below, request: {url: "https://a.test/public/a%20b?x=y"}, expect: allow}
  - {name: the query is not the path, request: {url: "https://a.test/?/public/"}, expect: deny}
`,
	Compile: stringCriterion(func(in *Input) string { return in.Path },
		ReasonHTTPPathOK, ReasonHTTPPathUnauthorized),
}

// DecodePath gives the path that http_path compares, for Input.Path: target
// up to its first ?, percent-decoded once; empty if the escapes are broken.
func DecodePath(target string) string {
	raw, _, _ := strings.Cut(target, "?")
	decoded, err := url.PathUnescape(raw)
	if err != nil {
		return ""
	}
	return decoded
}
