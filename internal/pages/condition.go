package pages

import (
	"html/template"
	"time"
)

// Outcome says how one condition came out.
type Outcome uint8

// The outcomes. Each has a sign and a word beside its colour.
const (
	Unmet   Outcome = iota // cross, "Not met"
	Met                    // tick, "Met"
	Unknown                // question mark, "Not known"
)

// Condition is one thing that an application asks for, and the evidence. All
// text is plain: values come from claims and directories.
type Condition struct {
	Outcome Outcome
	Title   string // "Your group is not allowed"
	Text    string // a sentence of its own, or ""
	Rule    string // name of the rule, or ""
	Noun    string // what Needs are: "group", "e-mail domain"
	Needs   []string
	// Saw are the values found. nil: not said; empty: none were found.
	Saw    []string
	Source string    // where the values come from: "the staff directory"
	Synced time.Time // when they were last known to be true; zero: not said
}

// PolicyWords is what one attached policy says to somebody who was refused
// (policy-language.md §10). Explanation and Remediation are Markdown.
type PolicyWords struct {
	ID                       string
	Denied, Allowed          bool
	Explanation, Remediation string
}

// Denial is what a route with show_error_details tells the visitor besides
// the refusal itself.
type Denial struct {
	Conditions []Condition
	Policies   []PolicyWords
	// Remedy is one sentence on what to do, where no policy says it.
	Remedy string
}

// ConditionFor words one of the fixed reasons of the policy language, such as
// "groups-unauthorized" (policy-language.md §7). Values, rule and age are for
// the caller to add. An unknown reason is shown as it is.
func ConditionFor(reason string) Condition {
	if w, ok := reasonWords[reason]; ok {
		return w
	}
	return Condition{Title: "Reason given: " + shorten(reason, 100)}
}

// reasonWords lists the reasons a visitor may meet. Those of a route's
// internals (pomerium-route, mcp-...) keep their own word.
var reasonWords = map[string]Condition{
	"accept":                          {Outcome: Met, Title: "The application is open"},
	"reject":                          {Title: "The application is closed to everyone"},
	"user-ok":                         {Outcome: Met, Title: "Your account is on the list", Noun: "account"},
	"user-unauthorized":               {Title: "Your account is not on the list", Noun: "account"},
	"user-unauthenticated":            {Title: "You are not signed in"},
	"email-ok":                        {Outcome: Met, Title: "Your email is on the list", Noun: "email"},
	"email-unauthorized":              {Title: "Your email is not on the list", Noun: "email"},
	"domain-ok":                       {Outcome: Met, Title: "Your email domain is allowed", Noun: "email domain"},
	"domain-unauthorized":             {Title: "Your email domain is not allowed", Noun: "email domain"},
	"claim-ok":                        {Outcome: Met, Title: "Your account carries the claim", Noun: "claim"},
	"claim-unauthorized":              {Title: "Your account lacks a claim", Noun: "claim"},
	"groups-ok":                       {Outcome: Met, Title: "Your group is allowed", Noun: "group"},
	"groups-unauthorized":             {Title: "Your group is not allowed", Noun: "group"},
	"device-ok":                       {Outcome: Met, Title: "Your device is known"},
	"device-unauthorized":             {Title: "Your device is not approved"},
	"device-unauthenticated":          {Title: "Your device is not known"},
	"http-method-ok":                  {Outcome: Met, Title: "This kind of request is allowed", Noun: "method"},
	"http-method-unauthorized":        {Title: "This kind of request is not allowed", Noun: "method"},
	"http-path-ok":                    {Outcome: Met, Title: "This page is allowed", Noun: "path"},
	"http-path-unauthorized":          {Title: "This page is not allowed", Noun: "path"},
	"source-ip-ok":                    {Outcome: Met, Title: "Your network is allowed", Noun: "network"},
	"source-ip-unauthorized":          {Title: "Your network is not allowed", Noun: "network"},
	"client-certificate-ok":           {Outcome: Met, Title: "Your certificate is allowed", Noun: "certificate"},
	"client-certificate-unauthorized": {Title: "Your certificate is not allowed", Noun: "certificate"},
	"client-certificate-required":     {Title: "A certificate is needed"},
	"invalid-client-certificate":      {Title: "Your certificate is not valid"},
	"valid-client-certificate":        {Outcome: Met, Title: "Your certificate is valid"},
	"date-ok":                         {Outcome: Met, Title: "The date is within the rule", Noun: "date"},
	"date-unauthorized":               {Title: "The date is outside the rule", Noun: "date"},
	"day-of-week-ok":                  {Outcome: Met, Title: "The day is within the rule", Noun: "day"},
	"day-of-week-unauthorized":        {Title: "The day is outside the rule", Noun: "day"},
	"time-of-day-ok":                  {Outcome: Met, Title: "The hour is within the rule", Noun: "hour"},
	"time-of-day-unauthorized":        {Title: "The hour is outside the rule", Noun: "hour"},
	"record-ok":                       {Outcome: Met, Title: "A record about you matches", Noun: "record"},
	"record-unauthorized":             {Title: "No record about you matches", Noun: "record"},
}

func (o Outcome) step(title string) step {
	switch o {
	case Met:
		return step{Class: "step-met", Icon: "check", Word: "Met", Title: title}
	case Unknown:
		return step{Class: "step-unknown", Icon: "question", Word: "Not known", Title: title}
	}
	return step{Class: "step-unmet", Icon: "cross", Word: "Not met", Title: title}
}

// view turns a condition into a step with its evidence as one or two sentences.
func (c Condition) view(now time.Time) step {
	s := c.Outcome.step(c.Title)
	add := func(parts ...span) { s.Body = append(s.Body, parts...) }
	gap := func() {
		if len(s.Body) > 0 {
			add(text(" "))
		}
	}
	if c.Text != "" {
		add(text(c.Text))
	}
	switch {
	case len(c.Needs) > 0:
		gap()
		if c.Rule != "" {
			add(text("Rule "), code(c.Rule), text(" needs "))
		} else {
			add(text("It needs "))
		}
		switch {
		case c.Noun == "":
		case len(c.Needs) == 1:
			add(text("the " + c.Noun + " "))
		default:
			add(text("one of the " + c.Noun + "s "))
		}
		add(list(c.Needs, "or")...)
		add(text("."))
	case c.Rule != "":
		gap()
		add(text("Rule "), code(c.Rule), text(" asks for it."))
	}
	if c.Saw != nil {
		gap()
		add(text("We saw "))
		if len(c.Saw) == 0 {
			add(text("none"))
		} else {
			add(list(c.Saw, "and")...)
		}
		if c.Source != "" {
			add(text(" from " + c.Source))
		}
		if !c.Synced.IsZero() {
			add(text(", last synced "), since(c.Synced, now))
		}
		add(text("."))
	}
	return s
}

// view turns a policy's words into a step and gives its remediation apart.
func (p PolicyWords) view() (step, template.HTML) {
	var s step
	switch {
	case p.Denied:
		s = Unmet.step("A policy refuses this")
	case p.Allowed:
		s = Met.step("A policy allows this")
	default:
		s = Unmet.step("A policy does not allow this")
	}
	if p.Explanation != "" {
		s.Words = Markdown(p.Explanation)
	} else {
		s.Body = sentence{text("Policy ID "), code(p.ID)}
	}
	if p.Remediation != "" && (p.Denied || !p.Allowed) {
		return s, Markdown(p.Remediation)
	}
	return s, ""
}
