package pages

import (
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Bar is the head of the pages behind the door. "" hides a link.
type Bar struct {
	Person     string // display name of the person signed in
	PortalURL  string
	AccountURL string
	SignOutURL string
}

func (b Bar) view(current string) *navView {
	return &navView{Person: shorten(b.Person, 100), Current: current, PortalURL: b.PortalURL, AccountURL: b.AccountURL, SignOutURL: b.SignOutURL}
}

// Claim is one claim with its values, as applications may learn it.
type Claim struct {
	Name   string
	Values []string
}

// SessionView is one session as its owner may see it. There is no token in it
// and no id: nothing on the page can be replayed.
type SessionView struct {
	ThisOne    bool
	Program    bool      // of a program, not a browser
	SignedInAt time.Time // zero hides it
	UsedAt     time.Time
	EndsAt     time.Time
	SignOutURL string
}

// AccountPage shows a person who they are to us.
type AccountPage struct {
	Bar            Bar
	Now            time.Time
	Name, Email    string
	UserID         string
	Provider       string // where they signed in, as people know it
	ServiceAccount bool
	ImpersonatedBy string // e-mail or id of whoever acts as this person; "" if nobody
	Sessions       []SessionView
	Groups         []string
	GroupsSource   string    // "the staff directory"; "" hides it
	GroupsSynced   time.Time // when they were last read
	Claims         []Claim
	RequestID      string
}

// Account shows the signed-in person's own page. Status 200.
func (r *Renderer) Account(w http.ResponseWriter, req *http.Request, p AccountPage) {
	type row struct {
		Icon, Title, SignOutURL string
		ThisOne                 bool
		Facts                   sentence
	}
	type page struct {
		Heading, SessionsTitle string
		Lead, GroupsSource     sentence
		Callout                *callout
		Sessions               []row
		Claims                 []Claim
		Groups                 []string
		Receipt                *receipt
	}
	who := firstOf(p.Name, p.Email, p.UserID, "Your account")
	v := page{Heading: shorten(who, 120), SessionsTitle: "Session", Groups: p.Groups, Claims: publicClaims(p.Claims)}
	if len(p.Sessions) > 1 {
		v.SessionsTitle = "Sessions"
	}
	var lead []string
	if p.Email != "" && p.Email != who {
		lead = append(lead, p.Email)
	}
	switch {
	case p.ServiceAccount:
		lead = append(lead, "a service account")
	case p.Provider != "":
		lead = append(lead, "signed in through "+p.Provider)
	default:
		lead = append(lead, "signed in")
	}
	first := strings.Join(lead, ", ")
	v.Lead = say(strings.ToUpper(first[:1]) + first[1:])
	if p.Email != "" && p.Email != who {
		v.Lead = say(first) // an address keeps its own case
	}
	if p.ImpersonatedBy != "" {
		v.Callout = &callout{Tone: "warn", Icon: "person", Head: "Seen as somebody else.",
			Body: sentence{strong(p.ImpersonatedBy), text(" is acting as this person. Both names are written to the log.")}}
	}
	for _, s := range p.Sessions {
		t := row{Icon: "laptop", Title: "Browser session", ThisOne: s.ThisOne, SignOutURL: s.SignOutURL}
		if s.Program {
			t.Icon, t.Title = "terminal", "Program session"
		}
		if p.ServiceAccount {
			t.Icon, t.Title = "terminal", "Service account"
		}
		add := func(word string, at time.Time, aged bool) {
			if at.IsZero() {
				return
			}
			if len(t.Facts) > 0 {
				t.Facts = append(t.Facts, text(", "+word+" "))
			} else {
				t.Facts = append(t.Facts, text(strings.ToUpper(word[:1])+word[1:]+" "))
			}
			t.Facts = append(t.Facts, moment(at))
			if aged && !p.Now.IsZero() {
				t.Facts = append(t.Facts, text(" ("+age(at, p.Now)+")"))
			}
		}
		add("signed in", s.SignedInAt, true)
		add("last used", s.UsedAt, true)
		add("ends", s.EndsAt, false)
		v.Sessions = append(v.Sessions, t)
	}
	if len(p.Groups) > 0 {
		switch {
		case p.GroupsSource != "":
			v.GroupsSource = say("From " + p.GroupsSource)
		case !p.GroupsSynced.IsZero():
			v.GroupsSource = say("From the directory")
		}
		if !p.GroupsSynced.IsZero() {
			v.GroupsSource = append(v.GroupsSource, text(", synced "), since(p.GroupsSynced, p.Now))
		}
		if v.GroupsSource != nil {
			v.GroupsSource = append(v.GroupsSource, text("."))
		}
	}
	if p.RequestID != "" {
		v.Receipt = &receipt{ID: p.RequestID}
		if !p.Now.IsZero() {
			v.Receipt.Facts = []sentence{{moment(p.Now)}}
		}
		v.Receipt.Copy = v.Receipt.words("My account", req.Host, p.Now)
	}
	r.page(w, req, http.StatusOK, "account", view{Title: "My account", Nav: p.Bar.view("account"), Page: v}, policyFor{})
}

// AnonymousPage is the account page for somebody who is not signed in.
type AnonymousPage struct {
	SignInURL string // "" hides the button
	RequestID string
}

// Anonymous says that nobody is signed in. Status 200.
func (r *Renderer) Anonymous(w http.ResponseWriter, req *http.Request, p AnonymousPage) {
	g := gate{Door: "shut", Heading: "You are not signed in", Lead: say("Nothing is known about you here. When you sign in, this page shows what applications may learn about you.")}
	if p.SignInURL != "" {
		g.Actions = &actions{List: []action{{Label: "Sign in", URL: p.SignInURL, Look: "primary"}}}
	}
	if p.RequestID != "" {
		g.Receipt = &receipt{ID: p.RequestID}
		g.Receipt.Copy = g.Receipt.words(g.Heading, req.Host, time.Time{})
	}
	r.page(w, req, http.StatusOK, "gate", view{Title: g.Heading, Page: g}, policyFor{})
}

// Claims come from identity providers, and some put tokens among them. What
// could be replayed is withheld whoever calls this package (CVE-2024-39315).
var (
	tokenName  = regexp.MustCompile(`(?i)(^|[._-])(token|access_token|refresh_token|id_token|secret|password|passwd|code|nonce|at_hash|c_hash|s_hash|jwt|assertion|api_?key)$`)
	tokenValue = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*\.?|(?i)\b(bearer|basic|pomerium-)\s*[A-Za-z0-9._~+/=-]{16,}`)
)

const (
	mostClaims     = 200
	mostValues     = 50
	mostClaimBytes = 1024
)

// publicClaims drops credentials and bounds the rest.
func publicClaims(claims []Claim) []Claim {
	var out []Claim
	for _, c := range claims {
		if tokenName.MatchString(c.Name) || tokenValue.MatchString(c.Name) {
			continue
		}
		if len(out) == mostClaims {
			return append(out, Claim{Name: "…", Values: []string{"more claims are not shown"}})
		}
		shown := Claim{Name: shorten(c.Name, 200)}
		for i, v := range c.Values {
			if i == mostValues {
				shown.Values = append(shown.Values, "… and more")
				break
			}
			if tokenValue.MatchString(v) {
				v = "(a credential, not shown)"
			}
			shown.Values = append(shown.Values, shorten(v, mostClaimBytes))
		}
		if len(shown.Values) == 0 {
			shown.Values = []string{"(empty)"}
		}
		out = append(out, shown)
	}
	return out
}
