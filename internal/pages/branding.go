package pages

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Branding is what an organisation changes about the pages. Verdict colours,
// headings, remedies and request ids are never branded. Colours are hex,
// "#RGB" or "#RRGGBB"; empty means Postern's own.
type Branding struct {
	// Name stands beside the mark, in titles, and is the logo's alternative
	// text. Empty: "Postern".
	Name string
	// PrimaryColor and DarkPrimaryColor replace the accent in light and dark.
	// A missing dark value is derived from the light one.
	PrimaryColor, DarkPrimaryColor string
	// SecondaryColor and DarkSecondaryColor replace the light in the door. They
	// never carry text.
	SecondaryColor, DarkSecondaryColor string
	// LogoURL replaces mark and name; FaviconURL the tab's icon. http or https.
	LogoURL, FaviconURL string
	// ErrorParagraph is Markdown set below our reason on error pages.
	ErrorParagraph string
	// HelpURL and PrivacyURL (web or mailto) are linked at the foot; without
	// them nothing is.
	HelpURL, PrivacyURL string
}

// rgb is a colour in sRGB, each channel from 0 to 1.
type rgb struct{ r, g, b float64 }

// mode is the ground that brand colours are laid on. The values repeat the
// stylesheet's tokens; a test compares the two.
type mode struct {
	name        string
	surface, bg rgb
	dark        bool
}

var (
	lightMode = mode{name: "light", surface: mustHex("#FFFFFF"), bg: mustHex("#F6F4EF")}
	darkMode  = mode{name: "dark", surface: mustHex("#171D20"), bg: mustHex("#0F1416"), dark: true}
	nearBlack = mustHex("#05222B")
	white     = mustHex("#FFFFFF")
)

// leastContrast is WCAG 2.2 AA for text.
const leastContrast = 4.5

// stylesheet gives the second stylesheet ("" for none) and notes about colours
// that had to move.
func (b Branding) stylesheet() (css string, notes []string, err error) {
	read := func(key, v string) (c rgb, ok bool) {
		if v == "" || err != nil {
			return rgb{}, false
		}
		if c, err = parseHex(v); err != nil {
			err = fmt.Errorf("%s: %w", key, err)
			return rgb{}, false
		}
		return c, true
	}
	light, hasLight := read("primary_color", b.PrimaryColor)
	dark, hasDark := read("darkmode_primary_color", b.DarkPrimaryColor)
	lamp, hasLamp := read("secondary_color", b.SecondaryColor)
	darkLamp, hasDarkLamp := read("darkmode_secondary_color", b.DarkSecondaryColor)
	if err != nil {
		return "", nil, err
	}
	if hasLight && !hasDark {
		h, s, _ := light.hsl()
		dark, hasDark = fromHSL(h, math.Min(s, 0.65), 0.67), true
	}
	if hasLamp && !hasDarkLamp {
		darkLamp, hasDarkLamp = lamp, true
	}
	var lightRules, darkRules strings.Builder
	if hasLight {
		t, moved := derive(light, lightMode)
		if moved {
			notes = append(notes, fmt.Sprintf("primary_color %s is too faint to read in light mode and is shown as %s", light, t.primary))
		}
		t.write(&lightRules)
	}
	if hasDark {
		t, moved := derive(dark, darkMode)
		if moved && b.DarkPrimaryColor != "" {
			notes = append(notes, fmt.Sprintf("darkmode_primary_color %s is too faint to read in dark mode and is shown as %s", dark, t.primary))
		}
		t.write(&darkRules)
	}
	if hasLamp {
		fmt.Fprintf(&lightRules, "  --lamp: %s;\n", lamp)
	}
	if hasDarkLamp {
		fmt.Fprintf(&darkRules, "  --lamp: %s;\n", darkLamp)
	}
	if lightRules.Len() > 0 {
		css = ":root {\n" + lightRules.String() + "}\n"
	}
	if darkRules.Len() > 0 {
		css += "@media (prefers-color-scheme: dark) {\n:root {\n" + darkRules.String() + "}\n}\n"
	}
	return css, notes, nil
}

// accent is a primary colour and what follows from it in one mode.
type accent struct{ primary, hover, soft, on rgb }

