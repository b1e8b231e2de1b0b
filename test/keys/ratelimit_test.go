package keys

import (
	"errors"
	"fmt"
	"strings"
)

// limitedBy is a configuration with a rate limit for all routes, lines of it,
// and one public route.
func limitedBy(lines ...string) string {
	return "rate_limit:\n  " + strings.Join(lines, "\n  ") + "\n" + onRoute("name: app")
}

// limitedRoute is onRoute with a rate limit.
func limitedRoute(lines ...string) string {
	return onRoute(append([]string{"rate_limit:"}, indented(lines)...)...)
}

func indented(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = "  " + l
	}
	return out
}

// counted asks several times and compares the statuses.
func counted(want ...int) func(w *world) error {
	return func(w *world) error {
		a := w.Agent()
		for i, status := range want {
			page, err := a.Request("GET", user)
			if err != nil {
				return err
			}
			if err := is(page.StatusCode, status); err != nil {
				return fmt.Errorf("request %d: %w", i+1, err)
			}
			if status == 429 && page.Header.Get("Retry-After") == "" {
				return errors.New("no Retry-After")
			}
		}
		return nil
	}
}

func policyHeader(want string) func(w *world) error {
	return func(w *world) error { return w.header("RateLimit-Policy", want, user) }
}

// Limits of the rate of requests, for all routes and for one.
var rateExamples = []example{
	{keys: "rate_limit", config: onRoute("name: app") + "\nrate_limit: {requests: 2, per: 1h} # shown", shows: counted(200, 200, 429, 429)},
	{keys: "rate_limit[].requests", config: limitedBy("requests: 2 # shown", "requests: 4 # instead", "per: 1h"), shows: counted(200, 200, 429)},
	{keys: "rate_limit[].per", config: limitedBy("requests: 2", "per: 1h # shown"), shows: policyHeader(`"identity";q=2;w=3600`)},
	{keys: "rate_limit[].burst", config: limitedBy("requests: 1", "per: 1h", "burst: 3 # shown"), shows: counted(200, 200, 200, 429)},
	{keys: "rate_limit[].name", config: limitedBy("requests: 2", "name: calm # shown"), shows: policyHeader(`"calm";q=2;w=60`)},
	{keys: "rate_limit[].by", config: limitedBy("requests: 2", "per: 1h", "by: route # shown") + "\n    prefix: /nowhere\n  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}",
		shows: counted(302, 302, 302)}, // strangers do not use up what a route admits
	{keys: "routes[].rate_limit", config: onRoute("rate_limit: {requests: 2, per: 1h} # shown"), shows: counted(200, 200, 429)},
	{keys: "routes[].rate_limit[].requests", config: limitedRoute("requests: 2 # shown", "requests: 4 # instead", "per: 1h"), shows: counted(200, 200, 429)},
	{keys: "routes[].rate_limit[].per", config: limitedRoute("requests: 2", "per: 1h # shown"), shows: policyHeader(`"identity";q=2;w=3600`)},
	{keys: "routes[].rate_limit[].burst", config: limitedRoute("requests: 1", "per: 1h", "burst: 3 # shown"), shows: counted(200, 200, 200, 429)},
	{keys: "routes[].rate_limit[].name", config: limitedRoute("requests: 2", "name: calm # shown"), shows: policyHeader(`"calm";q=2;w=60`)},
	{keys: "routes[].rate_limit[].by", config: limitedRoute("requests: 2", "by: ip # shown"), shows: policyHeader(`"ip";q=2;w=60`)},
}
