package pages

import (
	"html/template"
	"net/http"
	"strings"
	"time"
)

// gate is what one card in the arch shows, in order of attention. Sign-out,
// confirmation and every error page are gates that fill different parts.
type gate struct {
	Door, Heading string
	Lead          sentence
	Wide          bool
	Explained     template.HTML
	Steps         []step
	Strip         []stop
	Callout       *callout
	Facts         []fact
	HowTo         sentence
	Branded       template.HTML
	Numbered      []sentence
	Form          *form
	Actions       *actions
	Hint, Assure  sentence
	Receipt       *receipt
}

type callout struct {
	Tone, Icon, Head string
	Alert            bool
	Body             sentence
	Words            template.HTML
}

type step struct {
	Class, Icon, Word, Title string
	Body                     sentence
	Words                    template.HTML
}

type stop struct {
	Name, News, Icon string
	Bad              bool
}

type fact struct {
	Name   string
	Values []sentence
	Badges []string
}

type action struct{ Label, URL, Look, Icon string }

type actions struct {
	List       []action
	Even, Wide bool
}

type button struct{ Label, Look, Name, Value, URL string }

type form struct {
	Action  string
	Fields  []Field
	Buttons []button
	Even    bool
}

type receipt struct {
	ID, Copy string
	Facts    []sentence
}

// Field is a hidden form field, for example a CSRF token or signed state.
type Field struct{ Name, Value string }

// ProviderChoice is one identity provider on the sign-in page.
type ProviderChoice struct {
	Name string // as people know it: "Fernhill staff"
	Hint string // one short line, or ""
	URL  string // where the choice leads
	// LastUsed says that this browser used it last. Such a choice comes first;
	// set it only if it is known.
	LastUsed bool
}

// SignInPage asks which account to use.
type SignInPage struct {
	Application string // where to; "" if it is not known
	Host        string // this host, for people to check
	Providers   []ProviderChoice
	LocalURL    string // the local form; "" if there are no local accounts
}

// SignIn shows the sign-in choice. Status 200.
func (r *Renderer) SignIn(w http.ResponseWriter, req *http.Request, p SignInPage) {
	type page struct {
		Heading, LocalURL, Host string
		Lead                    sentence
		Choices                 []ProviderChoice
	}
	v := page{Heading: signInHeading(p.Application), LocalURL: p.LocalURL, Host: p.Host, Lead: say("Choose the account you use.")}
	if r.brand.Name != "Postern" {
		v.Lead = sentence{text("Choose the account you use at "), text(r.brand.Name), text(".")}
	}
	if len(p.Providers) == 0 {
		v.Lead = say("Continue with your account.")
	}
	for _, first := range [...]bool{true, false} {
		for _, c := range p.Providers {
			if c.LastUsed != first {
				continue
			}
			if first {
				c.Hint = "You used this last time"
			}
			v.Choices = append(v.Choices, c)
		}
	}
	r.page(w, req, http.StatusOK, "signin", view{Title: v.Heading, Page: v}, policyFor{})
}

func signInHeading(application string) string {
	if application == "" {
		return "Sign in"
	}
	return "Sign in to " + shorten(application, 80)
}

// LocalProblem says what was wrong with the last try at the local form.
type LocalProblem uint8

// The problems of the local form.
const (
	LocalFine     LocalProblem = iota
	LocalMismatch              // status 401: account and password do not match; also unknown accounts
	LocalWait                  // status 429: too many tries, Wait says for how long
	LocalExpired               // status 400: the form was too old or came from elsewhere
)

// LocalPage is the form for local accounts. Its fields are "email",
// "password" and, with KeepFor, "keep" = "yes".
type LocalPage struct {
	Application string // where to; "" if it is not known
	ReturnHost  string // where the person returns to; "" hides it
	Host        string // this host, for people to check; "" hides it
	Email       string // what was typed, kept; a password never is
	Problem     LocalProblem
	Wait        time.Duration // with LocalWait; also sent as Retry-After
	Action      string        // where the form is posted
	Fields      []Field       // hidden fields
	KeepFor     time.Duration // 0: staying signed in is not offered
	Keep        bool
	OtherURL    string // the sign-in choice; "" if there is nothing to choose
	// FormOrigins are the URLs whose origins the browser visits after the form
	// was accepted: browsers apply form-action to redirects too, so the route
	// host that the login returns to belongs here.
	FormOrigins []string
}

// Local shows the form for local accounts.
func (r *Renderer) Local(w http.ResponseWriter, req *http.Request, p LocalPage) {
	type page struct {
		Heading, Action, Email, KeepLabel, OtherURL, Host string
		Keep                                              bool
		Lead                                              sentence
		Fields                                            []Field
		Callout                                           *callout
	}
	v := page{
		Heading: signInHeading(p.Application), Action: p.Action, Email: p.Email, Keep: p.Keep,
		OtherURL: p.OtherURL, Host: p.Host, Fields: p.Fields,
	}
	if p.ReturnHost != "" {
		v.Lead = sentence{text("You will return to "), code(p.ReturnHost), text(".")}
	}
	if p.KeepFor > 0 {
		v.KeepLabel = "Keep me signed in for " + span0(p.KeepFor) + " on this device"
	}
	status, title := http.StatusOK, v.Heading
	problem := func(s int, head, body string) {
		status, title = s, head
		v.Callout = &callout{Tone: "bad", Icon: "warn", Alert: true, Head: head, Body: say(body)}
	}
	switch p.Problem {
	case LocalMismatch:
		problem(http.StatusUnauthorized, "That email and password do not match.", "Check both and try again.")
	case LocalWait:
		retryAfter(w, p.Wait)
		wait := "a moment"
		if p.Wait > 0 {
			wait = limit(p.Wait.Round(time.Second))
		}
		problem(http.StatusTooManyRequests, "Too many tries in a row.", "Wait "+wait+", then try again. Nothing is locked.")
	case LocalExpired:
		problem(http.StatusBadRequest, "This form had grown too old.", "It has been renewed. Sign in once more.")
	}
	r.page(w, req, status, "local", view{Title: strings.TrimSuffix(title, "."), Page: v}, policyFor{forms: p.FormOrigins})
}

