package policy

import (
	"time"

	"go.yaml.in/yaml/v3"
)

var date = &Criterion{
	Name:    "date",
	Doc:     "True after and/or before a moment, both strict. A date without a time is its midnight, one without an offset is UTC.",
	Value:   "date matcher: after, before",
	Matcher: dateKind,
	Example: `
policy:
  - allow:
      and:
        - email: guest@partner.test
        - date: {after: 2026-03-01, before: 2026-04-01T12:00:00+02:00}
defaults: {user: {id: guest, email: guest@partner.test}}
cases:
  - {name: in March, now: 2026-03-15T00:00:00Z, expect: allow}
  - {name: after the end, now: 2026-04-01T10:00:00Z, expect: deny}
`,
	Compile: compileDate,
}

var intervalKeys = []string{"after", "before"}

func compileDate(s *Scope, n *yaml.Node) test {
	entries, ok := s.object(n, "", "date key", intervalKeys)
	if !ok {
		return nil
	}
	if len(n.Content) == 0 {
		s.Errorf(n, "", `date needs "after" or "before", or both`)
		return nil
	}
	var after, before *time.Time
	for _, e := range entries {
		t, isText := s.text(e.value, e.name, e.name)
		if !isText {
			ok = false
			continue
		}
		moment, err := ParseMoment(t)
		if err != nil {
			s.Errorf(e.value, e.name, "%s is not a date; write it as 2026-05-01, 2026-05-01T08:00 or 2026-05-01T08:00:00+02:00", quote(t))
			ok = false
			continue
		}
		if e.name == "after" {
			after = &moment
		} else {
			before = &moment
		}
	}
	if !ok || len(entries) < len(n.Content)/2 {
		return nil
	}
	if after != nil && before != nil && !after.Before(*before) {
		s.Warnf(n, "", "no moment lies after %s and before %s, so this is never true", after.Format(time.RFC3339), before.Format(time.RFC3339))
	}
	return func(in *Input) verdict {
		holds := (after == nil || in.Now.After(*after)) && (before == nil || in.Now.Before(*before))
		return pass(holds, ReasonDateOK.set(), ReasonDateUnauthorized.set())
	}
}

// ParseMoment reads the bound of a date as policies write it, ISO 8601 (§6): a
// date, or a date and a time to the minute, second or fraction, with Z, an
// offset, or neither for UTC.
func ParseMoment(t string) (time.Time, error) {
	var err error
	for _, layout := range []string{
		"2006-01-02",
		"2006-01-02T15:04", "2006-01-02T15:04Z07:00", "2006-01-02T15:04Z0700", "2006-01-02T15:04Z07",
		"2006-01-02T15:04:05", "2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05Z07",
	} {
		var moment time.Time
		if moment, err = time.Parse(layout, t); err == nil {
			return moment, nil
		}
	}
	return time.Time{}, err
}
