// Package config turns documents (YAML, JSON or TOML), environment variables
// and the files they name into one immutable Config, or into a list of all
// the Problems they hold, each with its place and what to do about it.
//
// Keys are declared as tagged struct fields in the package that obeys them
// (proxy.Config, authz.RouteConfig, ...), and here where none does yet. One
// walk over those declarations gives parser, defaults, names of environment
// variables, unknown-key detection, the list of keys and their reference
// page. The tags of a field are:
//
//	key         name in a document, in lower case; "-" is not a setting
//	env         name of the environment variable; "-" for none; by default
//	            the key in upper case, joined to the names of its blocks
//	default     value if unset, written as in an environment variable
//	doc         the documentation
//	status      acts, accepted: understood but without effect yet, or ignored: without effect for good
//	narrows     "true": ignoring it would open what the operator closed
//	section     section of the specification; on a blank field, of all below
//	enum        permitted words, joined by |; the first is that of ""
//	prefix      what may stand before the words of enum, beside the key
//	form        how the value is read where the Go type does not say it
//	aliases     other names, joined by commas
//	deprecated  what to use instead
//	secret      "true": never shown
//	strict      "true": no quoted numbers and switches in documents
//	inline      "true": the keys of this struct belong to the one around it
package config

import (
	"net/url"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/authn"
	"postern/internal/authz"
	"postern/internal/certs"
	"postern/internal/identity"
	"postern/internal/pages"
	"postern/internal/policy"
	"postern/internal/proxy"
	"postern/internal/route"
	"postern/internal/store"
	"postern/internal/telemetry"
	"postern/internal/upstream"
)

// Config is what the operator asked for: every global setting, checked and
// with its default, and the routes. It is immutable once Load returned it.
type Config struct {
	Services  Services         `inline:"true"`
	Authn     authn.Config     `inline:"true"`
	Proxy     proxy.Config     `inline:"true"`
	Certs     certs.Config     `inline:"true"`
	Secrets   Secrets          `inline:"true"`
	Authz     authz.Config     `inline:"true"`
	Identity  identity.Config  `inline:"true"`
	Store     store.Config     `inline:"true"`
	RPC       RPC              `inline:"true"`
	Telemetry telemetry.Config `inline:"true"`
	Upstream  upstream.Config  `inline:"true"`
	Features  Features         `inline:"true"`
	Pages     pages.Config     `inline:"true"`
	Control   Control          `inline:"true"`

	// AdminPolicy is Control.AdminPolicy compiled, or nil.
	AdminPolicy *policy.Policy

	// Routes are all routes in the order in which they are tried: the items
	// of policy, then those of routes.
	Routes []*Route

	files    []WatchedFile
	checksum uint64
	set      []setKey  // what was set, in order, with places
	start    []Problem // what stops the start, though not the load
	sources  []string  // names of documents, in order

	// What a later configuration may take over.
	premises *Config
	results  []*routeResult
	// Settings of routes without effect, and those of them that narrow.
	waiting   []string
	narrowing []Problem
}

// Route is one item of routes (or policy), checked, with defaults.
type Route struct {
	// List is "routes" or "policy"; Index counts from 0 within it. File, Line
	// and Column say where the item starts.
	List         string
	Index        int
	File         string
	Line, Column int

	Match    route.RouteConfig    `inline:"true"`
	Proxy    proxy.RouteConfig    `inline:"true"`
	Upstream upstream.RouteConfig `inline:"true"`
	Authz    authz.RouteConfig    `inline:"true"`
	Authn    authn.RouteConfig    `inline:"true"`
	Identity identity.RouteConfig `inline:"true"`
	Certs    certs.RouteConfig    `inline:"true"`
	Extra    RouteExtra           `inline:"true"`

	// Policy is the policy document (PPL) as written, or nil. Its nodes carry
	// positions whatever the format of the file.
	Policy *yaml.Node `key:"policy" section:"3.10" form:"node" status:"acts" doc:"Who may use the route: a policy document, one rule object or a list of them. Without any rule nobody may."`

	// Compiled is Policy compiled, and Shortcuts the rule of the keys older
	// than the policy language; each nil if there is none.
	Compiled  *policy.Policy
	Shortcuts *policy.Policy
	// Shadow is the route's shadow_policy compiled, or nil.
	Shadow *policy.Policy

	// Broken is what is wrong with the route where that does not refuse the
	// configuration (config_bad_route: isolate): then the rest of it means
	// nothing, but for where it stands.
	Broken []Problem

	content *int // see Content
}

// Content is equal for routes of several configurations that say the same,
// under the same global settings, wherever in the document they stand.
func (r *Route) Content() any {
	if r.content == nil {
		return nil
	}
	return r.content
}

// Path names the route in problems, such as routes[3].
func (r *Route) Path() string { return indexed(r.List, r.Index) }

