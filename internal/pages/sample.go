package pages

import (
	"net/http"
	"strings"
	"time"
)

// Check is one thing the sample application verified about the assertion.
type Check struct {
	Passed bool
	Title  string // "The signature is right"
	Before string // a sentence: Before, Code as code, After
	Code   string
	After  string
}

// Link is a labelled address.
type Link struct{ Name, URL string }

// SamplePage is the demo's sample application: what an application learns
// from the signed assertion, and how it checked it.
type SamplePage struct {
	Name       string // of the application; "": "Sample application"
	Host       string
	Now        time.Time
	Person     string // display name
	Email      string
	Groups     []string
	UserID     string
	Provider   string // how they signed in: "local account"
	SignedInAt time.Time
	EndsAt     time.Time
	Verified   bool // every check passed; nothing about the person is shown otherwise
	Checks     []Check
	Doors      []Link // other pages to try
	SignOutURL string
}

// Sample shows the sample application. Status 200, or 403 if the assertion
// did not verify.
func (r *Renderer) Sample(w http.ResponseWriter, req *http.Request, p SamplePage) {
	type page struct {
		Name, Host, Person, SignOutURL, Door, Heading string
		Lead                                          sentence
		Verified                                      bool
		Facts                                         []fact
		Checks                                        []step
		Doors                                         []Link
	}
	v := page{Name: firstOf(p.Name, "Sample application"), Host: p.Host, SignOutURL: p.SignOutURL, Verified: p.Verified, Doors: p.Doors}
	status := http.StatusOK
	add := func(name string, s ...span) { v.Facts = append(v.Facts, fact{Name: name, Values: []sentence{s}}) }
	if p.Verified {
		who := firstOf(p.Person, p.Email, p.UserID)
		first, _, _ := strings.Cut(who, " ")
		v.Person = who
		v.Door, v.Heading = "verified", "Hello "+shorten(first, 60)+", you came in through Postern"
		v.Lead = say("This application has no login of its own. It read who you are from a signed note, checked the signature, and trusted nothing else.")
		for _, f := range []struct{ name, value string }{{"Email", p.Email}, {"Name", p.Person}} {
			if f.value != "" {
				add(f.name, text(f.value))
			}
		}
		if len(p.Groups) > 0 {
			v.Facts = append(v.Facts, fact{Name: "Groups", Badges: p.Groups})
		}
		if p.UserID != "" {
			add("User id", code(p.UserID))
		}
		if !p.SignedInAt.IsZero() {
			s := sentence{since(p.SignedInAt, p.Now)}
			if p.Provider != "" {
				s = append(s, text(", "+p.Provider))
			}
			add("Signed in", s...)
		}
		if !p.EndsAt.IsZero() {
			add("Session", text("ends "), moment(p.EndsAt))
		}
	} else {
		status = http.StatusForbidden
		v.Door, v.Heading = "barred", "This request did not come in through Postern"
		v.Lead = say("There is no signed note that this application can trust, so it does not know who you are.")
		add("You", text("not known"))
	}
	for _, c := range p.Checks {
		o := Unmet
		if c.Passed {
			o = Met
		}
		s := o.step(c.Title)
		if c.Before != "" {
			s.Body = append(s.Body, text(c.Before+" "))
		}
		if c.Code != "" {
			s.Body = append(s.Body, code(c.Code))
		}
		if c.After != "" {
			s.Body = append(s.Body, text(c.After))
		}
		v.Checks = append(v.Checks, s)
	}
	r.page(w, req, status, "sample", view{Title: v.Heading, Page: v}, policyFor{})
}
