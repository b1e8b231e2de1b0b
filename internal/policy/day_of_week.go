package policy

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

var dayOfWeek = &Criterion{
	Name:    "day_of_week",
	Doc:     "True on these days of the week, counted in UTC: days, ranges such as mon-fri, or *, separated by commas.",
	Value:   `a string such as "mon-fri,sun", or {is: "..."}`,
	Matcher: dayKind,
	Example: `
policy:
  - allow: {and: [day_of_week: "mon-fri,sun"]}
cases:
  - {name: Monday, now: 2026-03-02T10:00:00Z, expect: allow}
  - {name: Saturday, now: 2026-03-07T10:00:00Z, expect: deny}
`,
	Compile: compileDayOfWeek,
}

// dayNames are the names a day may have, Sunday first.
var dayNames = func() (names []string) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		long := strings.ToLower(d.String())
		names = append(names, long, long[:3])
	}
	return names
}()

func compileDayOfWeek(s *Scope, n *yaml.Node) test {
	value, sub := n, ""
	if n.Kind == yaml.MappingNode {
		entries, _ := s.object(n, "", "day_of_week key", []string{"is"})
		switch {
		case len(n.Content) == 0:
			s.Errorf(n, "", `day_of_week needs "is"`)
			return nil
		case len(entries) < len(n.Content)/2:
			return nil
		}
		value, sub = entries[0].value, "is"
	}
	list, ok := text(value)
	if !ok {
		s.Errorf(value, sub, "day_of_week wants a string such as mon-fri, got %s", describe(value))
		return nil
	}
	var days [7]bool
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		if item == "*" {
			days = [7]bool{true, true, true, true, true, true, true}
			continue
		}
		from, to, isRange := strings.Cut(item, "-")
		first, okFirst := s.day(value, sub, from)
		last, okLast := first, okFirst
		if isRange {
			last, okLast = s.day(value, sub, to)
		}
		if !okFirst || !okLast {
			ok = false
			continue
		}
		for d := first; ; d = (d + 1) % 7 {
			days[d] = true
			if d == last {
				break
			}
		}
	}
	if !ok {
		return nil
	}
	return func(in *Input) verdict {
		return pass(days[in.Now.UTC().Weekday()], ReasonDayOfWeekOK.set(), ReasonDayOfWeekUnauthorized.set())
	}
}

func (s *Scope) day(n *yaml.Node, sub, name string) (int, bool) {
	name = strings.TrimSpace(name)
	at := slices.Index(dayNames, strings.ToLower(name))
	if at < 0 {
		s.Errorf(n, sub, "unknown day %s%s Days: sun, mon, tue, wed, thu, fri, sat or full names, ranges such as mon-fri, or *",
			quote(name), orStop(didYouMean(name, dayNames)))
		return 0, false
	}
	return at / 2, true
}