// Secrets holds the keys from which everything secret is derived.
type Secrets struct {
	_ struct{} `section:"2.4"`

	// SharedSecret has 32 bytes, from shared_secret_file or shared_secret;
	// nil where none is configured (decision 11 says what happens then).
	SharedSecret     []byte `key:"shared_secret" form:"b64key" secret:"true" status:"acts" doc:"Base64 of 32 random bytes, the same in all processes; everything secret is derived from it. Without it sessions end with the process (memory), or one is made and kept (file)."`
	SharedSecretFile string `key:"shared_secret_file" form:"file" status:"acts" doc:"File holding the shared secret; beats shared_secret. A final newline is ignored."`
	// SharedSecretPrevious still opens what it sealed, and seals nothing.
	SharedSecretPrevious     []byte `key:"shared_secret_previous" form:"b64key" secret:"true" status:"acts" doc:"The shared secret before the last change: still opens records, sessions, links and tokens, and seals nothing."`
	SharedSecretPreviousFile string `key:"shared_secret_previous_file" form:"file" status:"acts" doc:"File holding shared_secret_previous; beats it."`
	CookieSecret             []byte `key:"cookie_secret" form:"b64key" secret:"true" status:"acts" doc:"Base64 of 32 random bytes that seal sign-in state and CSRF tokens; derived from the shared secret if unset."`
	CookieSecretFile         string `key:"cookie_secret_file" form:"file" status:"acts" doc:"File holding the cookie secret; beats cookie_secret."`

	GoogleServiceAccount string `key:"google_cloud_serverless_authentication_service_account" secret:"true" status:"accepted" doc:"Base64 of the JSON service account that signs requests to Google serverless upstreams."`
}

// Services says which of the four roles this process plays and where the
// others are.
type Services struct {
	_ struct{} `section:"2.1"`

	Services []string `key:"services" form:"services" default:"all" status:"acts" doc:"Roles of this process: all, or any of authenticate, authorize, proxy and databroker (also called cache), joined by commas. Only all is served yet."`

	AuthorizeServiceURL          *url.URL   `key:"authorize_service_url" status:"accepted" doc:"Where authorize is reached; http://127.0.0.1:5443 if unset."`
	AuthorizeServiceURLs         []*url.URL `key:"authorize_service_urls" status:"accepted" doc:"Where authorize is reached, several; added to authorize_service_url."`
	AuthorizeInternalServiceURL  *url.URL   `key:"authorize_internal_service_url" status:"accepted" doc:"Where authorize is reached from inside, and the name it serves."`
	DatabrokerServiceURL         *url.URL   `key:"databroker_service_url" status:"accepted" doc:"Where the databroker is reached; http://127.0.0.1:5443 if unset."`
	DatabrokerServiceURLs        []*url.URL `key:"databroker_service_urls" status:"accepted" doc:"Where the databroker is reached, several; added to databroker_service_url."`
	DatabrokerInternalServiceURL *url.URL   `key:"databroker_internal_service_url" status:"accepted" doc:"Where the databroker is reached from inside, and the name it serves."`
	OverrideCertificateName      string     `key:"override_certificate_name" status:"accepted" doc:"Name expected in the certificates of internal connections; may hold *."`
	ZeroToken                    string     `key:"pomerium_zero_token" secret:"true" status:"accepted" doc:"Token of the vendor's managed mode, which Postern does not have."`
}

// All reports whether this process plays all four roles.
func (s *Services) All() bool { return len(s.Services) == 4 }

// Has reports whether this process plays role: authenticate, authorize, proxy
// or databroker.
func (s *Services) Has(role string) bool {
	for _, have := range s.Services {
		if have == role {
			return true
		}
	}
	return false
}

// Control says who administers the process and where it listens for them.
type Control struct {
	_ struct{} `section:"ours"`

	// AdminPolicy is a policy document over the signed-in user, or nil.
	AdminPolicy *yaml.Node `key:"admin_policy" env:"-" form:"node" status:"acts" doc:"Policy document (as a route's policy) that says who administers this installation. Unset: nobody through the web."`
	// PolicyTests are files; PolicyTestTexts is what they hold.
	PolicyTests     []string   `key:"policy_tests" env:"-" status:"acts" doc:"Policy test files that are run at load and by validate; one that fails refuses the configuration. A test without a policy is put to the route that the URL of each case leads to."`
	PolicyTestTexts []TestText `key:"-"`
	// ConfigBadRoute is read here and by server.
	ConfigBadRoute string `key:"config_bad_route" enum:"refuse|isolate" default:"refuse" status:"acts" doc:"What a mistake in one route means: refuse refuses the whole change, or the start; isolate lets all else serve while that route answers 503 and is named in log, metric, health and postern status."`
	// UpgradeTimeout and UpgradeDrainTimeout are read by server at SIGUSR2.
	UpgradeTimeout      time.Duration `key:"upgrade_timeout" default:"1m" status:"acts" doc:"How long the program that SIGUSR2 starts may take until it serves. Then it is ended and the old process goes on."`
	UpgradeDrainTimeout time.Duration `key:"upgrade_drain_timeout" default:"1h" status:"acts" doc:"How long after an upgrade in place the old process lets its open streams (WebSockets, gRPC, downloads) finish before it ends them."`
	ControlAddress      string        `key:"control_address" status:"acts" doc:"Unix socket of the control API, a path; control.sock in the data directory if unset."`
}

// TestText is a policy test file as it was read.
type TestText struct {
	File string
	Text []byte
}

// Flag tells a runtime flag, by default or as set.
func (c *Config) Flag(name string) bool { return c.Features.RuntimeFlags[name] }

// Files are the files this configuration was read from, main documents first,
// with the hashes of what they held.
func (c *Config) Files() []WatchedFile { return c.files }

// Checksum identifies the content of everything this configuration was read
// from: documents, environment and referenced files.
func (c *Config) Checksum() uint64 { return c.checksum }