// SignedOutPage says that a session has ended.
type SignedOutPage struct {
	// ConnectionsClosed says that open connections were ended too. Set it only
	// if they were.
	ConnectionsClosed bool
	Provider          string // where the person may still be signed in; "" hides it
	ProviderURL       string // sign-out page there, or ""
	SignInURL         string // "" hides the button
}

// SignedOut shows that the person is signed out. Status 200.
func (r *Renderer) SignedOut(w http.ResponseWriter, req *http.Request, p SignedOutPage) {
	g := gate{Door: "shut", Heading: "You are signed out"}
	if p.ConnectionsClosed {
		g.Lead = say("Your session has ended on every application, and open connections were closed.")
	} else {
		g.Lead = say("Your session has ended on every application.")
	}
	if p.Provider != "" {
		g.Callout = &callout{Icon: "info", Body: sentence{text("You may still be signed in at "), strong(p.Provider), text(".")}}
		if p.ProviderURL != "" {
			g.Callout.Body = append(g.Callout.Body, text(" On a shared computer, "),
				span{Kind: "link", Text: "sign out there too", URL: p.ProviderURL}, text("."))
		}
	}
	if p.SignInURL != "" {
		g.Actions = &actions{Wide: true, List: []action{{Label: "Sign in again", URL: p.SignInURL, Look: "primary"}}}
	}
	r.page(w, req, http.StatusOK, "gate", view{Title: g.Heading, Page: g}, policyFor{})
}

// SignOutPage asks before a sign-out that another site may have started.
type SignOutPage struct {
	Who    string // e-mail or name; "" if not known
	Action string // where the form is posted
	Fields []Field
	// URL is a signed link that signs out, used instead of the form if set.
	URL         string
	StayURL     string   // where "Stay signed in" leads
	FormOrigins []string // see LocalPage; sign-out may go on to the provider
}

// ConfirmSignOut asks whether to sign out. Status 200.
func (r *Renderer) ConfirmSignOut(w http.ResponseWriter, req *http.Request, p SignOutPage) {
	g := gate{Door: "ajar", Heading: "Sign out?"}
	if p.Who != "" {
		g.Lead = sentence{text("You are signed in as "), strong(p.Who), text(". ")}
	}
	g.Lead = append(g.Lead, text("Signing out ends your session on every application and closes open connections."))
	out := button{Label: "Sign out", Look: "primary", URL: p.URL}
	g.Form = &form{Action: p.Action, Fields: p.Fields, Buttons: []button{out}}
	if p.StayURL != "" {
		g.Form.Even = true
		g.Form.Buttons = append(g.Form.Buttons, button{Label: "Stay signed in", Look: "quiet", URL: p.StayURL})
	}
	r.page(w, req, http.StatusOK, "gate", view{Title: g.Heading, Page: g}, policyFor{forms: p.FormOrigins})
}

// ProgramPage asks before a program is given a token of its own. The form
// posts "decision" = "allow" or "refuse".
type ProgramPage struct {
	Application string // what the program asks to reach, by name or host
	Destination string // where the token will be sent, as host:port
	Local       bool   // Destination is on this device
	Who         string // e-mail or name of the person signed in
	Until       time.Time
	Action      string
	Fields      []Field
	FormOrigins []string // see LocalPage; the program's address belongs here
}

// ConfirmProgram asks whether a program may sign in as the person. Status 200.
func (r *Renderer) ConfirmProgram(w http.ResponseWriter, req *http.Request, p ProgramPage) {
	g := gate{
		Door: "terminal", Heading: "Allow a program to sign in as you?",
		Lead: say("A program, we hope yours, is asking for a sign-in of its own. Allow it only if you started it just now."),
		Form: &form{Action: p.Action, Fields: p.Fields, Even: true, Buttons: []button{
			{Label: "Allow", Look: "primary", Name: "decision", Value: "allow"},
			{Label: "Refuse", Look: "bad", Name: "decision", Value: "refuse"},
		}},
	}
	add := func(name string, s sentence) { g.Facts = append(g.Facts, fact{Name: name, Values: []sentence{s}}) }
	if p.Application != "" {
		add("For", sentence{strong(p.Application)})
	}
	if p.Who != "" {
		add("As", say(p.Who))
	}
	if p.Destination != "" {
		s := sentence{code(p.Destination)}
		if p.Local {
			s = append(s, text(", on this device"))
		}
		add("Sent to", s)
	}
	if !p.Until.IsZero() {
		add("Valid until", sentence{moment(p.Until)})
	}
	r.page(w, req, http.StatusOK, "gate", view{Title: g.Heading, Page: g}, policyFor{forms: p.FormOrigins})
}
