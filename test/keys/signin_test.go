package keys

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/identity/issuertest"
	"postern/internal/server/servertest"
)

// signedInRoute is a route for everybody who signed in, with more lines.
func signedInRoute(lines ...string) string {
	return `
routes:
  - from: https://app.localhost
    to: @APP@
    allow_any_authenticated_user: true
    ` + strings.Join(lines, "\n    ")
}

// theCookie is the session cookie's Set-Cookie line as Ada gets it.
func theCookie(w *world) (*http.Cookie, error) {
	a := w.Agent()
	var found *http.Cookie
	inner := a.Client.Transport
	a.Client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		res, err := inner.RoundTrip(r)
		if err == nil && r.URL.Hostname() == "app.localhost" {
			for _, c := range res.Cookies() {
				if c.MaxAge >= 0 && c.Value != "" && (strings.HasSuffix(c.Name, "_pomerium") || c.Name == "ours") {
					found = c
				}
			}
		}
		return res, err
	})
	page, err := a.Visit(user, servertest.Ada)
	if err != nil {
		return nil, err
	}
	if err := is(page.StatusCode, 200); err != nil {
		return nil, err
	}
	if found == nil {
		return nil, errors.New("no session cookie was set: " + strings.Join(a.Hops, "\n"))
	}
	return found, nil
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func cookie(check func(*http.Cookie) error) func(w *world) error {
	return func(w *world) error {
		c, err := theCookie(w)
		if err != nil {
			return err
		}
		return check(c)
	}
}

// atProvider starts an OpenID Connect provider as @IDP@ that signs Ada in.
func atProvider(change func(*issuertest.Issuer)) func(t *testing.T, o *servertest.Options) {
	return func(t *testing.T, o *servertest.Options) {
		i := issuertest.New()
		srv := httptest.NewServer(i)
		t.Cleanup(srv.Close)
		i.URL, i.ClientID, i.ClientSecret = srv.URL, "our-client", "our-secret"
		i.User = map[string]any{"sub": "1", "email": "ada@corp.test", "email_verified": true, "name": "Ada"}
		i.People = map[string]map[string]any{"1": i.User}
		if change != nil {
			change(i)
		}
		o.Vars["IDP"] = srv.URL
		o.Files["client-secret"] = "our-secret\n"
	}
}

const provider = `
idp_provider: oidc
idp_provider_url: @IDP@
idp_client_id: our-client
idp_client_secret: our-secret
`

const azure = `
idp_provider: azure
idp_provider_url: @IDP@/common/v2.0
idp_client_id: our-client
idp_client_secret: our-secret
`

// atAzure starts a provider that serves every tenant; Ada is of t-1.
func atAzure(t *testing.T, o *servertest.Options) {
	atProvider(func(i *issuertest.Issuer) {
		base := i.URL
		i.URL += "/common/v2.0"
		i.Metadata = map[string]any{"issuer": base + "/{tenantid}/v2.0"}
		i.User = map[string]any{"sub": "1", "oid": "o-1", "tid": "t-1", "email": "ada@corp.test"}
		i.People = map[string]map[string]any{"1": i.User}
		i.Mangle = func(c map[string]any) { c["iss"] = base + "/t-1/v2.0" }
	})(t, o)
}

// without leaves a line out of a block, for an example to write its own.
func without(block, key string) string {
	var b strings.Builder
	for line := range strings.Lines(block) {
		if !strings.HasPrefix(line, key+":") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// asked is what the authorization request to the provider holds.
func asked(w *world) (url.Values, error) {
	a := w.Agent()
	target := user
	for range 5 {
		page, err := a.Request("GET", target)
		if err != nil {
			return nil, err
		}
		next, err := page.Request.URL.Parse(page.Header.Get("Location"))
		if err != nil || page.StatusCode/100 != 3 {
			return nil, fmt.Errorf("status %d at %s", page.StatusCode, target)
		}
		if strings.HasPrefix(next.String(), w.vars["IDP"]) {
			return next.Query(), nil
		}
		target = next.String()
	}
	return nil, errors.New("the provider was never asked")
}

// arrives signs in at the provider, which knows who it is.
func arrives(w *world) (servertest.Seen, error) {
	a := w.Agent()
	inner := a.Client.Transport
	a.Client.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
		if strings.HasPrefix(r.URL.String(), w.vars["IDP"]) {
			return http.DefaultTransport.RoundTrip(r)
		}
		return inner.RoundTrip(r)
	})
	page, err := a.Visit(user, servertest.Account{})
	if err != nil {
		return servertest.Seen{}, err
	}
	return page.Echo()
}

