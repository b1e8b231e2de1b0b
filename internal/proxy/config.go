package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Config holds the global settings that the HTTP door obeys. The tags are
// the declaration: package config parses, checks and documents the keys from
// them (key, env, default, doc, status, enum), so a field's doc tag is its
// documentation. Zero timeouts mean "off".
type Config struct {
	_ struct{} `section:"2.2"`

	Address          string `key:"address" default:":443" status:"acts" doc:"Main listener, host:port. Port 80 if none is given and insecure_server is on."`
	HTTPRedirectAddr string `key:"http_redirect_addr" status:"acts" doc:"Plain HTTP listener, host:port, that redirects to https (and answers ACME HTTP-01)."`
	InsecureServer   bool   `key:"insecure_server" status:"acts" doc:"The main listener speaks HTTP without TLS; for use behind a TLS terminator only."`

	_ struct{} `section:"2.11"`

	TimeoutRead            time.Duration `key:"timeout_read" default:"30s" status:"acts" doc:"The whole request must have arrived within this time; 0 turns it off."`
	TimeoutWrite           time.Duration `key:"timeout_write" default:"0s" status:"acts" doc:"Maximum life of any stream, WebSockets included; 0 turns it off."`
	TimeoutIdle            time.Duration `key:"timeout_idle" default:"5m" status:"acts" doc:"A connection without an active stream is closed after this time."`
	DefaultUpstreamTimeout time.Duration `key:"default_upstream_timeout" default:"30s" status:"acts" doc:"Response timeout of routes that set no timeout of their own."`

	_ struct{} `section:"2.12"`

	// SetResponseHeaders is the effective set after loading: the three
	// security defaults if the key is not set, empty if it names disable.
	SetResponseHeaders           map[string]string `key:"set_response_headers" env:"HEADERS" form:"headers" status:"acts" doc:"Headers added to every response, own pages included. Setting it drops the defaults (X-Frame-Options, X-XSS-Protection, Strict-Transport-Security); the name disable empties the set."`
	AllowUpgrades                []string          `key:"allow_upgrades" status:"acts" doc:"Extra HTTP Upgrade types for all routes; websocket and spdy/3.1 equal the route switches."`
	NormalizePath                bool              `key:"normalize_path" default:"true" status:"acts" doc:"Normalise the path as RFC 3986 says before matching."`
	MergeSlashes                 bool              `key:"merge_slashes" default:"true" status:"acts" doc:"Read adjacent slashes in the path as one before matching."`
	PathWithEscapedSlashesAction string            `key:"path_with_escaped_slashes_action" default:"reject_request" enum:"reject_request|keep_unchanged|unescape_and_redirect|unescape_and_forward" status:"acts" doc:"What to do with a path holding %2F or %5C. reject_request answers 400."`
	HeadersWithUnderscoresAction string            `key:"headers_with_underscores_action" default:"reject_request" enum:"reject_request|allow|drop_header" status:"acts" doc:"What to do with request header names holding an underscore. reject_request answers 400."`
	SkipXFFAppend                bool              `key:"skip_xff_append" status:"acts" doc:"Leave X-Forwarded-For as it came."`
	XFFNumTrustedHops            uint32            `key:"xff_num_trusted_hops" status:"acts" doc:"Number of trusted proxies in front: the client address is taken from X-Forwarded-For, and X-Forwarded-Proto is believed, if above 0."`
	TrustedProxies               []netip.Prefix    `key:"trusted_proxies" form:"prefixes" status:"acts" narrows:"true" doc:"Networks (CIDR or address) whose X-Forwarded-For hops, and PROXY protocol headers, are believed. Unset: any peer."`
	UseProxyProtocol             bool              `key:"use_proxy_protocol" status:"acts" doc:"Require a PROXY protocol v1 or v2 header on TCP listeners."`
	CodecType                    string            `key:"codec_type" default:"auto" enum:"auto|http1|http2|http3" status:"acts" doc:"HTTP versions offered to clients. auto is HTTP/1.1 and HTTP/2; http3 is these two, and HTTP/3 on the same port over UDP, which answers over TCP advertise (alt-svc). http3 and insecure_server exclude each other."`
	HTTP3AdvertisePort           uint32            `key:"http3_advertise_port" status:"acts" doc:"Port named in the alt-svc header for HTTP/3; the port of address if unset."`
	// RateLimit is nil where no limit is set.
	RateLimit []RateLimit `key:"rate_limit" section:"ours" narrows:"true" status:"acts" doc:"Limits of the rate of requests, one or a list, for every route that sets none of its own; each route counts by itself."`
	Engine    string      `key:"engine" default:"auto" enum:"auto|fast|reference" status:"acts" doc:"Which HTTP engine serves requests. reference is built on net/http; auto picks it. fast is not part of this version and stops the start."`
}

