package policy

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Bounds of what a trace shows.
const (
	maxShownValues = 8
	maxShownText   = 120 // bytes of one value
)

// Origin says where a criterion looks.
type Origin struct {
	Kind OriginKind
	Name string // of the claim or record type
}

// OriginKind is the kind of place.
type OriginKind uint8

// The places.
const (
	FromNowhere OriginKind = iota // looks at nothing (accept, reject)
	FromRequest
	FromConnection // the client certificate
	FromClock
	FromSession // the user id
	FromEmail
	FromClaim
	FromGroups
	FromDevices
	FromRecord
)

// look is what a criterion looked at.
type look struct {
	origin Origin
	values []string
}

// looks says for every criterion where it looks. A criterion without an entry
// is caught by a test.
var looks = map[string]func(u *Use, in *Input) look{
	"accept": nothing, "reject": nothing,
	"authenticated_user":         userID,
	"user":                       userID,
	"email":                      emailAddress,
	"domain":                     emailDomain,
	"ssh_username_matches_email": func(u *Use, in *Input) look { return look{Origin{Kind: FromEmail}, shown(in.Email)} },
	"claim":                      func(u *Use, in *Input) look { return claimValues(u.SubPath, in) },
	"ssh_username_matches_claim": func(u *Use, in *Input) look {
		name, _ := text(u.valueOrNull())
		return claimValues(name, in)
	},
	"groups": func(_ *Use, in *Input) look {
		return look{Origin{Kind: FromGroups}, showList(in.Groups)}
	},
	"device":      devicesSeen,
	"http_method": func(_ *Use, in *Input) look { return look{Origin{Kind: FromRequest}, shown(in.Method)} },
	"http_path":   func(_ *Use, in *Input) look { return look{Origin{Kind: FromRequest}, shown(in.Path)} },
	"source_ip": func(_ *Use, in *Input) look {
		if !in.ClientIP.IsValid() {
			return look{Origin{Kind: FromRequest}, []string{}}
		}
		return look{Origin{Kind: FromRequest}, shown(in.ClientIP.Unmap().String())}
	},
	"cors_preflight":             func(_ *Use, in *Input) look { return look{Origin{Kind: FromRequest}, shown(in.Method)} },
	"pomerium_routes":            func(_ *Use, in *Input) look { return look{Origin{Kind: FromRequest}, shown(in.Path)} },
	"client_certificate":         certificateSeen,
	"invalid_client_certificate": certificateSeen,
	"mcp_tool": func(_ *Use, in *Input) look {
		if in.MCP == nil {
			return look{Origin{Kind: FromRequest}, []string{}}
		}
		return look{Origin{Kind: FromRequest}, shown(strings.TrimSpace(in.MCP.Method + " " + in.MCP.Tool))}
	},
	"ssh_username": func(_ *Use, in *Input) look {
		if in.SSH == nil {
			return look{Origin{Kind: FromRequest}, []string{}}
		}
		return look{Origin{Kind: FromRequest}, shown(in.SSH.Username)}
	},
	"ssh_publickey": sshKeySeen, "ssh_ca": sshKeySeen,
	"date":        clockSeen,
	"day_of_week": clockSeen,
	"time_of_day": func(u *Use, in *Input) look {
		l := clockSeen(u, in)
		if zone, ok := text(orNull(field(u.Value(), "timezone"))); ok {
			if z, err := time.LoadLocation(zone); err == nil {
				l.values = []string{in.Now.In(z).Format("15:04:05 MST, Monday 2006-01-02")}
			}
		}
		return l
	},
	"record": recordSeen,
}

func (u *Use) look(in *Input) look {
	f := looks[u.Criterion.Name]
	if f == nil {
		return look{values: []string{}}
	}
	l := f(u, in)
	if l.values == nil {
		l.values = []string{}
	}
	return l
}

func (u *Use) valueOrNull() *yaml.Node { return orNull(u.Value()) }

