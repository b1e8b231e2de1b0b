package pages

import (
	"net/http"
	"time"
)

// Specimen is one page with made-up contents, for looking at and for
// tests that visit every page (golden files, accessibility, screenshots). It
// is no part of what the product serves.
type Specimen struct {
	Name   string // file name of its golden test
	Status int    // expected status
	Render func(r *Renderer, w http.ResponseWriter, req *http.Request)
}

// SampleBranding is the branding that the specimens are shown in.
func SampleBranding() Branding {
	return Branding{
		Name: "Fernhill Observatory", HelpURL: "https://help.fernhill.example/", PrivacyURL: "https://fernhill.example/privacy",
		ErrorParagraph: "The **Finance systems** team looks after this application. Write to [their desk](mailto:finance@fernhill.example).",
	}
}

// SampleTime is when everything in the specimens happens.
var SampleTime = time.Date(2026, 11, 22, 14, 6, 0, 0, time.UTC)

// Samples lists every page in every state worth looking at, always with the
// same contents. A server that shows them needs ServeAsset beside it.
func Samples() []Specimen {
	now := SampleTime
	ada, host := "ada@fernhill.example", "atlas.fernhill.example"
	bar := Bar{Person: "Ada Lindqvist", PortalURL: "/.pomerium/routes", AccountURL: "/.pomerium/", SignOutURL: "/.pomerium/sign_out"}
	failure := func(name string, status int, p ErrorPage) Specimen {
		if p.Time.IsZero() {
			p.Time = now
		}
		if p.RetryURL == "" {
			p.RetryURL = "https://" + host + "/tonight"
		}
		return Specimen{name, status, func(r *Renderer, w http.ResponseWriter, req *http.Request) { r.Error(w, req, p) }}
	}
	local := func(p LocalPage) func(*Renderer, http.ResponseWriter, *http.Request) {
		p.Application, p.ReturnHost, p.Host = "Star Atlas", host, "auth.fernhill.example"
		p.Action, p.Fields = "/.pomerium/local", []Field{{"csrf", "c3BlY2ltZW4"}}
		p.KeepFor, p.FormOrigins = 12*time.Hour, []string{"https://" + host}
		return func(r *Renderer, w http.ResponseWriter, req *http.Request) { r.Local(w, req, p) }
	}
	apps := []App{
		{Name: "Star Atlas", Type: "http", URL: "https://atlas.fernhill.example/", Address: "atlas.fernhill.example", Description: "Catalogue, charts and the nightly object list."},
		{Name: "Dome Control", Type: "http", URL: "https://dome.fernhill.example/", Address: "dome.fernhill.example", Description: "Shutter, tracking and weather hold."},
		{Name: "Night Log", Type: "http", URL: "https://log.fernhill.example/", Address: "log.fernhill.example", Description: "What the shift saw, hour by hour."},
		{Name: "Build Farm", Type: "http", URL: "https://builds.fernhill.example/", Address: "builds.fernhill.example", Description: "Pipelines for the instrument software."},
		{Name: "Wiki", Type: "http", URL: "https://wiki.fernhill.example/", Address: "wiki.fernhill.example", Description: "Procedures, maps and the on-call list."},
		{Name: "Survey database", Type: "tcp", Address: "survey-db.fernhill.example:5432", Description: "Read replica of the sky survey.", Command: "postern tcp survey-db.fernhill.example:5432"},
		{Name: "Image registry", Type: "tcp", Address: "registry.fernhill.example:5000", Description: "Container images for the pipelines.", Command: "postern tcp registry.fernhill.example:5000"},
		{Name: "dome-control", Type: "ssh", Address: "ssh, as ada", Description: "Shell on the dome controller.", Command: "ssh ada@dome-control@fernhill.example"},
	}
	conditions := []Condition{
		{Outcome: Met, Title: "You are signed in", Text: "Through Fernhill staff, 2 hours ago."},
		{Outcome: Met, Title: "Your network is allowed", Noun: "network", Needs: []string{"192.0.2.0/24"}, Saw: []string{"192.0.2.44"}},
		{Title: "Your group is not allowed", Rule: "finance-only", Noun: "group", Needs: []string{"finance"}, Saw: []string{"astronomy", "night-shift"}, Synced: now.Add(-4 * time.Minute)},
	}
	return []Specimen{
		{"sign-in-choice", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.SignIn(w, req, SignInPage{Application: "Star Atlas", Host: "auth.fernhill.example", LocalURL: "/.pomerium/local", Providers: []ProviderChoice{
				{Name: "University of Halden", Hint: "For visiting researchers", URL: "/.pomerium/sign_in?idp=halden"},
				{Name: "Fernhill staff", URL: "/.pomerium/sign_in?idp=staff", LastUsed: true},
			}})
		}},
		{"sign-in-local", 200, local(LocalPage{OtherURL: "/.pomerium/sign_in"})},
		{"sign-in-local-error", 401, local(LocalPage{Problem: LocalMismatch, Email: ada, Keep: true})},
		{"sign-in-local-wait", 429, local(LocalPage{Problem: LocalWait, Wait: 20 * time.Second, Email: ada})},
		{"signed-out", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.SignedOut(w, req, SignedOutPage{ConnectionsClosed: true, Provider: "Fernhill staff", ProviderURL: "https://id.fernhill.example/logout", SignInURL: "/.pomerium/sign_in"})
		}},
		{"sign-out-confirm", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.ConfirmSignOut(w, req, SignOutPage{Who: ada, Action: "/.pomerium/sign_out", Fields: []Field{{"csrf", "c3BlY2ltZW4"}}, StayURL: "/.pomerium/routes"})
		}},
		{"program-confirm", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.ConfirmProgram(w, req, ProgramPage{Application: "Survey database", Destination: "127.0.0.1:41873", Local: true, Who: ada, Until: now.Add(14 * time.Hour),
				Action: "/.pomerium/sign_in", Fields: []Field{{"csrf", "c3BlY2ltZW4"}}, FormOrigins: []string{"http://127.0.0.1:41873"}})
		}},
		failure("denied-visitor", 403, ErrorPage{Kind: Denied, Application: "Payroll", Who: ada, RequestID: "4f7c-91ae-20d3",
			OtherAccountURL: "/.pomerium/sign_out", AccountURL: "/.pomerium/"}),
		failure("denied-details", 403, ErrorPage{Kind: Denied, Application: "Payroll", Who: ada, RequestID: "4f7c-91ae-20d3",
			OtherAccountURL: "/.pomerium/sign_out", AccountURL: "/.pomerium/", ShowDetails: true,
			Denial: Denial{Conditions: conditions, Policies: []PolicyWords{{ID: "p1", Denied: true,
				Explanation: "Payroll is open to the *finance* group, on company laptops.",
				Remediation: "Ask Finance systems to add you to `finance`. Access starts within a minute of the change; you need not sign in again."}}}}),
		failure("denied-device", 450, ErrorPage{Kind: Denied, Status: 450, Application: "Dome Control", Who: ada, RequestID: "77aa-0c1d-9e02", OtherAccountURL: "/.pomerium/sign_out"}),
		failure("denied-anonymous", 403, ErrorPage{Kind: Denied, Host: "dome.fernhill.example", RequestID: "77aa-0c1d-9e03"}),
		failure("error-unauthenticated", 401, ErrorPage{Kind: Unauthenticated, Application: "Star Atlas", RequestID: "77aa-0c1d-9e04", SignInURL: "/.pomerium/sign_in"}),
		failure("error-not-found", 404, ErrorPage{Kind: NotFound, Source: FromProxy, Host: "atlass.fernhill.example", RequestID: "c19e-03b7-5a6d", PortalURL: "/.pomerium/routes",
			SuggestedURL: "https://atlas.fernhill.example/", SuggestedName: "atlas.fernhill.example"}),
		failure("error-unreachable", 503, ErrorPage{Kind: Unreachable, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "8b02-77fe-c410", PortalURL: "/.pomerium/routes"}),
		failure("error-bad-answer", 502, ErrorPage{Kind: BadAnswer, Source: FromProxy, Application: "Star Atlas", Host: host, RequestID: "8b02-77fe-c411"}),
		failure("error-timeout", 504, ErrorPage{Kind: Timeout, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "0d55-e8a1-94fb", PortalURL: "/.pomerium/routes",
			TimeoutKey: "default_upstream_timeout", Waited: 30 * time.Second}),
		failure("error-unavailable", 503, ErrorPage{Kind: Unavailable, Application: "Star Atlas", RequestID: "0d55-e8a1-94fc", RetryAfter: 5 * time.Second}),
		failure("error-busy", 503, ErrorPage{Kind: Busy, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "8b02-77fe-c412", PortalURL: "/.pomerium/routes", TimeoutKey: "max_pending_requests"}),
		failure("error-no-healthy", 503, ErrorPage{Kind: NoHealthy, Source: FromProxy, Application: "Star Atlas", Host: host, RequestID: "8b02-77fe-c413",
			ShowDetails: true, Brief: "Every server of the application fails its health check."}),
		failure("error-untrusted", 502, ErrorPage{Kind: Untrusted, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "8b02-77fe-c414", PortalURL: "/.pomerium/routes"}),
		failure("error-untrusted-administrator", 502, ErrorPage{Kind: Untrusted, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "8b02-77fe-c415", PortalURL: "/.pomerium/routes", Administrator: true,
			Brief: "The certificate of the application has expired.", Detail: "the certificate of the upstream (CN=atlas-2.inside.example) expired on 2026-11-20T23:59:59Z; renew it"}),
		failure("error-misconfigured", 503, ErrorPage{Kind: Misconfigured, Source: FromProxy, Application: "Star Atlas", Host: host, RequestID: "8b02-77fe-c416", Administrator: true,
			Detail: "routes.yaml:41:5: routes[7].prefix_rewrite: prefix_rewrite and regex_rewrite_pattern exclude each other; keep one of them"}),
		failure("error-rate-limit", 429, ErrorPage{Kind: TooMany, Source: FromProxy, Application: "Star Atlas", Host: host, Who: ada, RequestID: "0d55-e8a1-94fe", RetryAfter: 12 * time.Second}),
		failure("error-too-many", 429, ErrorPage{Kind: TooMany, Source: FromEndpoint, RequestID: "0d55-e8a1-94fd", RetryAfter: 30 * time.Second}),
		failure("error-login-loop", 400, ErrorPage{Kind: LoginLoop, Source: FromEndpoint, RequestID: "71d4-2c9f-be08", Cause: LoopCookie, CookieHost: "fernhill.example", Attempts: 3, Within: 9 * time.Second}),
		failure("error-client-certificate", 495, ErrorPage{Kind: ClientCertificate, Application: "Dome Control", RequestID: "a6f0-51c2-0e97", Issuers: []string{"Fernhill Devices CA"}}),
		failure("error-bad-request", 400, ErrorPage{Kind: BadRequest, Source: FromEndpoint, RequestID: "a6f0-51c2-0e98", Message: "The sign-in link is more than five minutes old.", PortalURL: "/.pomerium/routes"}),
		failure("error-sign-in-failed", 400, ErrorPage{Kind: SignInFailed, Source: FromEndpoint, RequestID: "a6f0-51c2-0e99", Message: "Fernhill staff did not confirm who you are, so nobody was signed in.", SignInURL: "/.pomerium/sign_in"}),
		failure("error-provider-unavailable", 503, ErrorPage{Kind: ProviderUnavailable, Source: FromEndpoint, RequestID: "a6f0-51c2-0e9a", SignInURL: "/.pomerium/sign_in"}),
		failure("error-internal", 500, ErrorPage{Kind: Internal, Source: FromProxy, RequestID: "a6f0-51c2-0e9b"}),
		{"portal", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Portal(w, req, PortalPage{Bar: bar, Apps: apps, Total: len(apps), Path: "/.pomerium/routes"})
		}},
		{"portal-found", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Portal(w, req, PortalPage{Bar: bar, Apps: apps[:1], Query: "atlas", Total: len(apps), Path: "/.pomerium/routes"})
		}},
		{"portal-nothing", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Portal(w, req, PortalPage{Bar: bar, Query: "payroll", Total: len(apps), Path: "/.pomerium/routes"})
		}},
		{"portal-empty", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Portal(w, req, PortalPage{Bar: bar, Path: "/.pomerium/routes"})
		}},
		{"account", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Account(w, req, AccountPage{Bar: bar, Now: now, Name: "Ada Lindqvist", Email: ada, UserID: "staff|01J9Z4QK7E", Provider: "Fernhill staff",
				Sessions: []SessionView{{ThisOne: true, SignedInAt: now.Add(-2 * time.Hour), EndsAt: now.Add(6 * time.Hour), SignOutURL: "/.pomerium/sign_out"}},
				Groups:   []string{"astronomy", "night-shift", "wiki-editors"}, GroupsSource: "the staff directory", GroupsSynced: now.Add(-4 * time.Minute),
				Claims:    []Claim{{"sub", []string{"staff|01J9Z4QK7E"}}, {"name", []string{"Ada Lindqvist"}}, {"email_verified", []string{"true"}}, {"site", []string{"fernhill-north"}}, {"amr", []string{"pwd", "hwk"}}},
				RequestID: "5e1b-77d0-12ac"})
		}},
		{"account-impersonated", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Account(w, req, AccountPage{Bar: bar, Now: now, Email: ada, ImpersonatedBy: "bo@fernhill.example",
				Sessions: []SessionView{{ThisOne: true, SignedInAt: now.Add(-50 * time.Hour)}}})
		}},
		{"account-anonymous", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Anonymous(w, req, AnonymousPage{SignInURL: "/.pomerium/sign_in", RequestID: "5e1b-77d0-12ad"})
		}},
		{"sample-app", 200, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Sample(w, req, SamplePage{Host: "hello.localhost", Now: now, Person: "Ada Lindqvist", Email: "ada@localhost", Groups: []string{"staff", "astronomy"},
				UserID: "local|ada", Provider: "local account", SignedInAt: now.Add(-2 * time.Minute), EndsAt: now.Add(8 * time.Hour), Verified: true, SignOutURL: "/.pomerium/sign_out",
				Checks: []Check{
					{true, "The signed note arrived", "In the header", "X-Pomerium-Jwt-Assertion", "."},
					{true, "The signature is right", "ES256, key", "9c41…e07b", " from the published key set."},
					{true, "It is meant for this address", "", "aud", " is hello.localhost."},
					{true, "It is fresh", "Issued 3 seconds ago, good for 4 minutes.", "", ""},
				},
				Doors: []Link{{"Open Grace’s page", "https://grace.localhost/"}, {"Show the raw headers", "/headers"}, {"See an application that is down", "https://down.localhost/"}}})
		}},
		{"sample-app-unverified", 403, func(r *Renderer, w http.ResponseWriter, req *http.Request) {
			r.Sample(w, req, SamplePage{Host: "hello.localhost", Now: now, Checks: []Check{{false, "No signed note arrived", "The header", "X-Pomerium-Jwt-Assertion", " is missing."}}})
		}},
	}
}