// RouteConfig holds the per-route settings that the HTTP door obeys.
type RouteConfig struct {
	_ struct{} `section:"3.2"`

	Redirect *Redirect `key:"redirect" status:"acts" doc:"Answer with a redirect instead of forwarding. Beats response and to."`
	Response *Response `key:"response" status:"acts" doc:"Answer with a fixed response instead of forwarding. Beats to."`

	_ struct{} `section:"3.5"`

	PrefixRewrite                    string `key:"prefix_rewrite" status:"acts" doc:"Replaces the matched prefix (the whole path on path and regex routes). Not together with regex_rewrite_pattern."`
	RegexRewritePattern              string `key:"regex_rewrite_pattern" form:"regex" status:"acts" doc:"RE2 pattern on the path, replaced by regex_rewrite_substitution."`
	RegexRewriteSubstitution         string `key:"regex_rewrite_substitution" status:"acts" doc:"Replacement for regex_rewrite_pattern; \\1 names a group."`
	HostRewrite                      string `key:"host_rewrite" status:"acts" doc:"Host sent to the upstream, literally."`
	HostRewriteHeader                string `key:"host_rewrite_header" status:"acts" doc:"Host sent to the upstream, taken from this request header."`
	HostPathRegexRewritePattern      string `key:"host_path_regex_rewrite_pattern" form:"regex" status:"acts" doc:"RE2 pattern on the path from which the upstream Host is made."`
	HostPathRegexRewriteSubstitution string `key:"host_path_regex_rewrite_substitution" status:"acts" doc:"Host made from host_path_regex_rewrite_pattern; \\1 names a group."`
	PreserveHostHeader               bool   `key:"preserve_host_header" status:"acts" doc:"Send the Host of the request to the upstream."`

	_ struct{} `section:"3.6"`

	SetRequestHeaders      map[string]string       `key:"set_request_headers" form:"headers" status:"acts" doc:"Headers set on the request to the upstream, with templates such as ${pomerium.jwt}; write $$ for a dollar sign."`
	RemoveRequestHeaders   []string                `key:"remove_request_headers" status:"acts" doc:"Headers removed from the request last of all, even those set_request_headers set."`
	SetResponseHeaders     map[string]string       `key:"set_response_headers" form:"headers" status:"acts" doc:"Headers set on responses, merged over the global ones; the name disable empties everything, the global ones included."`
	RewriteResponseHeaders []RewriteResponseHeader `key:"rewrite_response_headers" status:"acts" doc:"Response headers in which a leading prefix is replaced."`

	_ struct{} `section:"3.9"`

	Timeout         *time.Duration `key:"timeout" status:"acts" doc:"Time for the whole response; default_upstream_timeout if unset, 0 for none."`
	IdleTimeout     *time.Duration `key:"idle_timeout" status:"acts" doc:"Time a stream may be without bytes; 5m if unset, 0 for none."`
	AllowWebsockets bool           `key:"allow_websockets" status:"acts" doc:"Let WebSocket upgrades through; the upstream is then spoken to in HTTP/1.1."`
	AllowSPDY       bool           `key:"allow_spdy" status:"acts" doc:"Let SPDY/3.1 upgrades through (kubectl exec and port-forward)."`
	AllowUpgrades   []string       `key:"allow_upgrades" status:"acts" doc:"HTTP Upgrade types let through; replaces the global list."`

	// RateLimit is nil where the route inherits, and empty where it has none.
	RateLimit []RateLimit `key:"rate_limit" section:"ours" narrows:"true" status:"acts" doc:"Limits of the rate of requests, one or a list; replaces the global rate_limit, and an empty list is no limit. One request too many is answered 429."`

	// Resolved is computed while loading from the keys above and the global ones.
	Resolved Resolved `key:"-"`
}

