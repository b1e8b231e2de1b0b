package pages

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// span is a piece of a sentence: plain text, code, strong, a link or a time.
// Sentences are built in Go and escaped by the template, so that no value can
// bring markup of its own.
type span struct{ Kind, Text, URL string }

type sentence []span

func text(s string) span            { return span{Text: s} }
func textf(f string, a ...any) span { return span{Text: fmt.Sprintf(f, a...)} }
func code(s string) span            { return span{Kind: "code", Text: s} }
func strong(s string) span          { return span{Kind: "strong", Text: s} }
func say(s string) sentence         { return sentence{text(s)} }

// moment is an absolute time with its zone.
func moment(t time.Time) span {
	return span{Kind: "time", Text: stamp(t), URL: t.UTC().Format(time.RFC3339)}
}

// since is an age, with the exact time for machines.
func since(t, now time.Time) span {
	return span{Kind: "time", Text: age(t, now), URL: t.UTC().Format(time.RFC3339)}
}

// list joins code spans as "a", "a and b" or "a, b and c", with the joining
// word given; at most eight are
// shown and the rest counted, since a person may be in hundreds of groups.
func list(values []string, and string) sentence {
	const most = 8
	var out sentence
	for i, v := range values {
		if i == most {
			return append(out, textf(" and %d more", len(values)-most))
		}
		switch {
		case i == 0:
		case i == len(values)-1:
			out = append(out, text(" "+and+" "))
		default:
			out = append(out, text(", "))
		}
		out = append(out, code(shorten(v, 200)))
	}
	return out
}

// stamp formats a time for a person: absolute, in UTC, saying so.
func stamp(t time.Time) string { return t.UTC().Format("2 Jan 2006, 15:04 UTC") }

// age says how long before now t was.
func age(t, now time.Time) string {
	d := now.Sub(t)
	switch {
	case d < 10*time.Second:
		return "just now"
	default:
		return span0(d) + " ago"
	}
}

// span0 is a duration in its largest whole unit: "4 minutes", "1 hour".
func span0(d time.Duration) string {
	unit := func(n int64, word string) string {
		if n == 1 {
			return "1 " + word
		}
		return fmt.Sprintf("%d %ss", n, word)
	}
	switch {
	case d < time.Minute:
		return unit(int64(d/time.Second), "second")
	case d < time.Hour:
		return unit(int64(d/time.Minute), "minute")
	case d < 48*time.Hour:
		return unit(int64(d/time.Hour), "hour")
	default:
		return unit(int64(d/(24*time.Hour)), "day")
	}
}

// limit is a configured duration as a person reads it: "30 seconds",
// "1.5 seconds", "2 minutes". Unlike an age it is never rounded down to a
// smaller figure than was set.
func limit(d time.Duration) string {
	if d >= time.Minute && d%time.Minute == 0 {
		return span0(d)
	}
	s := strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", d.Seconds()), "0"), ".")
	if s == "1" {
		return "1 second"
	}
	return s + " seconds"
}

// initials are at most two letters for a monogram: "Ada Lindqvist" is AL,
// "wiki" is W.
func initials(name string) string {
	if at := strings.IndexByte(name, '@'); at > 0 {
		name = name[:at]
	}
	words := strings.FieldsFunc(name, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	if len(words) == 0 {
		return "?"
	}
	out := initial(words[0])
	if len(words) > 1 {
		out += initial(words[len(words)-1])
	}
	return out
}

// initial is the first letter or digit of a name, in upper case.
func initial(name string) string {
	for _, r := range name {
		if r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return string(unicode.ToUpper(r))
		}
	}
	return "?"
}

// tint picks one of four tile colours by name, the same on every page. It
// only decorates: the letters beside it say what it is. Red is not among them,
// since red means a refusal.
func tint(name string) int {
	h := fnv.New32a()
	h.Write([]byte(name))
	return int(h.Sum32()%4) + 1
}

// shorten bounds a value that somebody else chose the length of.
func shorten(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}
