package pages

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strings"
	"testing"
)

// tokens reads the stylesheet's custom colours of one mode.
func tokens(t *testing.T, dark bool) map[string]rgb {
	t.Helper()
	css, err := os.ReadFile("assets/index.css")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(css), ":root {")
	light, rest, _ := strings.Cut(rest, "}")
	if dark {
		_, rest, _ = strings.Cut(rest, ":root {")
		light, _, _ = strings.Cut(rest, "}")
	}
	out := map[string]rgb{}
	for _, m := range regexp.MustCompile(`--([a-z-]+): (#[0-9A-F]{6});`).FindAllStringSubmatch(light, -1) {
		c, err := parseHex(m[2])
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]] = c
	}
	return out
}

// TestTokenContrast holds every pair to the figure that the design gives, in
// light and dark, to one decimal.
func TestTokenContrast(t *testing.T) {
	for _, c := range []struct {
		fore, ground string
		light, dark  float64
	}{
		{"line-strong", "surface", 3.9, 4.3},
		{"text", "surface", 16.5, 14.3},
		{"muted", "surface", 6.6, 7.8},
		{"primary", "surface", 7.5, 9.0},
		{"on-primary", "primary", 7.5, 8.7},
		{"on-primary", "primary-hover", 10.1, 10.7},
		{"primary", "primary-soft", 6.4, 7.3},
		{"ok", "ok-soft", 5.8, 7.7},
		{"bad", "bad-soft", 5.9, 7.4},
		{"on-bad", "bad", 6.9, 8.8},
		{"warn", "warn-soft", 6.3, 8.4},
		{"focus", "surface", 7.5, 9.0},
	} {
		for _, dark := range []bool{false, true} {
			tok := tokens(t, dark)
			fore, ok1 := tok[c.fore]
			ground, ok2 := tok[c.ground]
			if !ok1 || !ok2 {
				t.Fatalf("the stylesheet lacks %s or %s", c.fore, c.ground)
			}
			want := c.light
			if dark {
				want = c.dark
			}
			if got := contrast(fore, ground); math.Abs(got-want) > 0.051 {
				t.Errorf("%s on %s, dark %v: %.2f, want %.1f", c.fore, c.ground, dark, got, want)
			}
		}
	}
}

// TestReadableEverywhere checks each text colour on each ground it is used on.
func TestReadableEverywhere(t *testing.T) {
	for _, dark := range []bool{false, true} {
		tok := tokens(t, dark)
		for _, ground := range []string{"bg", "surface", "sunken", "primary-soft", "ok-soft", "bad-soft", "warn-soft"} {
			for _, fore := range []string{"text", "muted"} {
				if got := contrast(tok[fore], tok[ground]); got < leastContrast {
					t.Errorf("%s on %s, dark %v: %.2f", fore, ground, dark, got)
				}
			}
		}
		if got := contrast(tok["muted"], tok["primary-soft"]); got < 5.55 {
			t.Errorf("muted on primary-soft, dark %v: %.2f, and it is to be the lowest at 5.6", dark, got)
		}
		for _, fore := range []string{"primary", "bad"} {
			for _, ground := range []string{"bg", "surface"} {
				if got := contrast(tok[fore], tok[ground]); got < leastContrast {
					t.Errorf("%s on %s, dark %v: %.2f", fore, ground, dark, got)
				}
			}
		}
		if got := contrast(tok["line-strong"], tok["surface"]); got < 3 {
			t.Errorf("edges of inputs, dark %v: %.2f", dark, got)
		}
	}
}

func TestBrandingGroundsAreTheStylesheets(t *testing.T) {
	for _, m := range []mode{lightMode, darkMode} {
		tok := tokens(t, m.dark)
		if tok["surface"] != m.surface || tok["bg"] != m.bg {
			t.Errorf("%s: branding is corrected against %v and %v, the stylesheet has %v and %v", m.name, m.surface, m.bg, tok["surface"], tok["bg"])
		}
	}
}

// Any colour whatever ends readable, in its own hue.
func TestDerivedAccentsAreReadable(t *testing.T) {
	for _, m := range []mode{lightMode, darkMode} {
		muted, text := tokens(t, m.dark)["muted"], tokens(t, m.dark)["text"]
		for r := 0; r <= 255; r += 51 {
			for g := 0; g <= 255; g += 51 {
				for b := 0; b <= 255; b += 51 {
					c := rgb{float64(r) / 255, float64(g) / 255, float64(b) / 255}
					a, _ := derive(c, m)
					for what, pair := range map[string][2]rgb{
						"on surface": {a.primary, m.surface}, "on bg": {a.primary, m.bg}, "on its tint": {a.primary, a.soft},
						"text on it": {a.on, a.primary}, "text on hover": {a.on, a.hover}, "muted on tint": {muted, a.soft}, "text on tint": {text, a.soft},
					} {
						if got := contrast(pair[0], pair[1]); got < leastContrast {
							t.Errorf("%s, %v, %s: %.2f", m.name, c, what, got)
						}
					}
					h1, s1, _ := c.hsl()
					h2, _, l2 := a.primary.hsl()
					if d := math.Abs(h1 - h2); s1 > 0.3 && l2 > 0.1 && l2 < 0.9 && math.Min(d, 1-d) > 0.03 {
						t.Errorf("%s: %v became %v, another hue", m.name, c, a.primary)
					}
				}
			}
		}
	}
}

