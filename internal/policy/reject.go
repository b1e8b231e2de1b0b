package policy

import "go.yaml.in/yaml/v3"

var reject = &Criterion{
	Name:  "reject",
	Doc:   "Never true.",
	Value: "ignored; true by custom",
	Compile: func(*Scope, *yaml.Node) test {
		return func(*Input) verdict { return verdict{why: ReasonReject.set()} }
	},
}
