package policy

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // so that zones are the same on a machine without them

	"go.yaml.in/yaml/v3"
)

var timeOfDay = &Criterion{
	Name:    "time_of_day",
	Doc:     "True after and/or before a time of day in a time zone, both strict and on the same day. An interval over midnight is written with or.",
	Value:   "time of day matcher: timezone, after, before",
	Matcher: timeKind,
	Example: `
policy:
  - allow: {and: [time_of_day: {timezone: Europe/Oslo, after: "8:00", before: "5:30 PM"}]}
cases:
  - {name: in the morning, now: 2026-03-02T07:30:00Z, expect: allow}
  - {name: in the evening, now: 2026-03-02T19:00:00Z, expect: deny}
`,
	Compile: compileTimeOfDay,
}

func compileTimeOfDay(s *Scope, n *yaml.Node) test {
	entries, ok := s.object(n, "", "time_of_day key", []string{"timezone", "after", "before"})
	if !ok {
		return nil
	}
	var zone *time.Location
	var after, before *clock
	named, bounded := false, false
	for _, e := range entries {
		named = named || e.name == "timezone"
		bounded = bounded || e.name != "timezone"
		t, isText := s.text(e.value, e.name, e.name)
		if !isText {
			ok = false
			continue
		}
		if e.name == "timezone" {
			var err error
			// "" and "Local" are names to the library, and both would make the
			// answer depend on the machine or on a slip.
			if t == "" || t == "Local" {
				err = fmt.Errorf("not a zone")
			} else {
				zone, err = time.LoadLocation(t)
			}
			if err != nil {
				s.Errorf(e.value, e.name, "%s is not a timezone; give an IANA name such as Europe/Oslo or UTC", quote(t))
				ok = false
			}
			continue
		}
		c, err := parseClock(t)
		if err != nil {
			s.Errorf(e.value, e.name, "%s is not a time of day; formats are 3:04 PM, 3:04PM, 3 PM, 3PM, 15:04, 15:04:05 and 15:04:05.999999999", quote(t))
			ok = false
			continue
		}
		if e.name == "after" {
			after = &c
		} else {
			before = &c
		}
	}
	if !named {
		s.Errorf(n, "", `time_of_day needs a "timezone", such as Europe/Oslo or UTC`)
		ok = false
	}
	if !bounded {
		s.Errorf(n, "", `time_of_day needs "after" or "before", or both`)
		ok = false
	}
	if !ok || len(entries) < len(n.Content)/2 {
		return nil
	}
	if after != nil && before != nil && after.sinceMidnight() >= before.sinceMidnight() {
		s.Warnf(n, "", "the interval over midnight is empty; write it as or with one after and one before")
	}
	return func(in *Input) verdict {
		now := in.Now.In(zone)
		holds := (after == nil || now.After(after.on(now))) && (before == nil || now.Before(before.on(now)))
		return pass(holds, ReasonTimeOfDayOK.set(), ReasonTimeOfDayUnauthorized.set())
	}
}

// clock is a time of day.
type clock struct{ hour, minute, second, nanosecond int }

func (c clock) sinceMidnight() time.Duration {
	return time.Duration(c.hour)*time.Hour + time.Duration(c.minute)*time.Minute +
		time.Duration(c.second)*time.Second + time.Duration(c.nanosecond)
}

// on is the moment on the calendar day of day, in its zone.
func (c clock) on(day time.Time) time.Time {
	return time.Date(day.Year(), day.Month(), day.Day(), c.hour, c.minute, c.second, c.nanosecond, day.Location())
}

// ParseTimeOfDay reads a time of day as policies write it and gives the time
// since midnight.
func ParseTimeOfDay(t string) (time.Duration, error) {
	c, err := parseClock(t)
	return c.sinceMidnight(), err
}

func parseClock(t string) (clock, error) {
	var err error
	for _, layout := range []string{"3:04 PM", "3:04PM", "3 PM", "3PM", "15:04", "15:04:05"} {
		var at time.Time
		if at, err = time.Parse(layout, strings.ToUpper(t)); err == nil {
			return clock{at.Hour(), at.Minute(), at.Second(), at.Nanosecond()}, nil
		}
	}
	return clock{}, err
}
