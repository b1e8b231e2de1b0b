package telemetry

import (
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// AccessEntry is one served request, for the access log. Strings are not kept
// after Write returns.
type AccessEntry struct {
	Time                time.Time
	UpstreamCluster     string // "route-6f431f0be965b608"
	ClusterStatName     string
	Method              string
	Authority           string
	Path                string // without query; a query is cut off
	Query               string // without "?"; credentials in it are redacted
	UserAgent           string
	Referer             string // a query or fragment is cut off
	ForwardedFor        string
	RequestID           string
	IP                  netip.Addr // client address after trusted hops
	Duration            time.Duration
	Size                int64 // response body bytes
	ResponseCode        int
	ResponseCodeDetails string // "via_upstream", "ext_authz_denied", "route_not_found"
	Certificate         *x509.Certificate
	// Header gives the first value of a request header, for headers.<Name>.
	Header func(name string) string
}

// accessFields are the names that access_log_fields takes, and whether each is
// written by default, in the order of the default line.
var accessFields = []struct {
	name      string
	byDefault bool
}{
	{"upstream-cluster", true},
	{"method", true},
	{"authority", true},
	{"path", true},
	{"user-agent", true},
	{"referer", true},
	{"forwarded-for", true},
	{"request-id", true},
	{"duration", true},
	{"size", true},
	{"response-code", true},
	{"response-code-details", true},
	{"ip", false},
	{"query", false},
	{"client-certificate", false},
	{"cluster-stat-name", false},
}

// AccessFieldNames lists the names that access_log_fields takes besides
// headers.<Name>.
func AccessFieldNames() []string {
	names := make([]string, len(accessFields))
	for i, f := range accessFields {
		names[i] = f.name
	}
	return names
}

// CheckAccessField tells whether access_log_fields may hold name.
func CheckAccessField(name string) error {
	if h, ok := strings.CutPrefix(name, "headers."); ok && h != "" {
		return nil
	}
	for _, f := range accessFields {
		if f.name == name {
			return nil
		}
	}
	return fmt.Errorf("unknown access log field %q: use one of %s, headers.<Name>", name, strings.Join(AccessFieldNames(), ", "))
}

// AccessLog writes the access log. Make one for each generation; it is safe
// for concurrent use.
type AccessLog struct {
	w       io.Writer
	level   slog.Leveler
	fields  []string
	headers []string // names wanted by headers.<Name>
}

// NewAccessLog makes an access log. w gets whole lines from many goroutines: a
// Sink or a file. fields nil means the defaults; an empty
// list means none; unknown names are left out (the configuration reports them).
// Nothing is written while level is above info; /ping and /healthz appear only
// at debug and below (wire-contract.md §12).
func NewAccessLog(w io.Writer, level slog.Leveler, fields []string) *AccessLog {
	a := &AccessLog{w: w, level: level}
	if fields == nil {
		for _, f := range accessFields {
			if f.byDefault {
				a.fields = append(a.fields, f.name)
			}
		}
		return a
	}
	for _, f := range fields {
		if CheckAccessField(f) != nil {
			continue
		}
		if h, ok := strings.CutPrefix(f, "headers."); ok {
			a.headers = append(a.headers, h)
			if len(a.headers) > 1 {
				continue
			}
			f = "headers"
		}
		a.fields = append(a.fields, f)
	}
	return a
}

// Enabled reports whether a request for path would be logged.
func (a *AccessLog) Enabled(path string) bool {
	return a != nil && a.lineLevel(path) >= a.level.Level()
}

func (a *AccessLog) lineLevel(path string) slog.Level {
	if path == "/ping" || path == "/healthz" {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// linePool holds *line with a buffer; a line that grew large is not kept.
var linePool = sync.Pool{New: func() any { return &line{b: make([]byte, 0, 1024)} }}

const maxPooledLine = 16 << 10

func putLine(l *line) {
	if cap(l.b) <= maxPooledLine {
		linePool.Put(l)
	}
}

// Write logs one request.
func (a *AccessLog) Write(e *AccessEntry) {
	if a == nil {
		return
	}
	path, _, _ := strings.Cut(e.Path, "?")
	level := a.lineLevel(path)
	if level < a.level.Level() {
		return
	}
	l := linePool.Get().(*line)
	l.b = l.b[:0]
	l.open()
	l.str("level", levelName(level))
	l.str("service", "envoy")
	for _, f := range a.fields {
		switch f {
		case "upstream-cluster":
			l.str(f, e.UpstreamCluster)
		case "cluster-stat-name":
			l.str(f, e.ClusterStatName)
		case "method":
			l.str(f, e.Method)
		case "authority":
			l.str(f, e.Authority)
		case "path":
			l.str(f, path)
		case "query":
			l.str(f, RedactQuery(e.Query))
		case "user-agent":
			l.str(f, e.UserAgent)
		case "referer":
			l.str(f, withoutQuery(e.Referer))
		case "forwarded-for":
			l.str(f, e.ForwardedFor)
		case "request-id":
			l.str(f, e.RequestID)
		case "ip":
			l.addr(f, e.IP)
		case "duration":
			l.millis(f, e.Duration)
		case "size":
			l.int(f, e.Size)
		case "response-code":
			l.int(f, int64(e.ResponseCode))
		case "response-code-details":
			l.str(f, e.ResponseCodeDetails)
		case "client-certificate":
			l.certificate(f, e.Certificate)
		case "headers":
			l.headers(a.headers, e.Header, strings.ToLower)
		}
	}
	l.time("time", e.Time)
	l.str("message", "http-request")
	l.close()
	_, _ = a.w.Write(l.b)
	putLine(l)
}

func withoutQuery(u string) string {
	if i := strings.IndexAny(u, "?#"); i >= 0 {
		return u[:i]
	}
	return u
}

func (l *line) addr(name string, a netip.Addr) {
	l.key(name)
	l.b = append(l.b, '"')
	if a.IsValid() {
		l.b = a.AppendTo(l.b) // the zone is bounded by the address parser
	}
	l.b = append(l.b, '"')
}

// headers writes the named request headers as one object, credentials redacted.
func (l *line) headers(names []string, get func(string) string, spell func(string) string) {
	l.key("headers")
	l.b = append(l.b, '{')
	first := true
	for _, n := range names {
		var v string
		if get != nil {
			v = get(n)
		}
		if v == "" {
			continue
		}
		if secretHeader(n) {
			v = redacted
		}
		if !first {
			l.b = append(l.b, ',')
		}
		first = false
		l.b = appendString(l.b, spell(n))
		l.b = append(l.b, ':')
		l.b = appendString(l.b, redactText(v))
	}
	l.b = append(l.b, '}')
}

// certificate writes who a client certificate names; without one, {}.
func (l *line) certificate(name string, c *x509.Certificate) {
	l.key(name)
	l.b = append(l.b, '{')
	if c != nil {
		l.str("issuer", c.Issuer.String())
		l.str("subject", c.Subject.String())
		var names []string
		for _, d := range c.DNSNames {
			names = append(names, "DNS:"+d)
		}
		for _, m := range c.EmailAddresses {
			names = append(names, "email:"+m)
		}
		for _, ip := range c.IPAddresses {
			names = append(names, "IP Address:"+ip.String())
		}
		for _, u := range c.URIs {
			names = append(names, "URI:"+u.String())
		}
		if len(names) > 0 {
			l.strs("subjectAltName", names)
		}
	}
	l.b = append(l.b, '}')
}
