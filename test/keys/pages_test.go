package keys

import (
	"errors"
	"regexp"
	"strings"

	"postern/internal/server/servertest"
)

// onPages looks for words on the sign-in page and in its stylesheet.
func onPages(words string) func(w *world) error {
	return func(w *world) error {
		a := w.Agent()
		page, err := a.Visit(user, servertest.Account{})
		if err != nil {
			return err
		}
		text := page.Body
		for _, m := range stylesheet.FindAllStringSubmatch(text, -1) {
			style, err := a.Request("GET", app+m[1])
			if err != nil {
				return err
			}
			text += style.Body
		}
		return holds(strings.ToLower(text), strings.ToLower(words))
	}
}

var stylesheet = regexp.MustCompile(`<link rel="stylesheet" href="([^"]+)"`)

// Branding (§2.16).
var pageExamples = []example{
	{keys: "primary_color", config: "primary_color: '#123456' # shown" + signedInRoute(), shows: onPages("#123456")},
	{keys: "secondary_color", config: "secondary_color: '#654321' # shown" + signedInRoute(), shows: onPages("#654321")},
	{keys: "darkmode_primary_color", config: "darkmode_primary_color: '#fedcba' # shown" + signedInRoute(), shows: onPages("#fedcba")},
	{keys: "darkmode_secondary_color", config: "darkmode_secondary_color: '#abcdef' # shown" + signedInRoute(), shows: onPages("#abcdef")},
	{keys: "logo_url", config: "logo_url: https://www.example.com/logo.svg # shown" + signedInRoute(), shows: onPages("https://www.example.com/logo.svg")},
	{keys: "favicon_url", config: "favicon_url: https://www.example.com/icon.png # shown" + signedInRoute(), shows: onPages("https://www.example.com/icon.png")},
	{keys: "organization_name", config: "organization_name: Stars and Company # shown" + signedInRoute(), shows: onPages("Stars and Company")},
	{keys: "help_url", config: "help_url: https://help.example.com/ # shown" + signedInRoute(), shows: onPages("https://help.example.com/")},
	{keys: "privacy_url", config: "privacy_url: https://privacy.example.com/ # shown" + signedInRoute(), shows: onPages("https://privacy.example.com/")},
	{keys: "error_message_first_paragraph", config: "error_message_first_paragraph: Call the *night desk*. # shown" + guarded(`show_error_details: true`), shows: func(w *world) error {
		body, err := reasons(w)
		return errors.Join(err, holds(body, "night desk"))
	}},
}
