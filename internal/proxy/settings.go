package proxy

import (
	"fmt"
	"net/netip"
	"time"

	"postern/internal/exchange"
	"postern/internal/session"
)

// UnderscoreAction is headers_with_underscores_action.
type UnderscoreAction uint8

// The zero action refuses such requests.
const (
	RejectUnderscores UnderscoreAction = iota
	AllowUnderscores
	DropUnderscores
)

// Settings are the global settings of the door, compiled. They are immutable
// and belong to one generation.
type Settings struct {
	Paths       exchange.PathOptions
	Underscores UnderscoreAction

	SkipXFFAppend  bool
	TrustedHops    int
	TrustedProxies []netip.Prefix
	// ProxyProtocol says that connections over TCP begin with a PROXY header.
	ProxyProtocol bool

	// TimeoutRead bounds the arrival of a whole request, TimeoutWrite the life
	// of a stream; 0 is no bound.
	TimeoutRead, TimeoutWrite time.Duration

	// ResponseHeaders are set on answers that belong to no route: own pages
	// and errors.
	ResponseHeaders *ResponseRules

	// Cookies are the names of our cookies: they are kept from upstreams, and
	// upstreams may not set them.
	Cookies session.CookieNames
}

// NewSettings compiles the global settings.
func NewSettings(c Config, cookies session.CookieNames) (*Settings, error) {
	s := &Settings{
		Paths: exchange.PathOptions{
			KeepDots:    !c.NormalizePath,
			KeepSlashes: !c.MergeSlashes,
		},
		SkipXFFAppend:  c.SkipXFFAppend,
		TrustedHops:    int(c.XFFNumTrustedHops),
		TrustedProxies: c.TrustedProxies,
		ProxyProtocol:  c.UseProxyProtocol,
		TimeoutRead:    c.TimeoutRead,
		TimeoutWrite:   c.TimeoutWrite,
		Cookies:        cookies,
	}
	switch c.PathWithEscapedSlashesAction {
	case "", "unknown", "reject_request":
	case "keep_unchanged":
		s.Paths.EscapedSlashes = exchange.KeepEscapedSlashes
	case "unescape_and_redirect":
		s.Paths.EscapedSlashes = exchange.RedirectEscapedSlashes
	case "unescape_and_forward":
		s.Paths.EscapedSlashes = exchange.ForwardEscapedSlashes
	default:
		return nil, fmt.Errorf("path_with_escaped_slashes_action %q is unknown: use keep_unchanged, reject_request, unescape_and_redirect or unescape_and_forward", c.PathWithEscapedSlashesAction)
	}
	switch c.HeadersWithUnderscoresAction {
	case "", "unknown", "reject_request":
	case "allow":
		s.Underscores = AllowUnderscores
	case "drop_header":
		s.Underscores = DropUnderscores
	default:
		return nil, fmt.Errorf("headers_with_underscores_action %q is unknown: use allow, reject_request or drop_header", c.HeadersWithUnderscoresAction)
	}
	var err error
	s.ResponseHeaders, err = NewResponseRules(c.SetResponseHeaders, nil)
	return s, err
}
