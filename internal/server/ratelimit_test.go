package server_test

import (
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// A limit by identity counts people, whatever address they share, over a change
// of the configuration; the strangers of that address count together; own
// pages are not counted.
func TestRateLimitOverAChange(t *testing.T) {
	const text = `
rate_limit: {requests: 3, per: 1h}
routes:
  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}
  - {from: https://free.localhost, to: @APP@, allow_any_authenticated_user: true, rate_limit: []}
`
	p := servertest.Start(t, text)
	ada := p.Agent()
	ask := func(who *servertest.Agent, account servertest.Account, target string) *servertest.Page {
		t.Helper()
		page, err := who.Visit(target, account)
		if err != nil {
			t.Fatal(err)
		}
		return page
	}
	const app = "https://app.localhost/"
	last := 0
	for range 5 {
		last = ask(ada, servertest.Ada, app).StatusCode
	}
	if last != 429 {
		t.Fatalf("Ada's fifth request: %d", last)
	}
	p.Change(text + "timeout_idle: 1m\n")
	page := ask(ada, servertest.Ada, app)
	if page.StatusCode != 429 || page.Header.Get("Retry-After") == "" || !strings.HasPrefix(page.Header.Get("RateLimit"), `"identity";r=0;t=`) ||
		page.Header.Get("RateLimit-Policy") != `"identity";q=3;w=3600` {
		t.Errorf("after a change: %d %v", page.StatusCode, page.Header)
	}
	for _, target := range []string{"https://free.localhost/", "https://app.localhost/.pomerium/user"} {
		if page := ask(ada, servertest.Ada, target); page.StatusCode != 200 {
			t.Errorf("%s: %d", target, page.StatusCode)
		}
	}
	if err := p.WaitLog(`"response-code-details":"rate_limited"`); err != nil {
		t.Error(err)
	}
	if page := ask(p.Agent(), servertest.Bob, app); page.StatusCode != 200 {
		t.Errorf("Bob, of the same address: %d", page.StatusCode)
	}
}
