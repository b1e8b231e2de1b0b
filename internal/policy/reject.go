package policy

import "go.yaml.in/yaml/v3"

var reject = &Criterion{
	Name:    "reject",
	Doc:     "Never true.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
policy:
  - allow: {or: [reject: true]}
cases:
  - {name: nobody, user: {id: ada}, expect: deny, reasons: [reject]}
`,
	Compile: func(*Scope, *yaml.Node) test {
		return func(*Input) verdict { return verdict{why: ReasonReject.set()} }
	},
}