// Redirect is the redirect block of a route.
type Redirect struct {
	HTTPSRedirect  *bool   `key:"https_redirect" status:"acts" doc:"Redirect to https; beats scheme_redirect."`
	SchemeRedirect *string `key:"scheme_redirect" status:"acts" doc:"Scheme to redirect to."`
	HostRedirect   *string `key:"host_redirect" status:"acts" doc:"Host to redirect to."`
	PortRedirect   *uint32 `key:"port_redirect" status:"acts" doc:"Port to redirect to."`
	PathRedirect   *string `key:"path_redirect" status:"acts" doc:"Path to redirect to; beats prefix_rewrite."`
	PrefixRewrite  *string `key:"prefix_rewrite" status:"acts" doc:"Replaces the matched prefix in the redirect target."`
	ResponseCode   *int    `key:"response_code" default:"301" status:"acts" doc:"Status of the redirect: 301, 302, 303, 307 or 308."`
	StripQuery     *bool   `key:"strip_query" status:"acts" doc:"Leave the query out of the redirect target."`
}

// RateLimit allows so many requests in so much time. It is a bucket that holds
// Burst requests and fills at the rate of Requests per Per.
type RateLimit struct {
	Name     string        `key:"name" status:"acts" doc:"Name of the limit in the RateLimit headers; the value of by if unset."`
	Requests uint32        `key:"requests" status:"acts" doc:"How many requests are allowed per the time of per."`
	Per      time.Duration `key:"per" default:"1m" status:"acts" doc:"The time for requests, in whole seconds."`
	Burst    uint32        `key:"burst" status:"acts" doc:"How many requests may come at once after a pause; as many as requests if unset."`
	By       string        `key:"by" default:"identity" enum:"identity|ip|route" status:"acts" doc:"Who is counted: identity is each person and service account, and by address whoever is not signed in or not let in; ip is each client address (IPv6: each /64), before anything is decided; route is everybody let in together."`
}

// Response is the fixed answer of a route.
type Response struct {
	Status int    `key:"status" status:"acts" doc:"HTTP status of the fixed response."`
	Body   string `key:"body" status:"acts" doc:"Body of the fixed response."`
}

// RewriteResponseHeader replaces a leading Prefix of a response header's
// value by Value.
type RewriteResponseHeader struct {
	Header string `key:"header" status:"acts" doc:"Name of the response header."`
	Prefix string `key:"prefix" status:"acts" doc:"Leading part of the value to replace."`
	Value  string `key:"value" status:"acts" doc:"What the leading part becomes."`
}

// Resolved is what the route's and the global keys together mean
// (configuration.md §2.12, §3.6, §3.9).
type Resolved struct {
	Timeout         time.Duration     // whole response; 0 none
	IdleTimeout     time.Duration     // stream without bytes; 0 none
	Upgrades        []string          // Upgrade types let through, lower case
	Websockets      bool              // Upgrades holds "websocket"
	ResponseHeaders map[string]string // route headers over global ones
	RateLimit       []RateLimit       // the route's, else the global ones
}

// String spells the redirect out; equal redirects have equal spellings.
func (r Redirect) String() string {
	var b strings.Builder
	text := func(name string, v *string) {
		if v != nil {
			fmt.Fprintf(&b, "%s=%q ", name, *v)
		}
	}
	flag := func(name string, v *bool) {
		if v != nil {
			fmt.Fprintf(&b, "%s=%t ", name, *v)
		}
	}
	flag("https", r.HTTPSRedirect)
	text("scheme", r.SchemeRedirect)
	text("host", r.HostRedirect)
	if r.PortRedirect != nil {
		fmt.Fprintf(&b, "port=%d ", *r.PortRedirect)
	}
	text("path", r.PathRedirect)
	text("prefix", r.PrefixRewrite)
	if r.ResponseCode != nil {
		fmt.Fprintf(&b, "code=%d ", *r.ResponseCode)
	}
	flag("strip_query", r.StripQuery)
	return strings.TrimSpace(b.String())
}