func (a accent) write(b *strings.Builder) {
	fmt.Fprintf(b, "  --primary: %s;\n  --focus: %s;\n  --primary-hover: %s;\n  --primary-soft: %s;\n  --on-primary: %s;\n",
		a.primary, a.primary, a.hover, a.soft, a.on)
}

// derive finds the nearest lightness at which the colour reads on surface, on
// bg and on its own soft tint, keeping its hue, and the colours that go with it.
func derive(c rgb, m mode) (accent, bool) {
	step := -0.01
	if m.dark {
		step = 0.01
	}
	h, s, l := c.hsl()
	moved := false
	for {
		soft := mix(m.surface, c, 0.12)
		if contrast(c, m.surface) >= leastContrast && contrast(c, m.bg) >= leastContrast && contrast(c, soft) >= leastContrast {
			break
		}
		// Terminates: black on the light ground and white on the dark one pass.
		l = math.Max(0, math.Min(1, l+step))
		c, moved = fromHSL(h, s, l), true
	}
	a := accent{primary: c, soft: mix(m.surface, c, 0.12), on: white}
	if contrast(nearBlack, c) > contrast(white, c) {
		a.on = nearBlack
	}
	// The hover shade moves away from the text upon it.
	toward := rgb{}
	if a.on != white {
		toward = white
	}
	a.hover = mix(c, toward, 0.25)
	return a, moved
}

func parseHex(s string) (rgb, error) {
	h, ok := strings.CutPrefix(strings.TrimSpace(s), "#")
	if ok && len(h) == 3 {
		h = string([]byte{h[0], h[0], h[1], h[1], h[2], h[2]})
	}
	n, err := strconv.ParseUint(h, 16, 32)
	if !ok || len(h) != 6 || err != nil {
		return rgb{}, fmt.Errorf("%q is not a colour; write it as # and six hex digits, for example #0B5C73", s)
	}
	return rgb{float64(n>>16) / 255, float64(n>>8&255) / 255, float64(n&255) / 255}, nil
}

func mustHex(s string) rgb {
	c, err := parseHex(s)
	if err != nil {
		panic(err) // only ever called with the literals above
	}
	return c
}

// String gives the colour as #RRGGBB.
func (c rgb) String() string {
	ch := func(v float64) int { return int(math.Round(math.Max(0, math.Min(1, v)) * 255)) }
	return fmt.Sprintf("#%02X%02X%02X", ch(c.r), ch(c.g), ch(c.b))
}

// mix lays part of b over a and rounds to what a browser will show.
func mix(a, b rgb, part float64) rgb {
	f := func(x, y float64) float64 { return math.Round((x*(1-part)+y*part)*255) / 255 }
	return rgb{f(a.r, b.r), f(a.g, b.g), f(a.b, b.b)}
}

// contrast is the ratio of WCAG 2.2, from 1 to 21.
func contrast(a, b rgb) float64 {
	la, lb := a.luminance(), b.luminance()
	if la < lb {
		la, lb = lb, la
	}
	return (la + 0.05) / (lb + 0.05)
}

func (c rgb) luminance() float64 {
	f := func(v float64) float64 {
		if v <= 0.04045 {
			return v / 12.92
		}
		return math.Pow((v+0.055)/1.055, 2.4)
	}
	return 0.2126*f(c.r) + 0.7152*f(c.g) + 0.0722*f(c.b)
}

func (c rgb) hsl() (h, s, l float64) {
	hi, lo := math.Max(c.r, math.Max(c.g, c.b)), math.Min(c.r, math.Min(c.g, c.b))
	l = (hi + lo) / 2
	d := hi - lo
	if d == 0 {
		return 0, 0, l
	}
	s = d / (1 - math.Abs(2*l-1))
	switch hi {
	case c.r:
		h = math.Mod((c.g-c.b)/d+6, 6)
	case c.g:
		h = (c.b-c.r)/d + 2
	default:
		h = (c.r-c.g)/d + 4
	}
	return h / 6, s, l
}

func fromHSL(h, s, l float64) rgb {
	f := func(n float64) float64 {
		k := math.Mod(n+h*12, 12)
		v := l - s*math.Min(l, 1-l)*math.Max(-1, math.Min(k-3, math.Min(9-k, 1)))
		return math.Round(math.Max(0, math.Min(1, v))*255) / 255
	}
	return rgb{f(0), f(8), f(4)}
}