func TestBranding(t *testing.T) {
	r := renderer(t, Branding{PrimaryColor: "#FFD000", SecondaryColor: "#abc"})
	if r.brand.BrandStyle == "" || !strings.HasPrefix(r.brand.BrandStyle, "/.pomerium/brand-") {
		t.Fatalf("brand stylesheet at %q", r.brand.BrandStyle)
	}
	css := string(r.assets[r.brand.BrandStyle].body)
	for _, want := range []string{"--lamp: #AABBCC;", "@media (prefers-color-scheme: dark)", "--on-primary: #FFFFFF;", "--on-primary: #05222B;"} {
		if !strings.Contains(css, want) {
			t.Errorf("the brand stylesheet lacks %q:\n%s", want, css)
		}
	}
	if strings.Contains(css, "#FFD000") {
		t.Error("yellow text on white")
	}
	if len(r.Notes()) != 1 || !strings.Contains(r.Notes()[0], "primary_color #FFD000") {
		t.Errorf("notes %q", r.Notes())
	}
	if r := renderer(t, Branding{}); r.brand.BrandStyle != "" || len(r.Notes()) != 0 {
		t.Error("an unbranded renderer has a brand stylesheet or notes")
	}
	if r := renderer(t, Branding{PrimaryColor: "#0B5C73", DarkPrimaryColor: "#7CC7DA"}); len(r.Notes()) != 0 {
		t.Errorf("our own colours are corrected: %q", r.Notes())
	}
	for _, b := range []Branding{
		{PrimaryColor: "red"}, {PrimaryColor: "#12345"}, {SecondaryColor: "#12345G"}, {DarkPrimaryColor: "0B5C73"}, {DarkSecondaryColor: "#+12345"},
		{LogoURL: "javascript:alert(1)"}, {LogoURL: "/logo.svg"}, {LogoURL: "mailto:a@b"}, {FaviconURL: "data:image/png;base64,AA"}, {HelpURL: "ftp://x"}, {LogoURL: "https://a;b/x"},
	} {
		if _, err := New(b); err == nil {
			t.Errorf("%+v was accepted", b)
		} else if !strings.Contains(err.Error(), "_") {
			t.Errorf("%v does not name its key", err)
		}
	}
}

func TestMarkdown(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", ""},
		{"Hello", "<p>Hello</p>"},
		{"a\nb\n\nc", "<p>a\nb</p><p>c</p>"},
		{"a  \nb", "<p>a<br>b</p>"},
		{"*a* **b** _c_ __d__", "<p><em>a</em> <strong>b</strong> <em>c</em> <strong>d</strong></p>"},
		{"**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"},
		{"snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"},
		{"`a<b`", "<p><code>a&lt;b</code></p>"},
		{"- a\n- b\n\nc", "<ul><li>a</li><li>b</li></ul><p>c</p>"},
		{"1. a\n2. b", "<ol><li>a</li><li>b</li></ol>"},
		{"text\n- a", "<p>text</p><ul><li>a</li></ul>"},
		{"[x](https://a.example/?b=1&c=2)", `<p><a href="https://a.example/?b=1&amp;c=2" rel="noreferrer">x</a></p>`},
		{"[x](mailto:a@b.example)", `<p><a href="mailto:a@b.example" rel="noreferrer">x</a></p>`},
		{"<https://a.example>", `<p><a href="https://a.example" rel="noreferrer">https://a.example</a></p>`},
		{"[x](javascript:alert(1))", "<p>[x](javascript:alert(1))</p>"},
		{"[x](//a.example)", "<p>[x](//a.example)</p>"},
		{"[x](https://u:p@a.example)", "<p>[x](https://u:p@a.example)</p>"},
		{"![x](https://a.example/i.png)", "<p>![x](https://a.example/i.png)</p>"},
		{"<script>alert(1)</script>", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"},
		{"# x", "<p># x</p>"},
		{`\*a\*`, "<p>*a*</p>"},
		{"**", "<p>**</p>"},
		{"*a", "<p>*a</p>"},
		{"[a](", "<p>[a](</p>"},
		{"\xff", "<p>\uFFFD</p>"},
	} {
		if got := string(Markdown(c.in)); got != c.want {
			t.Errorf("%q\ngot  %s\nwant %s", c.in, got, c.want)
		}
	}
	if out := Markdown(strings.Repeat("*_[`<", 100_000)); len(out) > 64<<10 {
		t.Errorf("%d bytes from a long text", len(out))
	}
}

// BenchmarkMarkdown holds the texts that would be slow if marks were searched
// again and again.
func BenchmarkMarkdown(b *testing.B) {
	for name, text := range map[string]string{
		"brackets": strings.Repeat("[", mostMarkdown-20) + "](https://a.example)", "angles": strings.Repeat("<", mostMarkdown-2) + ">",
		"stars": strings.Repeat("*a ", mostMarkdown/3), "unders": strings.Repeat("_", mostMarkdown), "targets": strings.Repeat("[a](", mostMarkdown/4-1) + ")",
		"nest": strings.Repeat("*a_b", mostMarkdown/4), "lines": strings.Repeat("- *\n", mostMarkdown/4),
	} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				Markdown(text)
			}
		})
	}
}

func ExampleMarkdown() {
	fmt.Println(Markdown("Ask **Finance** at [their desk](mailto:desk@example.com)."))
	// Output: <p>Ask <strong>Finance</strong> at <a href="mailto:desk@example.com" rel="noreferrer">their desk</a>.</p>
}
