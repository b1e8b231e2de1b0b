package browser

import (
	"strings"
	"testing"

	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// TestDemo is a newcomer's walk through the demo, in two tabs.
func TestDemo(t *testing.T) {
	d := startDemo(t)
	browser := startBrowser(t, d.CAFile)
	b := newTab(t, browser)
	ada, adas := d.account("ada")
	grace, graces := d.account("grace")

	// The application is closed: the way in is the form at the sign-in host.
	b.open(d.URLs["app"])
	b.at(d.URLs["authenticate"])
	b.inspect("sign-in", everyLook...)
	b.signIn(ada, "not her password")
	b.until(`!!document.querySelector("#password-error")`)
	b.says("do not match")
	b.inspect("sign-in-mismatch", everyLook...)
	b.signIn(ada, adas)
	b.at(d.URLs["app"])

	// It knows her, by an assertion that it has verified.
	b.until(`!!document.querySelector("#main .badge-ok")`)
	b.says("Verified", "Ada", ada, "staff")
	b.inspect("application", everyLook...)

	// A WebSocket from the page's own origin.
	echo := `new Promise((ok, no) => {
		const s = window.feed = new WebSocket("wss://" + location.host + "/ws");
		s.onopen = () => s.send("from the page");
		s.onmessage = m => ok(m.data);
		s.onerror = () => no(new Error("the WebSocket failed"));
		s.onclose = c => { window.feedClosed = c.code + " " + c.reason };
	})`
	await := func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
	var heard string
	other := newTab(t, browser)
	other.open(d.URLs["app"])
	other.do(chromedp.Evaluate(echo, &heard, await))
	if heard != "from the page" {
		t.Fatalf("the echo is %q", heard)
	}

	// Refused where she does not belong, with the reason; open to all; a place
	// that does not exist.
	b.open(d.URLs["denied"])
	b.says("You do not have access to Finance", "Your group is not allowed", "We saw staff and astronomy", ada)
	b.inspect("denied", everyLook...)
	b.open(d.URLs["public"])
	b.says("anyone may read this")
	b.open(strings.TrimSuffix(d.URLs["public"], "/public") + "/.pomerium/api/nothing")
	b.open(strings.Replace(d.URLs["app"], "app.", "auth.", 1) + "nothing-here")
	b.says("404")
	b.inspect("not-found", everyLook...)

	// What she may open, and what is known of her.
	b.open(d.URLs["portal"])
	b.says("Applications", "Sample application")
	if strings.Contains(b.text(), "For the group finance") {
		t.Error("the portal offers Ada an application that refuses her")
	}
	b.inspect("portal", everyLook...)
	b.do(chromedp.Click(`a[href$="/.pomerium/"]`, chromedp.ByQuery))
	b.until(`!!document.querySelector("#claims")`)
	b.says(ada, "staff", "This one")
	b.inspect("account", everyLook...)

	// Signing out in one tab ends the other one too, its open connection first.
	b.open(d.URLs["app"])
	b.do(chromedp.Click(`a[href="/.pomerium/sign_out"]`, chromedp.ByQuery))
	b.at(d.URLs["authenticate"] + ".pomerium/signed_out")
	b.says("signed out")
	b.inspect("signed-out", everyLook...)
	other.until("typeof window.feedClosed === 'string'")
	other.do(chromedp.Evaluate("window.feedClosed", &heard))
	if !strings.HasPrefix(heard, "1008 ") {
		t.Errorf("the WebSocket was closed with %q, want 1008 and a reason", heard)
	}
	other.do(chromedp.Reload())
	other.at(d.URLs["authenticate"])
	other.until(`!!document.querySelector("#password")`)

	// Back does not show what was private.
	b.do(chromedp.Evaluate("history.back()", nil))
	b.until(`!location.pathname.endsWith("signed_out") && document.readyState === "complete"`)
	if text := b.text(); strings.Contains(text, ada) {
		t.Errorf("the page before signing out is still shown:\n%s", text)
	}

	// Grace may open finance.
	b.open(d.URLs["denied"])
	b.at(d.URLs["authenticate"])
	b.signIn(grace, graces)
	b.at(d.URLs["denied"])
	b.says("Grace", "Verified")
	b.inspect("finance", look{"light", 1200})

	// Keyboard alone: the first stop is the way past the header.
	var first string
	b.do(chromedp.Evaluate(`document.activeElement.blur(), 0`, nil), chromedp.KeyEvent("\t"), chromedp.Evaluate(`document.activeElement.className`, &first))
	if first != "skip" {
		t.Errorf("the first stop of the Tab key is %q, want the skip link", first)
	}
	b.quiet()
	other.quiet()
}