func orNull(n *yaml.Node) *yaml.Node {
	if n == nil {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	}
	return n
}

func nothing(*Use, *Input) look { return look{} }

func userID(_ *Use, in *Input) look { return look{Origin{Kind: FromSession}, shown(in.UserID)} }

func emailAddress(_ *Use, in *Input) look { return look{Origin{Kind: FromEmail}, shown(in.Email)} }

func emailDomain(_ *Use, in *Input) look {
	parts := strings.SplitN(in.Email, "@", 3)
	if len(parts) < 2 {
		return look{Origin{Kind: FromEmail}, []string{}}
	}
	return look{Origin{Kind: FromEmail}, []string{bounded(parts[1])}}
}

// claimValues shows a claim. Providers put tokens into claims at times: what
// looks like a credential is not shown.
func claimValues(name string, in *Input) look {
	l := look{origin: Origin{Kind: FromClaim, Name: name}}
	list, found := in.Claims[name]
	if !found {
		list = in.Claims[strings.ToLower(name)]
	}
	for i, v := range list {
		if i == maxShownValues {
			l.values = append(l.values, more(len(list)-i))
			break
		}
		l.values = append(l.values, showValue(name, v))
	}
	return l
}

func devicesSeen(_ *Use, in *Input) look {
	l := look{origin: Origin{Kind: FromDevices}}
	for i, d := range in.Devices {
		if i == maxShownValues {
			l.values = append(l.values, more(len(in.Devices)-i))
			break
		}
		state := "not enrolled"
		switch {
		case d.Revoked:
			state = "revoked"
		case d.Enrolled && d.Approved:
			state = "approved"
		case d.Enrolled:
			state = "not approved"
		}
		l.values = append(l.values, bounded(d.Type+" "+d.ID+" ("+state+")"))
	}
	return l
}

func certificateSeen(_ *Use, in *Input) look {
	l := look{origin: Origin{Kind: FromConnection}}
	c := in.Certificate
	if c == nil {
		return l
	}
	state := "trusted"
	if in.CertificateState != CertificateOK {
		state = "not trusted"
	}
	sum := sha256.Sum256(c.Raw)
	l.values = []string{bounded(fmt.Sprintf("certificate of %q, %s, fingerprint %s", c.Subject.CommonName, state, hex.EncodeToString(sum[:])))}
	for _, name := range append(append([]string{}, c.DNSNames...), c.EmailAddresses...) {
		if len(l.values) == maxShownValues {
			break
		}
		l.values = append(l.values, bounded(name))
	}
	return l
}

