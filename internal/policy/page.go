package policy

import (
	"fmt"
	"strings"
)

// ReferenceMark begins the generated part of the policy page; what stands
// before it is written by hand.
const ReferenceMark = "<!-- From here on made by `postern policy reference` from the declarations; do not edit. -->\n"

// Reference is the generated part of the policy page: every criterion and
// every kind of value in Markdown, each with an example that is a policy test.
func Reference() string {
	var b strings.Builder
	b.WriteString(ReferenceMark + `
## Reference

Every example is a policy test: save it and run ` + "`postern policy test`" + ` on it. A
criterion marked *identity* is false while nobody is signed in, whatever its
value says, and then the visitor is sent to sign in.

| criterion | takes | |
|---|---|---|
`)
	for _, c := range Criteria() {
		mark := ""
		if c.Identity {
			mark = "identity"
		}
		fmt.Fprintf(&b, "| [`%s`](#%s) | [%s](#%s) | %s |\n", c.word(), c.anchor(), c.Matcher.Name, anchor(c.Matcher.Name), mark)
	}
	b.WriteString("\n")
	for _, c := range Criteria() {
		fmt.Fprintf(&b, "### `%s`\n\n%s\nTakes: %s.\n", c.word(), wrap(c.Doc), c.Value)
		writeExample(&b, c.word(), c.Example)
	}
	b.WriteString("## Values\n\n")
	for _, m := range Matchers() {
		fmt.Fprintf(&b, "### %s\n\n%s", m.Name, wrap(m.Doc))
		if len(m.Keys) > 0 {
			b.WriteString("\n| key | |\n|---|---|\n")
			for _, k := range m.Keys {
				fmt.Fprintf(&b, "| `%s` | %s |\n", k.Name, k.Doc)
			}
		}
		writeExample(&b, m.Name, m.Example)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// word is how the criterion is written.
func (c *Criterion) word() string {
	if c.SubPath {
		return c.Name + "/NAME"
	}
	return c.Name
}

func (c *Criterion) anchor() string { return anchor(c.word()) }

// anchor is the address that readers of Markdown give to a heading.
func anchor(heading string) string {
	return strings.NewReplacer(" ", "-", "/", "").Replace(strings.ToLower(heading))
}

func writeExample(b *strings.Builder, name, example string) {
	if example != "" {
		fmt.Fprintf(b, "\n```yaml\n# policy-test.yaml\nname: %s\n%s```\n", name, strings.TrimLeft(example, "\n"))
	}
	b.WriteString("\n")
}

// wrap breaks prose into lines of at most 80 letters.
func wrap(text string) string {
	var b strings.Builder
	width := 0
	for word := range strings.FieldsSeq(text) {
		if width > 0 && width+1+len(word) > 80 {
			b.WriteByte('\n')
			width = 0
		} else if width > 0 {
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	return b.String() + "\n"
}
