package pages

import (
	"html/template"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// errorGate words an error for a person: heading, one sentence, whose side it
// is on, what to do, and the receipt. What is said here must be true in every
// case that reaches it; where the proxy cannot know, the page says less.
func (r *Renderer) errorGate(req *http.Request, status int, p *ErrorPage) gate {
	app := shorten(p.Application, 80)
	if app == "" {
		app = shorten(p.Host, 120)
	}
	sub, obj := app, app // as subject and as object of a sentence
	if app == "" {
		sub, obj = "The application", "this application"
	}
	var g gate
	var acts []action
	receipt := receipt{ID: p.RequestID}
	receiptSays := "" // code and words at the foot
	retry := func(look string) {
		if u := retryURL(req, p.RetryURL); u != "" {
			acts = append(acts, action{Label: "Try again", URL: u, Look: look})
		}
	}
	link := func(label, u, look string) {
		if u != "" {
			acts = append(acts, action{Label: label, URL: u, Look: look})
		}
	}
	help := func() { link("Get help", r.brand.HelpURL, "quiet") }
	strip := func(you, gateway, last string) {
		if gateway == "" {
			gateway = "working"
		}
		g.Strip = []stop{
			{Name: "You", News: you, Icon: "check"},
			{Name: "Gateway", News: gateway, Icon: "check"},
			{Name: sub, News: last, Icon: "cross", Bad: true},
		}
		if p.Application == "" {
			g.Strip[2].Name = "Application"
		}
	}
	you := "reached us"
	fine := "Your request reached us. "
	if p.Who != "" {
		you, fine = "signed in", "You and your access are fine. "
	}
	const askHelp = "If it goes on, give the help desk the request number."
	const askRunner = "If it goes on, give the request number to whoever runs this application."

	switch p.Kind {
	case Denied:
		r.deniedGate(&g, status, p, obj)
		look := "primary"
		if r.brand.HelpURL != "" {
			link("Get help", r.brand.HelpURL, "primary")
			look = "quiet"
		}
		link("Use another account", p.OtherAccountURL, look)
		link("Sign in", p.SignInURL, look)
		link("See my account", p.AccountURL, "text")
		if !p.Time.IsZero() {
			receipt.Facts = append(receipt.Facts, sentence{moment(p.Time)})
		}
	case Unauthenticated:
		g.Door, g.Heading = "shut", "You are not signed in"
		g.Lead = sentence{text("This request brought no sign-in that we can accept for "), text(obj), text(".")}
		link("Sign in", p.SignInURL, "primary")
		receiptSays = "not signed in"
	case NotFound:
		g.Door, g.Heading = "absent", "There is no application here"
		receiptSays = "no such route"
		switch {
		case p.Source == FromEndpoint:
			g.Heading = "There is no page here"
			g.Lead = say("Check the address for a slip.")
			receiptSays = "no such page"
		case p.Host != "":
			g.Lead = sentence{text("Nothing is published at "), code(shorten(p.Host, 260)), text(". Check the address for a slip.")}
		default:
			g.Lead = say("Nothing is published at this address. Check it for a slip.")
		}
		if p.SuggestedURL != "" {
			g.Callout = &callout{Icon: "search", Body: sentence{text("Did you mean "),
				{Kind: "link", Text: p.SuggestedName, URL: p.SuggestedURL}, text("? Shown because you may open it.")}}
		}
		link("Your applications", p.PortalURL, "primary")
	case Unreachable:
		g.Door, g.Heading = "unreachable", sub+" is not answering"
		g.Lead = sentence{text(fine), text("The application behind this address is not accepting connections.")}
		strip(you, "", "no answer")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "upstream unreachable"
	case BadAnswer:
		g.Door, g.Heading = "unreachable", sub+" broke off"
		g.Lead = sentence{text(fine), text("The application took the request and ended the connection without a whole answer. If you were saving something, check before sending it again.")}
		strip(you, "", "broke off")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "upstream answer incomplete"
	case Timeout:
		g.Door, g.Heading = "slow", sub+" took too long"
		waited := "in time"
		gateway := ""
		if p.Waited > 0 {
			waited = "after " + limit(p.Waited)
			gateway = "waited " + limit(p.Waited)
		}
		g.Lead = sentence{text("It had not answered " + waited + ". If you were saving something, check before sending it again.")}
		strip(you, gateway, "no reply in time")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "upstream timeout"
		if p.TimeoutKey != "" {
			receipt.Facts = append(receipt.Facts, sentence{text("limit set by "), code(p.TimeoutKey)})
		}
	case Busy:
		g.Door, g.Heading = "slow", sub+" is busy"
		g.Lead = sentence{text(fine), text("The application has as much to do as it may take, so your request was not passed on. Try again in a moment.")}
		strip(you, "", "full")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "upstream full"
		if p.TimeoutKey != "" {
			receipt.Facts = append(receipt.Facts, sentence{text("limit set by "), code(p.TimeoutKey)})
		}
	case NoHealthy:
		g.Door, g.Heading = "unreachable", sub+" is out of order"
		g.Lead = sentence{text(fine), text("None of the servers behind this address works at the moment. The gateway keeps looking and opens again by itself.")}
		strip(you, "", "out of order")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "no healthy upstream"
	case Untrusted:
		g.Door, g.Heading = "shut", sub+" could not prove who it is"
		g.Lead = sentence{text(fine), text("The application behind this address did not show that it is the right one, so your request was not passed on.")}
		strip(you, "", "not trusted")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "upstream certificate not accepted"
	case Misconfigured:
		g.Door, g.Heading = "shut", sub+" is not set up correctly"
		g.Lead = say("There is a mistake in its settings, so it stays shut until that is mended. Other applications are not affected, and nothing is wrong with your account.")
		link("Your applications", p.PortalURL, "primary")
		retry("quiet")
		receiptSays = "route misconfigured"
	case Unavailable:
		g.Door, g.Heading = "slow", "We cannot check your access just now"
		g.Lead = say("What the check needs is not up to date, so the door stays shut. Nothing is wrong with your account.")
		retry("primary")
		receiptSays = "decision not available"
	case TooMany:
		g.Door, g.Heading = "slow", "Too many requests at once"
		g.Lead = say("We have paused this for a moment. Nothing is wrong with your account.")
		if p.RetryAfter > 0 {
			g.Lead = say("We have paused this. Wait " + limit(p.RetryAfter.Round(time.Second)) + ", then try again. Nothing is wrong with your account.")
		}
		retry("primary")
		receiptSays = "too many requests"
	case ClientCertificate:
		r.certificateGate(&g, p, app, sub)
		retry("primary")
		help()
		receiptSays = "no certificate presented"
		if p.CertificateFailed {
			receiptSays = "certificate not accepted"
		}
	case LoginLoop:
		loopGate(&g, p)
		link("Start once more", retryURL(req, p.RetryURL), "primary")
		help()
		switch {
		case p.Attempts > 0 && p.Within > 0:
			receiptSays = strconv.Itoa(p.Attempts) + " attempts in " + limit(p.Within.Round(time.Second))
		case p.Attempts > 0:
			receiptSays = strconv.Itoa(p.Attempts) + " attempts"
		}
	case SignInFailed:
		g.Door, g.Heading = "shut", "Sign-in could not be finished"
		g.Lead = say("Nothing was changed and nobody was signed in.")
		link("Start again", firstOf(p.SignInURL, p.RetryURL), "primary")
		help()
		receiptSays = "sign-in failed"
	case ProviderUnavailable:
		g.Door, g.Heading = "unreachable", "The sign-in service is not answering"
		g.Lead = say("The service that checks who you are cannot be reached just now. Your account is not at fault.")
		if r.brand.Name != "Postern" {
			g.Lead = say("The service that checks who you are for " + r.brand.Name + " cannot be reached just now. Your account is not at fault.")
		}
		link("Try again", firstOf(p.SignInURL, retryURL(req, p.RetryURL)), "primary")
		receiptSays = "identity provider unavailable"
	case BadRequest:
		g.Door, g.Heading = "shut", "This request cannot be used"
		g.Lead = say("Part of it is missing, too old, or not in a form we accept.")
		link("Your applications", p.PortalURL, "primary")
		receiptSays = strings.ToLower(p.reason(status))
	default:
		g.Door, g.Heading = "unreachable", "Something went wrong on our side"
		g.Lead = say("It is not your doing. If you were saving something, check before sending it again.")
		retry("primary")
		link("Your applications", p.PortalURL, "quiet")
		receiptSays = "internal error"
	}

	if p.Message != "" && p.Kind != Denied {
		g.Lead = sentence{text(p.Message)}
		if p.Kind == LoginLoop {
			g.Lead = append(say("Going round again would not help. "), text(p.Message))
		}
	}
	switch {
	case p.Administrator && p.Detail != "":
		g.Callout = &callout{Icon: "info", Head: "What went wrong", Body: sentence{text(capital(shorten(p.Detail, 600)))}}
	case (p.ShowDetails || p.Administrator) && p.Brief != "":
		g.Callout = &callout{Icon: "info", Head: "What went wrong", Body: sentence{text(p.Brief)}}
	}
	if len(g.Strip) > 0 || p.Kind == Internal || p.Kind == Misconfigured {
		g.Hint = say(askRunner)
		if r.brand.HelpURL != "" {
			g.Hint = say(askHelp)
		}
	}
	// The organisation's own paragraph stands below our reason, and only where
	// the route shows details.
	if p.ShowDetails {
		g.Branded = r.words
	}
	if len(acts) > 0 {
		g.Actions = &actions{List: acts}
	}
	if receiptSays != "" {
		if p.Kind != LoginLoop && p.Kind != ClientCertificate {
			receiptSays = strconv.Itoa(status) + " " + receiptSays
		}
		receipt.Facts = append([]sentence{say(receiptSays)}, receipt.Facts...)
	}
	if p.RequestID != "" {
		receipt.Copy = receipt.words(g.Heading, p.Host, p.Time)
		g.Receipt = &receipt
	}
	return g
}

func (r *Renderer) deniedGate(g *gate, status int, p *ErrorPage, obj string) {
	g.Door = "barred"
	g.Heading = "You do not have access to " + obj
	reason := "This account is not on the list for this application."
	if status == 450 {
		reason = "This device is not approved for this application."
	}
	switch {
	case p.Who != "":
		g.Lead = sentence{text("You are signed in as "), strong(p.Who), text(". "), text(reason)}
	case status == 450:
		g.Lead = say(reason)
	default:
		g.Lead = say("This request does not meet what the application asks for.")
	}
	if p.Message != "" {
		g.Lead = append(g.Lead[:max(0, len(g.Lead)-1)], text(p.Message))
	}
	g.HowTo = say("Ask whoever runs this application. Send them the request number below; with it they can find what was checked.")
	if r.brand.HelpURL != "" {
		g.HowTo = say("Ask the help desk. Send them the request number below; with it they can find what was checked.")
	}
	d := p.Denial
	if !p.ShowDetails || (len(d.Conditions) == 0 && len(d.Policies) == 0 && d.Remedy == "") {
		return
	}
	g.Wide = true
	met := 0
	for _, c := range d.Conditions {
		if c.Outcome == Met {
			met++
		}
		g.Steps = append(g.Steps, c.view(p.Time))
	}
	if n := len(d.Conditions); n > 1 && p.Message == "" {
		g.Lead = say("Of " + strings.ToLower(count(n)) + " conditions that were checked, " + isMet(met) + ".")
		if p.Who != "" {
			g.Lead = append(sentence{text("You are signed in as "), strong(p.Who), text(". ")}, g.Lead...)
		}
	}
	var remedies template.HTML
	for _, w := range d.Policies {
		s, remedy := w.view()
		g.Steps = append(g.Steps, s)
		remedies += remedy
	}
	switch {
	case remedies != "":
		g.Callout = &callout{Icon: "info", Head: "What you can do", Words: remedies}
		g.HowTo = nil
	case d.Remedy != "":
		g.Callout = &callout{Icon: "info", Head: "What you can do", Body: say(d.Remedy)}
		g.HowTo = nil
	}
}

func isMet(n int) string {
	switch n {
	case 0:
		return "none is met"
	case 1:
		return "one is met"
	}
	return strings.ToLower(count(n)) + " are met"
}

func (r *Renderer) certificateGate(g *gate, p *ErrorPage, app, sub string) {
	g.Door, g.Heading = "key", "This application needs a certificate"
	g.Lead = sentence{text("Your browser did not send one. " + sub + " opens only to devices that hold a certificate.")}
	if p.CertificateFailed {
		g.Heading = "This certificate is not accepted"
		g.Lead = sentence{text("Your browser sent a certificate that is not valid here: it may have expired, been withdrawn, or come from another issuer.")}
	}
	install := sentence{text("Install your certificate, or ask whoever gave you this device for one.")}
	if r.brand.HelpURL != "" {
		install = sentence{text("Install your certificate, or ask the help desk for one.")}
	}
	if app == "" {
		app = "the application"
	}
	open := sentence{text("Open " + app + " and choose the certificate")}
	if len(p.Issuers) > 0 {
		open = append(open, text(" issued by "))
		for i, name := range p.Issuers {
			if i == 4 {
				break // a person needs a hint, not a trust store
			}
			if i > 0 {
				open = append(open, text(" or "))
			}
			open = append(open, strong(shorten(name, 100)))
		}
	}
	g.Numbered = []sentence{
		install,
		say("Close every window of this browser, so that it asks again."),
		append(open, text(".")),
	}
}

func loopGate(g *gate, p *ErrorPage) {
	g.Door, g.Heading = "loop", "We stopped a sign-in loop"
	times := "several times"
	switch {
	case p.Attempts == 3:
		times = "three times"
	case p.Attempts > 1:
		times = strconv.Itoa(p.Attempts) + " times"
	}
	g.Lead = say("You were sent to sign in " + times + " and came back without a session each time. Going round again would not help.")
	var cause sentence
	cookies := say("Allow cookies for this site.")
	clock := say("Check that the clock on this device is right.")
	if !p.Time.IsZero() {
		clock = sentence{text("Check that the clock on this device is right. It is now "), {Kind: "time", Text: p.Time.UTC().Format("15:04 UTC"), URL: p.Time.UTC().Format(time.RFC3339)}, text(".")}
	}
	start := say("Then start once more.")
	g.Numbered = []sentence{cookies, clock, start}
	switch p.Cause {
	case LoopCookie:
		cause = say("Your browser did not keep our cookie.")
		if p.CookieHost != "" {
			cause = sentence{text("Your browser did not keep our cookie. It may block cookies for "), code(p.CookieHost), text(".")}
		}
	case LoopSession:
		cause = say("Your browser kept our cookie, but the session it names was not found here. Several servers may not share their sessions.")
		g.Numbered = []sentence{say("Wait a minute, then start once more."), say("If it happens again, send the request number to whoever runs this site.")}
	case LoopProvider:
		cause = say("You are signed in with an account of one kind, and this application asks for another.")
		g.Numbered = []sentence{say("Sign out."), say("Then start once more and choose the other account.")}
	case LoopClock:
		cause = say("A sign-in link was too old or too new when it came back. The clocks of this device and of our servers may differ.")
		g.Numbered = []sentence{clock, start}
	default:
		return
	}
	g.Callout = &callout{Tone: "warn", Icon: "warn", Head: "Most likely cause", Body: cause}
}

// words is the receipt as plain text, for the copy button.
func (c receipt) words(heading, host string, at time.Time) string {
	parts := []string{heading}
	if host != "" {
		parts = append(parts, "Address: "+host)
	}
	parts = append(parts, "Request: "+c.ID)
	for _, f := range c.Facts {
		var b strings.Builder
		for _, s := range f {
			b.WriteString(s.Text)
		}
		if s := b.String(); at.IsZero() || s != stamp(at) {
			parts = append(parts, s)
		}
	}
	if !at.IsZero() {
		parts = append(parts, stamp(at))
	}
	return strings.Join(parts, "\n")
}

// retryURL is where "Try again" leads: what the caller says, else the same
// page, if asking for it again is harmless and cannot leave this host.
func retryURL(req *http.Request, given string) string {
	if given != "" {
		return given
	}
	if (req.Method != http.MethodGet && req.Method != http.MethodHead) || req.URL == nil {
		return ""
	}
	u := url.URL{Path: req.URL.Path, RawPath: req.URL.RawPath, RawQuery: req.URL.RawQuery}
	q := u.Query()
	for name := range q {
		// A credential that came in the query is not put into a page.
		if strings.HasPrefix(name, "pomerium_") {
			return ""
		}
	}
	s := u.String()
	if !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") || strings.ContainsAny(s, "\\") {
		return "/"
	}
	return s
}

// capital makes a sentence of the text of an error. The name of a file stays
// as it is.
func capital(s string) string {
	if first, _, _ := strings.Cut(s, " "); !strings.ContainsAny(first, ".:/[") {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if !strings.ContainsAny(s[len(s)-1:], ".!?") {
		s += "."
	}
	return s
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
