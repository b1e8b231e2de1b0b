package authz

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"

	"postern/internal/route"
	"postern/internal/session"
)

// Tests named after rows of the list of published holes; each is proven on a
// deliberately broken build (test/broken).

// CVE-2026-34457: no header that a client may write grants anything, least of
// all the User-Agent of a health check.
func TestCVE_2026_34457_NoHeaderGrants(t *testing.T) {
	h := newHouse(t, app)
	agents := []string{"GoogleHC/1.0", "kube-probe/1.30", "ELB-HealthChecker/2.0", "Amazon-Route53-Health-Check-Service", "HealthChecker", "Envoy/HC", "curl/8", ""}
	names := []string{"X-Forwarded-User", "X-Forwarded-Email", "X-Auth-Request-User", "Remote-User", "X-Remote-User", "X-Pomerium-Jwt-Assertion", "X-Pomerium-Claim-Email", "X-Email",
		"X-Real-IP", "X-Forwarded-For", "X-Forwarded-Uri", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Envoy-Internal", "X-HTTP-Method-Override",
		"X-Health-Check", "X-Internal", "Purpose", "Sec-Purpose", "Upgrade", "Origin", "Access-Control-Request-Method", "Accept", "X-Requested-With", "Authorization", "Proxy-Authorization", "Cookie"}
	values := []string{"1", "true", "127.0.0.1", "/ping", "/.pomerium/ping", "alice@corp.test", "admin", "internal", "OPTIONS", "*", "Basic YTpi", "Bearer x", "Pomerium x"}
	for _, agent := range agents {
		for _, name := range names {
			for _, value := range values {
				for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
					if d := h.decide(request(method, "https://app.corp.test/admin", "User-Agent", agent, name, value)); d.Outcome == Allow {
						t.Fatalf("%s with User-Agent %q and %s: %s is allowed", method, agent, name, value)
					}
				}
			}
		}
	}
}

// CVE-2021-32701 and CVE-2026-33496: what was found good once is remembered
// under every input that made it so.
func TestCVE_2026_33496_CacheHoldsEveryInput(t *testing.T) {
	h := newHouse(t, []routeSpec{
		{"https://app.corp.test", "allow: {and: [{authenticated_user: true}]}", route.Access{}},
		{"https://other.corp.test", "allow: {and: [{authenticated_user: true}]}", route.Access{}},
	})
	good := string(h.person("alice", "alice@corp.test", "app.corp.test"))
	ask := func(host, token string) Outcome {
		return h.decide(request("GET", "https://"+host+"/", "X-Pomerium-Authorization", token)).Outcome
	}
	if ask("app.corp.test", good) != Allow {
		t.Fatal("the token is not good")
	}
	if ask("other.corp.test", good) == Allow {
		t.Error("a remembered token counts at another host")
	}
	dot := strings.LastIndexByte(good, '.')
	first := strings.IndexByte(good, '.')
	for name, bad := range map[string]string{
		"other signature":   good[:dot+1] + strings.Repeat("A", len(good)-dot-1),
		"no signature":      good[:dot+1],
		"only the payload":  good[:dot],
		"other header":      "e30" + good[first:],
		"something behind":  good + "A",
		"something before":  "A" + good,
		"another payload":   good[:first+1] + "e30" + good[dot:],
		"twice":             good + good,
		"other letter case": strings.ToLower(good),
	} {
		if ask("app.corp.test", bad) == Allow {
			t.Errorf("%s: allowed from memory", name)
		}
	}
	if ask("app.corp.test", good) != Allow {
		t.Error("the good token no longer counts")
	}
}