func arrivesAt(w *world) error {
	_, err := arrives(w)
	return err
}

// Keys of sign-in, cookies and providers (§2.1, §2.5, §2.6).
var signInExamples = []example{
	{keys: "authenticate_service_url", config: `authenticate_service_url: https://auth.localhost # shown` + signedInRoute(), shows: func(w *world) error {
		page, err := w.Agent().Request("GET", user)
		if err != nil {
			return err
		}
		return holds(page.Header.Get("Location"), "https://auth.localhost/")
	}},
	{keys: "signout_redirect_url", config: `signout_redirect_url: https://www.example.com/bye # shown` + signedInRoute(), shows: func(w *world) error {
		a, _, err := w.signedIn()
		if err != nil {
			return err
		}
		page, err := a.Request("GET", app+"/.pomerium/sign_out", "Accept: text/html")
		for range 6 {
			if err != nil {
				return err
			}
			next := page.Header.Get("Location")
			if strings.HasPrefix(next, "https://www.example.com/bye") {
				return nil
			}
			u, perr := page.Request.URL.Parse(next)
			switch f := servertest.FindForm(page.Body); {
			case page.StatusCode/100 == 3 && perr == nil:
				page, err = a.Request("GET", u.String(), "Accept: text/html")
			case f != nil:
				req, ferr := f.Submit(page.Request.URL)
				if ferr != nil {
					return ferr
				}
				page, err = a.Do(req)
			default:
				return fmt.Errorf("signing out ended at %s with %d", page.Request.URL, page.StatusCode)
			}
		}
		return errors.New("the address was never named: " + strings.Join(a.Hops, "\n"))
	}},
	{keys: "programmatic_redirect_domain_whitelist", config: `programmatic_redirect_domain_whitelist: [tool.example.com] # shown` + signedInRoute(), shows: func(w *world) error {
		return w.status(200, app+"/.pomerium/api/v1/login?pomerium_redirect_uri=https%3A%2F%2Ftool.example.com%2Fcb")
	}},
	{keys: "cookie_name", config: `cookie_name: ours # shown` + signedInRoute(), shows: cookie(func(c *http.Cookie) error { return is(c.Name, "ours") })},
	{keys: "cookie_domain", config: `cookie_domain: app.localhost # shown` + signedInRoute(), shows: cookie(func(c *http.Cookie) error { return is(c.Domain, "app.localhost") })},
	{keys: "cookie_http_only", config: `cookie_http_only: false # shown` + signedInRoute(), shows: cookie(func(c *http.Cookie) error { return is(c.HttpOnly, false) })},
	{keys: "cookie_same_site", config: `cookie_same_site: strict # shown` + signedInRoute(), shows: cookie(func(c *http.Cookie) error { return is(c.SameSite, http.SameSiteStrictMode) })},
	{keys: "cookie_expire", config: `cookie_expire: 10m # shown` + signedInRoute(), shows: cookie(func(c *http.Cookie) error {
		life := time.Duration(c.MaxAge) * time.Second
		if c.MaxAge == 0 {
			life = time.Until(c.Expires)
		}
		if life <= 0 || life > 10*time.Minute+time.Second {
			return fmt.Errorf("it lives %v", life)
		}
		return nil
	})},
	{keys: "handle_audience", config: `
handle_audience: any # shown
routes:
  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}
  - {from: https://second.localhost, to: @APP@, allow_any_authenticated_user: true}`, shows: func(w *world) error {
		c, err := theCookie(w)
		if err != nil {
			return err
		}
		return w.status(200, "https://second.localhost/", "Cookie: "+c.Name+"="+c.Value)
	}},
	{keys: "routes[].depends_on", config: `
routes:
  - {from: https://second.localhost, to: @APP@, allow_any_authenticated_user: true}
  - from: https://app.localhost
    to: @APP@
    allow_any_authenticated_user: true
    depends_on: [second.localhost] # shown`, shows: func(w *world) error {
		a, _, err := w.signedIn()
		if err != nil {
			return err
		}
		page, err := a.Request("GET", "https://second.localhost/") // no redirect any more
		if err != nil {
			return err
		}
		return is(page.StatusCode, 200)
	}},
	{keys: "idp_provider", with: atProvider(nil), config: without(provider, "idp_provider") + "idp_provider: oidc # shown" + signedInRoute(), shows: arrivesAt},
	{keys: "idp_provider_url", with: atProvider(nil), config: without(provider, "idp_provider_url") +
		"idp_provider_url: @IDP@ # shown\nidp_provider_url: http://127.0.0.1:9 # instead" + signedInRoute(), shows: arrivesAt},
	{keys: "idp_client_id", with: atProvider(nil), config: without(provider, "idp_client_id") +
		"idp_client_id: our-client # shown\nidp_client_id: another # instead" + signedInRoute(), shows: arrivesAt},
	{keys: "idp_client_secret", with: atProvider(nil), config: without(provider, "idp_client_secret") +
		"idp_client_secret: our-secret # shown\nidp_client_secret: another # instead" + signedInRoute(), shows: arrivesAt},
	{keys: "idp_client_secret_file", with: atProvider(nil), config: without(provider, "idp_client_secret") +
		"idp_client_secret: another\nidp_client_secret_file: @DIR@/client-secret # shown" + signedInRoute(), shows: arrivesAt},
	{keys: "idp_scopes", with: atProvider(nil), config: provider + `idp_scopes: [openid, stars] # shown` + signedInRoute(), shows: func(w *world) error {
		q, err := asked(w)
		return errors.Join(err, is(q.Get("scope"), "openid stars"))
	}},
	{keys: "idp_request_params", with: atProvider(nil), config: provider + `idp_request_params: {acr_values: gold} # shown` + signedInRoute(), shows: func(w *world) error {
		q, err := asked(w)
		return errors.Join(err, is(q.Get("acr_values"), "gold"))
	}},
	{keys: "idp_trusted_email_domains", with: atProvider(func(i *issuertest.Issuer) { i.User["email_verified"] = false }), config: provider + `
idp_trusted_email_domains: [corp.test] # shown
routes:
  - {from: https://app.localhost, to: @APP@, policy: {allow: {or: [{domain: {is: corp.test}}]}}}`, shows: arrivesAt},
	// A tenant that is named is trusted with its e-mail addresses; others are
	// sent away.
	{keys: "idp_allowed_tenants", with: atAzure, config: azure + `
idp_allowed_tenants: [t-1] # shown
routes:
  - {from: https://app.localhost, to: @APP@, policy: {allow: {or: [{domain: {is: corp.test}}]}}}`, shows: arrivesAt},
	{keys: "idp_allowed_tenants", with: atAzure, config: azure + `idp_allowed_tenants: [t-2] # shown` + signedInRoute(), shows: func(w *world) error {
		if _, err := arrives(w); err == nil {
			return errors.New("another tenant was let in")
		}
		_, err := w.logged("tenant")
		return err
	}},
	{keys: "local_users_file", config: `local_users_file: @DIR@/users.yaml # shown
local_users_file: "" # instead` + signedInRoute(), shows: func(w *world) error { return w.enters(servertest.Ada) }},
	{keys: "cookie_secret", config: `cookie_secret: BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8= # shown` + signedInRoute(), shows: func(w *world) error {
		return formEnds(w, func() { w.Change(strings.Replace(w.text, ": BAEC", ": CAEC", 1)) })
	}},
	{keys: "cookie_secret_file", config: `cookie_secret_file: @DIR@/cookie # shown` + signedInRoute(),
		with: func(t *testing.T, o *servertest.Options) {
			o.Files["cookie"] = "BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
		}, shows: func(w *world) error {
			return formEnds(w, func() {
				os.WriteFile(filepath.Join(w.Dir, "cookie"), []byte("CAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), 0o600)
				w.Reload()
			})
		}},
}

// formEnds tells whether a sign-in form that was open during a change is
// worthless after it.
func formEnds(w *world, change func()) error {
	a := w.Agent()
	page, err := a.Visit(user, servertest.Account{})
	if err != nil {
		return err
	}
	f := servertest.FindForm(page.Body)
	if f == nil || f.Password == "" {
		return errors.New("there is no form")
	}
	change()
	f.Values.Set(f.Email, servertest.Ada.Email)
	f.Values.Set(f.Password, servertest.Ada.Password)
	req, err := f.Submit(page.Request.URL)
	if err != nil {
		return err
	}
	after, err := a.Do(req)
	if err != nil {
		return err
	}
	if after.StatusCode < 400 {
		return fmt.Errorf("the form still counts: %d", after.StatusCode)
	}
	return nil
}
