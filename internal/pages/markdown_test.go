package pages

import (
	"net/url"
	"strings"
	"testing"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// FuzzMarkdown checks that no text makes more than the few elements allowed.
func FuzzMarkdown(f *testing.F) {
	for _, s := range []string{
		"a **b** _c_ `d`", "- x\n1. y", "[a](https://b.example/\"onclick=x)", "<https://a.example/><script>", "[a](java\tscript:x)", "[a](mailto:<b>)",
		"**[a](https://x.example)**", "*a **b _c__ d** e*", "\\<b\\>", "`<`>`", "[<](https://x.example)", "[a](http:x)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		out := string(Markdown(s))
		nodes, err := html.ParseFragment(strings.NewReader(out), &html.Node{Type: html.ElementNode, Data: "div", DataAtom: atom.Div})
		if err != nil {
			t.Fatal(err)
		}
		var walk func(n *html.Node)
		walk = func(n *html.Node) {
			if n.Type == html.CommentNode || n.Type == html.DoctypeNode {
				t.Fatalf("%q made a comment", s)
			}
			if n.Type == html.ElementNode {
				switch n.Data {
				case "p", "ul", "ol", "li", "strong", "em", "code", "br":
					if len(n.Attr) > 0 {
						t.Fatalf("%q made <%s> with attributes", s, n.Data)
					}
				case "a":
					if len(n.Attr) != 2 || n.Attr[0].Key != "href" || n.Attr[1] != (html.Attribute{Key: "rel", Val: "noreferrer"}) {
						t.Fatalf("%q made a link with %v", s, n.Attr)
					}
					u, err := url.Parse(n.Attr[0].Val)
					if err != nil || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "mailto") {
						t.Fatalf("%q made a link to %q", s, n.Attr[0].Val)
					}
				default:
					t.Fatalf("%q made <%s>", s, n.Data)
				}
			}
			for c := n.FirstChild; c != nil; c = c.NextSibling {
				walk(c)
			}
		}
		for _, n := range nodes {
			walk(n)
		}
	})
}