// CVE-2026-25748: a malformed cookie is nobody, and never an allow or a
// failure.
func TestCVE_2026_25748_MalformedCookies(t *testing.T) {
	h := newHouse(t, app)
	good := string(h.person("alice", "alice@corp.test", "app.corp.test"))
	check := func(line string) {
		t.Helper()
		if d := h.decide(request("GET", "https://app.corp.test/", "Cookie", line)); d.Outcome != SignIn {
			t.Errorf("%q: %v %d", line, d.Outcome, d.Status)
		}
	}
	for i := range len(good) { // every byte counts
		flipped := []byte(good)
		flipped[i] ^= 1
		check("__Host-_pomerium=" + string(flipped))
	}
	for _, v := range []string{"", "=", "\"" + good + "\"", good + "=", " " + good + " x", good[:len(good)-1], good + ".", "." + good, "..", "null", "{}", "%00", "\xff", strings.Repeat("A", 5000), good + ", " + good} {
		check("__Host-_pomerium=" + v)
	}
	for _, line := range []string{"__Host-_pomerium", "__Host-_pomerium ;", "__host-_pomerium=" + good, "_pomerium=" + good, "$__Host-_pomerium=" + good, "x=\"__Host-_pomerium=" + good + "\"", "__Host-_pomerium%3D" + good} {
		check(line)
	}
	rnd := rand.New(rand.NewSource(25748))
	for range 3000 {
		b := []byte("__Host-_pomerium=" + good + "; a=b")
		for range 1 + rnd.Intn(3) {
			at := len("__Host-_pomerium=") + rnd.Intn(len(good))
			switch rnd.Intn(3) {
			case 0:
				b[at] = byte(rnd.Intn(256))
			case 1:
				b = append(b[:at], b[at+1:]...)
			case 2:
				b = append(b[:at], append([]byte{byte(33 + rnd.Intn(90))}, b[at:]...)...)
			}
		}
		if line := string(b); line != "__Host-_pomerium="+good+"; a=b" && !strings.Contains(line, good+";") {
			check(line)
		}
	}
}

// CVE-2026-33433: identity headers are stripped on public routes as well.
func TestCVE_2026_33433_PublicRouteStrips(t *testing.T) {
	h := newHouse(t, []routeSpec{
		{"https://public.corp.test", "allow: {and: [{accept: true}]}", route.Access{}},
		{"https://auth.corp.test", "", route.Access{AuthorizationOff: true}},
		{"https://app.corp.test", "allow: {and: [{authenticated_user: true}]}", route.Access{}},
	}, func(o *Options) {
		o.Config.JWTClaimsHeaders = map[string]string{"X-Email": "email"}
		o.RouteSets = func(*route.Route) []string { return []string{"X-Route-User"} }
	})
	alice := h.person("alice", "alice@corp.test", "app.corp.test")
	for name, d := range map[string]Decision{
		"public":    h.decide(request("GET", "https://public.corp.test/")),
		"sign-in":   h.decide(request("GET", "https://auth.corp.test/")),
		"private":   h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(alice))),
		"preflight": h.decide(request("OPTIONS", "https://public.corp.test/", "Origin", "https://x.test", "Access-Control-Request-Method", "GET")),
	} {
		if d.Outcome != Allow {
			t.Fatalf("%s: %v", name, d.Outcome)
		}
		for _, header := range []string{"X-Pomerium-Jwt-Assertion", "x_pomerium_jwt_assertion", "X-Email", "X_EMAIL", "X-Route-User", "x-route_user", "X-Envoy-Peer", "X-Original-URL", "X_HTTP_Method_Override"} {
			if !d.Strip.Has(header) {
				t.Errorf("%s: %s is not stripped", name, header)
			}
		}
	}
}

// CVE-2026-71326 at the door: many people at once, and nobody is answered as
// somebody else.
func TestCallersNeverCross(t *testing.T) {
	h := newHouse(t, app)
	const people = 40
	tokens := make([]session.Token, people)
	for i := range tokens {
		tokens[i] = h.person(fmt.Sprint("u", i), fmt.Sprintf("u%d@corp.test", i), "app.corp.test")
	}
	done := make(chan error, people)
	for i := range tokens {
		go func() {
			for range 50 {
				d := h.decide(request("GET", "https://app.corp.test/", "Cookie", cookie(tokens[i])))
				if d.Outcome != Allow || d.Caller.Session.UserID != fmt.Sprint("u", i) {
					done <- fmt.Errorf("u%d was answered %v as %v", i, d.Outcome, d.Caller.Email())
					return
				}
			}
			done <- nil
		}()
	}
	for range people {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
