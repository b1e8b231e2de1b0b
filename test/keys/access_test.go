package keys

import (
	"errors"
	"net/http"
	"strings"

	"postern/internal/server/servertest"
)

// guarded is a route that Bob may use, with more lines of it.
func guarded(lines ...string) string {
	return `
routes:
  - from: https://app.localhost
    to: @APP@
    policy: {allow: {or: [{email: {is: bob@example.org}}]}}
    ` + strings.Join(lines, "\n    ")
}

func adaEnters(w *world) error { return w.enters(servertest.Ada) }

// reasons is the page that Ada is refused with.
func reasons(w *world) (string, error) {
	page, err := w.Agent().Visit(user, servertest.Ada)
	if err != nil {
		return "", err
	}
	return page.Body, is(page.StatusCode, 403)
}

func told(words string) func(w *world) error {
	return func(w *world) error {
		body, err := reasons(w)
		return errors.Join(err, holds(body, words))
	}
}

// Keys of access (§3.10) and administrators.
var accessExamples = []example{
	{keys: "routes[].policy", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    policy: # shown
      - allow: {or: [{groups: {has: astronomy}}]} # shown`, shows: adaEnters},
	{keys: "routes[].allow_public_unauthenticated_access", config: `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_public_unauthenticated_access: true # shown`, shows: func(w *world) error { return w.status(200, user) }},
	{keys: "routes[].allow_any_authenticated_user", config: guarded(`allow_any_authenticated_user: true # shown`), shows: adaEnters},
	{keys: "routes[].cors_allow_preflight", config: guarded(`cors_allow_preflight: true # shown`), shows: func(w *world) error {
		page, err := w.Agent().Request("OPTIONS", user, "Origin: https://web.example", "Access-Control-Request-Method: PUT")
		if err != nil {
			return err
		}
		return is(page.StatusCode, http.StatusOK)
	}},
	{keys: "routes[].allowed_users", config: guarded(`allowed_users: [ada@example.com] # shown`), shows: adaEnters},
	{keys: "routes[].allowed_domains", config: guarded(`allowed_domains: [example.com] # shown`), shows: adaEnters},
	{keys: "routes[].allowed_idp_claims", config: guarded(`allowed_idp_claims: {team: [stars]} # shown`), shows: adaEnters},
	{keys: "routes[].show_error_details", config: guarded(`show_error_details: true # shown`,
		`sub_policies: [{id: p, name: P, allowed_users: [nobody], explanation: For Bob alone}]`), shows: told("For Bob alone")},
	{keys: "routes[].sub_policies routes[].sub_policies[].id routes[].sub_policies[].name routes[].sub_policies[].source_ppl", config: guarded(
		`sub_policies: # shown`, `  - {id: p1, name: Shared, source_ppl: "allow: {or: [{groups: {has: astronomy}}]}"} # shown`), shows: adaEnters},
	{keys: "routes[].sub_policies[].rego", config: guarded(`sub_policies:`, `  - id: p1`, `    rego: ["package pomerium.policy\nallow := [true, []]"] # shown`), shows: adaEnters},
	{keys: "routes[].shadow_policy", config: guarded(`shadow_policy: {allow: {or: [{email: {is: ada@example.com}}]}} # shown`), shows: func(w *world) error {
		if _, err := reasons(w); err != nil { // it decides nothing
			return err
		}
		_, err := w.logged("authorize check", `"allow":false`, `"shadow-allow":true`)
		return err
	}},
	{keys: "routes[].sub_policies[].allowed_users", config: guarded(`sub_policies:`, `  - id: p1`, `    allowed_users: [ada@example.com] # shown`), shows: adaEnters},
	{keys: "routes[].sub_policies[].allowed_domains", config: guarded(`sub_policies:`, `  - id: p1`, `    allowed_domains: [example.com] # shown`), shows: adaEnters},
	{keys: "routes[].sub_policies[].allowed_idp_claims", config: guarded(`sub_policies:`, `  - id: p1`, `    allowed_idp_claims: {team: [stars]} # shown`), shows: adaEnters},
	{keys: "routes[].sub_policies[].explanation", config: guarded(`show_error_details: true`, `sub_policies:`, `  - id: p1`,
		`    allowed_users: [nobody]`, `    explanation: For Bob alone # shown`), shows: told("For Bob alone")},
	{keys: "routes[].sub_policies[].remediation", config: guarded(`show_error_details: true`, `sub_policies:`, `  - id: p1`,
		`    allowed_users: [nobody]`, `    remediation: Ask Bob nicely # shown`), shows: told("Ask Bob nicely")},
	{keys: "admin_policy", config: `admin_policy: {allow: {or: [{email: {is: ada@example.com}}]}} # shown` + guarded(), shows: told("Your email is not on the list")},
}
