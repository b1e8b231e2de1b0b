package telemetry

import (
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// AuthorizeEntry is one decision, for the authorize log. A nil pointer leaves
// the field out: session, impersonation and service account fields appear only
// where they apply, while user and email may be "".
type AuthorizeEntry struct {
	Time            time.Time
	RequestID       string
	CheckRequestID  string
	Method          string
	Host            string
	Path            string // without query
	Query           string
	IP              netip.Addr // the direct peer
	RouteID         string
	RouteChecksum   uint64
	ClusterStatName string

	// Who. HasSession and HasServiceAccount choose session-id or
	// service-account-id; Impersonated adds the three impersonate-* fields.
	SessionID, ServiceAccountID                               string
	HasSession, HasServiceAccount                             bool
	Impersonated                                              bool
	ImpersonateSessionID, ImpersonateUserID, ImpersonateEmail string
	User, Email                                               string
	RemovedGroups                                             int
	IDTokenClaims                                             func() map[string]any

	MCPMethod, MCPTool string
	MCPParameters      func() []byte // JSON, or nil
	IsMCP              bool

	Header  func(name string) string
	Headers iter.Seq2[string, string]

	Allow, Deny               bool
	AllowReasons, DenyReasons []string // sorted

	// HasShadow says that the route has a shadow policy; ShadowAllow and
	// ShadowDeny tell whether it would have let the request in or refused it.
	HasShadow, ShadowAllow, ShadowDeny bool
	// Trace gives the steps of the decision; nil: not wanted (see WantsTrace).
	Trace func() any
}

// authorizeFields are the names that authorize_log_fields takes, in the order
// of the default line.
var authorizeFields = []struct {
	name      string
	byDefault bool
}{
	{"request-id", true},
	{"check-request-id", true},
	{"method", true},
	{"path", true},
	{"host", true},
	{"ip", true},
	{"session-id", true},
	{"impersonate-session-id", true},
	{"impersonate-user-id", true},
	{"impersonate-email", true},
	{"removed-groups-count", true},
	{"service-account-id", true},
	{"user", true},
	{"email", true},
	{"envoy-route-checksum", true},
	{"envoy-route-id", true},
	{"route-checksum", true},
	{"route-id", true},
	{"body", false},
	{"cluster-stat-name", false},
	{"headers", false},
	{"id-token", false},
	{"id-token-claims", false},
	{"mcp-method", false},
	{"mcp-tool", false},
	{"mcp-tool-parameters", false},
	{"query", false},
	{"trace", false},
}

// AuthorizeFieldNames lists the names that authorize_log_fields takes besides
// headers.<Name>.
func AuthorizeFieldNames() []string {
	names := make([]string, len(authorizeFields))
	for i, f := range authorizeFields {
		names[i] = f.name
	}
	return names
}

// CheckAuthorizeField tells whether authorize_log_fields may hold name.
func CheckAuthorizeField(name string) error {
	if h, ok := strings.CutPrefix(name, "headers."); ok && h != "" {
		return nil
	}
	for _, f := range authorizeFields {
		if f.name == name {
			return nil
		}
	}
	return fmt.Errorf("unknown authorize log field %q: use one of %s, headers.<Name>", name, strings.Join(AuthorizeFieldNames(), ", "))
}

// AuthorizeLog writes the authorize log, at info. Make one for each generation;
// it is safe for concurrent use. A nil *AuthorizeLog writes nothing.
type AuthorizeLog struct {
	w          io.Writer
	level      slog.Leveler
	fields     []string
	headers    []string
	allHeaders bool
}

// NewAuthorizeLog makes an authorize log. w gets whole lines from many
// goroutines: a Sink or a file. fields nil means the defaults; an
// empty list means only the result; unknown names are left out.
func NewAuthorizeLog(w io.Writer, level slog.Leveler, fields []string) *AuthorizeLog {
	a := &AuthorizeLog{w: w, level: level}
	if fields == nil {
		for _, f := range authorizeFields {
			if f.byDefault {
				a.fields = append(a.fields, f.name)
			}
		}
		return a
	}
	placed := false
	for _, f := range fields {
		if CheckAuthorizeField(f) != nil {
			continue
		}
		h, named := strings.CutPrefix(f, "headers.")
		if named || f == "headers" {
			if named {
				a.headers = append(a.headers, http.CanonicalHeaderKey(h))
			} else {
				a.allHeaders = true
			}
			if placed {
				continue
			}
			placed, f = true, "headers"
		}
		a.fields = append(a.fields, f)
	}
	return a
}

// Enabled reports whether Write would write, so that callers can spare
// themselves filling an entry.
func (a *AuthorizeLog) Enabled() bool {
	return a != nil && slog.LevelInfo >= a.level.Level()
}

// WantsTrace reports whether an entry should bring its Trace: the field
// "trace" is among authorize_log_fields, and the visitor was told details
// (show_error_details) or the level is debug.
func (a *AuthorizeLog) WantsTrace(toldDetails bool) bool {
	return a.Enabled() && slices.Contains(a.fields, "trace") && (toldDetails || slog.LevelDebug >= a.level.Level())
}

// Write logs one decision. Tokens are never written: id-token is accepted as a
// field name and shows only that it was asked for.
func (a *AuthorizeLog) Write(e *AuthorizeEntry) {
	if !a.Enabled() {
		return
	}
	l := linePool.Get().(*line)
	l.b = l.b[:0]
	l.open()
	l.str("level", "info")
	l.str("service", "authorize")
	for _, f := range a.fields {
		a.field(l, f, e)
	}
	l.bool("allow", e.Allow)
	l.strs(why("allow", e.Allow), e.AllowReasons)
	l.bool("deny", e.Deny)
	l.strs(why("deny", e.Deny), e.DenyReasons)
	if e.HasShadow {
		l.bool("shadow-allow", e.ShadowAllow)
		l.bool("shadow-deny", e.ShadowDeny)
	}
	l.time("time", e.Time)
	l.str("message", "authorize check")
	l.close()
	_, _ = a.w.Write(l.b)
	putLine(l)
}

func why(action string, value bool) string {
	switch {
	case action == "allow" && value:
		return "allow-why-true"
	case action == "allow":
		return "allow-why-false"
	case value:
		return "deny-why-true"
	}
	return "deny-why-false"
}

func (a *AuthorizeLog) field(l *line, f string, e *AuthorizeEntry) {
	switch f {
	case "request-id":
		l.str(f, e.RequestID)
	case "check-request-id":
		l.str(f, e.CheckRequestID)
	case "method":
		l.str(f, e.Method)
	case "path":
		l.str(f, withoutQuery(e.Path))
	case "host":
		l.str(f, e.Host)
	case "ip":
		l.addr(f, e.IP)
	case "query":
		l.str(f, RedactQuery(e.Query))
	case "session-id":
		if e.HasSession {
			l.str(f, e.SessionID)
		}
	case "service-account-id":
		if e.HasServiceAccount {
			l.str(f, e.ServiceAccountID)
		}
	case "impersonate-session-id":
		if e.Impersonated {
			l.str(f, e.ImpersonateSessionID)
		}
	case "impersonate-user-id":
		if e.Impersonated {
			l.str(f, e.ImpersonateUserID)
		}
	case "impersonate-email":
		if e.Impersonated {
			l.str(f, e.ImpersonateEmail)
		}
	case "removed-groups-count":
		if e.RemovedGroups > 0 {
			l.int(f, int64(e.RemovedGroups))
		}
	case "user":
		l.str(f, e.User)
	case "email":
		l.str(f, e.Email)
	case "envoy-route-checksum", "route-checksum":
		l.uint(f, e.RouteChecksum)
	case "envoy-route-id", "route-id":
		l.str(f, e.RouteID)
	case "cluster-stat-name":
		l.str(f, e.ClusterStatName)
	case "mcp-method":
		if e.IsMCP {
			l.str(f, e.MCPMethod)
		}
	case "mcp-tool":
		if e.MCPTool != "" {
			l.str(f, e.MCPTool)
		}
	case "mcp-tool-parameters":
		if e.MCPTool != "" && e.MCPParameters != nil {
			l.str(f, redactText(string(e.MCPParameters())))
		}
	case "id-token":
		l.str(f, redacted)
	case "id-token-claims":
		if e.IDTokenClaims != nil {
			l.object(f, e.IDTokenClaims())
		}
	case "trace":
		if e.Trace != nil {
			l.json(f, e.Trace())
		}
	case "headers":
		if a.allHeaders {
			l.everyHeader(e.Headers)
		} else {
			l.headers(a.headers, e.Header, func(s string) string { return s })
		}
	}
}

// everyHeader writes all request headers by canonical name, first values only.
func (l *line) everyHeader(seq iter.Seq2[string, string]) {
	l.key("headers")
	l.b = append(l.b, '{')
	seen := map[string]bool{}
	if seq != nil {
		for n, v := range seq {
			n = http.CanonicalHeaderKey(n)
			if seen[n] || len(seen) >= maxItems {
				continue
			}
			if len(seen) > 0 {
				l.b = append(l.b, ',')
			}
			seen[n] = true
			if secretHeader(n) {
				v = redacted
			}
			l.b = appendString(l.b, n)
			l.b = append(l.b, ':')
			l.b = appendString(l.b, redactText(v))
		}
	}
	l.b = append(l.b, '}')
}
