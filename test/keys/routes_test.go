package keys

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"postern/internal/server/servertest"
)

// onRoute is a configuration of one public route with more lines of it.
func onRoute(lines ...string) string {
	return `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    ` + strings.Join(lines, "\n    ")
}

// redirects is onRoute with a redirect instead of an upstream.
func redirects(lines ...string) string {
	return `
routes:
  - from: https://app.localhost
    prefix: /old
    allow_public_unauthenticated_access: true
    redirect:
      host_redirect: new.example
      ` + strings.Join(lines, "\n      ")
}

func location(want string) func(w *world) error {
	return func(w *world) error { return w.header("Location", want, app+"/old/x?q=1") }
}

// Keys of routes: matching, rewriting, headers, answers, time (§3.1 to §3.6,
// §3.9).
var routeExamples = []example{
	{keys: "routes[].prefix", config: onRoute(`prefix: /api # shown`), shows: func(w *world) error {
		return errors.Join(w.status(200, app+"/api/x"), w.status(404, app+"/x"))
	}},
	{keys: "routes[].path", config: onRoute(`path: /one # shown`), shows: func(w *world) error {
		return errors.Join(w.status(200, app+"/one"), w.status(404, app+"/one/x"))
	}},
	{keys: "routes[].regex", config: onRoute(`regex: /user/[0-9]+ # shown`), shows: func(w *world) error {
		return errors.Join(w.status(200, app+"/user/42"), w.status(404, app+"/user/42/x"))
	}},
	{keys: "routes[].tls_downstream_server_name", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    tls_downstream_server_name: inside.localhost # shown
  - from: https://*.localhost
    response: {status: 299}
    allow_public_unauthenticated_access: true`, shows: func(w *world) error {
		// The name is the route's own: no wildcard serves it (§3.4).
		return w.status(404, "https://inside.localhost/")
	}},
	{keys: "routes[].id", config: onRoute(`id: my-own-id # shown`), shows: func(w *world) error {
		if _, err := w.saw(user); err != nil {
			return err
		}
		line, err := w.logged("http-request")
		return errors.Join(err, holds(line, "my-own-id"))
	}},
	{keys: "routes[].name routes[].description routes[].logo_url", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_any_authenticated_user: true
    name: My application # shown
    description: What it is for # shown
    logo_url: https://app.localhost/logo.svg # shown`, shows: func(w *world) error {
		a, _, err := w.signedIn()
		if err != nil {
			return err
		}
		page, err := a.Request("GET", app+"/.pomerium/api/v1/routes")
		if err != nil {
			return err
		}
		var got struct {
			Routes []struct {
				Name, Description string
				LogoURL           string `json:"logo_url"`
			}
		}
		if err := json.Unmarshal([]byte(page.Body), &got); err != nil || len(got.Routes) != 1 {
			return fmt.Errorf("%v: %s", err, page.Body)
		}
		r := got.Routes[0]
		return errors.Join(is(r.Name, "My application"), is(r.Description, "What it is for"), is(r.LogoURL, "https://app.localhost/logo.svg"))
	}},
	{keys: "routes[].redirect routes[].redirect.host_redirect", config: `
routes:
  - from: https://app.localhost
    allow_public_unauthenticated_access: true
    redirect: {host_redirect: new.example} # shown
    to: @APP@ # instead`, shows: location("https://new.example/old/x?q=1")},
	{keys: "routes[].redirect.https_redirect", config: redirects(`https_redirect: true # shown`, `scheme_redirect: http`), shows: location("https://new.example/old/x?q=1")},
	{keys: "routes[].redirect.scheme_redirect", config: redirects(`scheme_redirect: http # shown`), shows: location("http://new.example/old/x?q=1")},
	{keys: "routes[].redirect.port_redirect", config: redirects(`port_redirect: 8443 # shown`), shows: location("https://new.example:8443/old/x?q=1")},
	{keys: "routes[].redirect.path_redirect", config: redirects(`path_redirect: /there # shown`), shows: location("https://new.example/there?q=1")},
	{keys: "routes[].redirect.prefix_rewrite", config: redirects(`prefix_rewrite: /new # shown`), shows: location("https://new.example/new/x?q=1")},
	{keys: "routes[].redirect.strip_query", config: redirects(`strip_query: true # shown`), shows: location("https://new.example/old/x")},
	{keys: "routes[].redirect.response_code", config: redirects(`response_code: 308 # shown`), shows: func(w *world) error {
		return w.status(308, app+"/old/x")
	}},
	{keys: "routes[].response routes[].response.status routes[].response.body", config: `
routes:
  - from: https://app.localhost
    allow_public_unauthenticated_access: true
    response: {status: 418, body: short and stout} # shown
    to: @APP@ # instead`, shows: func(w *world) error {
		page, err := w.Agent().Request("GET", user)
		if err != nil {
			return err
		}
		return errors.Join(is(page.StatusCode, 418), is(page.Body, "short and stout"))
	}},
	{keys: "routes[].prefix_rewrite", config: onRoute(`prefix: /a`, `prefix_rewrite: /b # shown`), shows: sawPath("/a/x", "/b/x")},
	{keys: "routes[].regex_rewrite_pattern routes[].regex_rewrite_substitution", config: onRoute(
		`regex_rewrite_pattern: ^/user/([0-9]+)$ # shown`, `regex_rewrite_substitution: /by-id/\1 # shown`), shows: sawPath("/user/7", "/by-id/7")},
	{keys: "routes[].host_rewrite", config: onRoute(`host_rewrite: inner.example # shown`), shows: sawHost("inner.example")},
	{keys: "routes[].host_rewrite_header", config: onRoute(`host_rewrite_header: X-Tenant # shown`), shows: sawHost("blue.example")},
	{keys: "routes[].host_path_regex_rewrite_pattern routes[].host_path_regex_rewrite_substitution", config: onRoute(
		`host_path_regex_rewrite_pattern: ^/t/([a-z]+).*$ # shown`, `host_path_regex_rewrite_substitution: \1.example # shown`), shows: sawHost("green.example")},
	{keys: "routes[].preserve_host_header", config: onRoute(`preserve_host_header: true # shown`), shows: sawHost("app.localhost")},
	{keys: "routes[].set_request_headers", config: onRoute(`set_request_headers: {X-Set: 'a ${pomerium.request.headers["X-In"]}'} # shown`), shows: func(w *world) error {
		s, err := w.saw(user, "X-In: b", "X-Set: from-client")
		return errors.Join(err, is(strings.Join(s.Headers.Values("X-Set"), "|"), "a b"))
	}},
	{keys: "routes[].remove_request_headers", config: onRoute(`remove_request_headers: [X-Gone] # shown`), shows: func(w *world) error {
		s, err := w.saw(user, "X-Gone: here", "X-Stays: here")
		return errors.Join(err, is(s.Header("X-Gone"), ""), is(s.Header("X-Stays"), "here"))
	}},
	{keys: "routes[].set_response_headers", config: onRoute(`set_response_headers: {X-Answer: ours} # shown`), shows: func(w *world) error {
		return w.header("X-Answer", "ours", user+"?header=X-Answer:theirs")
	}},
	{keys: "routes[].rewrite_response_headers routes[].rewrite_response_headers[].header routes[].rewrite_response_headers[].prefix routes[].rewrite_response_headers[].value",
		config: onRoute(`rewrite_response_headers: # shown`, `  - {header: Location, prefix: "http://inner/", value: "https://outer/"} # shown`), shows: func(w *world) error {
			return w.header("Location", "https://outer/x", user+"?status=302&header=Location:http://inner/x")
		}},
	{keys: "routes[].timeout", config: onRoute(`timeout: 200ms # shown`), shows: func(w *world) error {
		return w.status(504, user+"?wait=1500ms")
	}},
	{keys: "routes[].idle_timeout", config: onRoute(`idle_timeout: 200ms # shown`), shows: func(w *world) error {
		page, err := w.Agent().Request("GET", user+"?pause=1500ms")
		if err == nil && page.StatusCode == 200 {
			return errors.New("the silent stream lived on")
		}
		return nil
	}},
	{keys: "routes[].allow_websockets", config: onRoute(`allow_websockets: true # shown`), shows: func(w *world) error { return chats(w, "websocket") }},
	{keys: "routes[].allow_spdy", config: onRoute(`allow_spdy: true # shown`), shows: func(w *world) error { return chats(w, "SPDY/3.1") }},
	{keys: "routes[].allow_upgrades", config: onRoute(`allow_upgrades: [chatter/2] # shown`), shows: func(w *world) error { return chats(w, "chatter/2") }},
}

func sawHost(want string) func(w *world) error {
	return func(w *world) error {
		s, err := w.saw(app+"/t/green/x", "X-Tenant: blue.example")
		return errors.Join(err, is(s.Host, want))
	}
}

var _ = servertest.Ada
var _ = time.Second