func sshKeySeen(_ *Use, in *Input) look {
	l := look{origin: Origin{Kind: FromRequest}}
	if in.SSH != nil && len(in.SSH.PublicKey) > 0 {
		sum := sha256.Sum256(in.SSH.PublicKey)
		l.values = []string{"SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])}
	}
	return l
}

func clockSeen(_ *Use, in *Input) look {
	return look{Origin{Kind: FromClock}, []string{in.Now.UTC().Format("Monday 2006-01-02T15:04:05Z")}}
}

func recordSeen(u *Use, in *Input) look {
	typ, _ := text(orNull(field(u.Value(), "type")))
	l := look{origin: Origin{Kind: FromRecord, Name: typ}}
	identity := in.RecordIdentity == nil || in.RecordIdentity(typ)
	if in.Record == nil || !in.HasSession && identity {
		return l
	}
	data, ok := in.Record(typ)
	if !ok {
		return l
	}
	name, named := text(orNull(field(u.Value(), "field")))
	if !named {
		l.values = []string{"a record"}
		return l
	}
	steps := strings.FieldsFunc(name, func(r rune) bool { return r == '.' || r == '/' })
	if v, present := findField(data, name, steps); present {
		l.values = []string{showValue(name, v)}
	}
	return l
}

func shown(v string) []string {
	if v == "" {
		return []string{}
	}
	return []string{bounded(v)}
}

func showList(list []string) []string {
	out := make([]string, 0, min(len(list), maxShownValues+1))
	for i, v := range list {
		if i == maxShownValues {
			return append(out, more(len(list)-i))
		}
		out = append(out, bounded(v))
	}
	return out
}

func more(n int) string { return "and " + strconv.Itoa(n) + " more" }

// showValue writes a plain value. What is a credential by its name or by its
// look is not shown.
func showValue(name string, v any) string {
	lower := strings.ToLower(name)
	for _, word := range []string{"token", "secret", "password", "credential", "private"} {
		if strings.Contains(lower, word) {
			return "(not shown)"
		}
	}
	switch v := v.(type) {
	case string:
		if looksSecret(v) {
			return "(not shown)"
		}
		return bounded(v)
	case []any, map[string]any:
		b, err := json.Marshal(v)
		if err != nil || looksSecret(string(b)) {
			return "(not shown)"
		}
		return bounded(string(b))
	}
	return bounded(fmt.Sprint(v))
}

// looksSecret tells tokens and keys by their marks.
func looksSecret(v string) bool {
	return strings.Contains(v, "eyJ") && strings.Count(v, ".") >= 2 || strings.Contains(v, "-----BEGIN")
}

// bounded makes a value fit for a line of text: short, and without control
// characters and such that turn the direction of writing.
func bounded(v string) string {
	if len(v) > maxShownText {
		cut := maxShownText
		for cut > 0 && !utf8.RuneStart(v[cut]) {
			cut--
		}
		v = v[:cut] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '�'
		}
		return r
	}, v)
}

// wantedText is the matcher in words: `is "x"`, `in a, b, and 5 more`.
func wantedText(u *Use) string {
	n := u.Value()
	if n == nil || u.Criterion.ignoresValue() {
		return ""
	}
	if n.Kind != yaml.MappingNode {
		return nodeText(n)
	}
	var parts []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		parts = append(parts, n.Content[i].Value+" "+nodeText(n.Content[i+1]))
	}
	return strings.Join(parts, ", ")
}

func nodeText(n *yaml.Node) string {
	if n.Kind == yaml.SequenceNode {
		var parts []string
		for i, item := range n.Content {
			if i == maxShownValues {
				parts = append(parts, more(len(n.Content)-i))
				break
			}
			parts = append(parts, nodeText(item))
		}
		return strings.Join(parts, ", ")
	}
	v, err := Plain(n)
	if err != nil {
		return bounded(n.Value)
	}
	return showValue("", v)
}

// neededValues lists plain values of which any one satisfies the criterion.
func neededValues(u *Use) []string {
	n := u.Value()
	if n == nil || u.Criterion.ignoresValue() {
		return nil
	}
	switch u.Criterion.Name {
	case "user", "email", "domain", "claim", "groups", "http_method", "http_path", "source_ip", "mcp_tool", "ssh_username":
	default:
		return nil
	}
	if n.Kind == yaml.MappingNode {
		if len(n.Content) != 2 {
			return nil
		}
		switch n.Content[0].Value {
		case "is", "in", "has":
			n = n.Content[1]
		default:
			return nil
		}
	}
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	var out []string
	for i, item := range items {
		if i == maxShownValues {
			return append(out, more(len(items)-i))
		}
		out = append(out, nodeText(item))
	}
	return out
}

// ignoresValue tells the criteria whose value says nothing (§1).
func (c *Criterion) ignoresValue() bool {
	switch c.Name {
	case "accept", "reject", "authenticated_user", "cors_preflight", "invalid_client_certificate", "pomerium_routes", "ssh_username_matches_email":
		return true
	}
	return false
}

// MarshalText writes the word of the outcome.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads it; any other word is an error.
func (o *Outcome) UnmarshalText(b []byte) error {
	for _, k := range []Outcome{Deny, Allow, Login, Enroll, Error} {
		if k.String() == string(b) {
			*o = k
			return nil
		}
	}
	return fmt.Errorf("%q is no outcome; outcomes are deny, allow, login, device, error", b)
}
