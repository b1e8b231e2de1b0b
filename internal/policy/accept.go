package policy

import "go.yaml.in/yaml/v3"

var accept = &Criterion{
	Name:    "accept",
	Doc:     "Always true: lets everybody in, signed in or not.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {or: [accept: true]}
cases:
  - {name: everybody, expect: allow, reasons: [accept]}
`,
	Compile: func(*Scope, *yaml.Node) test {
		return func(*Input) verdict { return verdict{ok: true, why: ReasonAccept.set()} }
	},
}
