package policytest

import (
	"crypto/x509"
	"fmt"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// Document is one test: a policy and the cases put to it, or an invalid text.
type Document struct {
	File, Name string
	Cases      []*Case
	Invalid    *Invalid
	// LoadError says that the policy of the document does not load; then all
	// its cases fail with it.
	LoadError error
	// NoPolicy: the document names no policy, so its cases are about somebody
	// else's, such as that of the route their URL leads to.
	NoPolicy bool

	texts []policyText // where its policies are written
}

// Case is one request with everything that is known when it arrives.
type Case struct {
	File, Document, Name string
	Line, Column         int // where the case starts
	Request              Request
	User                 *User // nil: nobody, unless there is a service account
	Session              *Session
	ServiceAccount       *ServiceAccount
	Devices              []Device
	MCP                  *MCP
	SSH                  *SSH // set: an SSH evaluation
	Now                  time.Time
	Settings             Settings
	Records              []Record // of the document, then of the case
	// Own is the route's policy, nil if it has none; Attached the further ones.
	Own      *policy.Policy
	Attached []policy.Attached
	Expect   Expect
}

// Request is the HTTP request of a case, defaults filled in.
type Request struct {
	Method  string
	URL     string
	IP      string // as written; may be no address at all
	Headers map[string]string
	// Presented tells that a client certificate was shown. Certificate is nil
	// if it does not parse. Trusted: the client CA vouches for it.
	Presented   bool
	PEM         string
	Certificate *x509.Certificate
	Trusted     bool
}

// User is a person: a session, a user record, and perhaps a directory record.
type User struct {
	ID        string         `yaml:"id"`
	Email     string         `yaml:"email"`
	Name      string         `yaml:"name"`
	Groups    *[]string      `yaml:"groups"`
	Claims    Object         `yaml:"claims"` // of the user record
	Directory *UserDirectory `yaml:"directory"`
	Record    *bool          `yaml:"record"` // false: no user record
}

// UserDirectory is what a directory knows of a user.
type UserDirectory struct {
	Email  string    `yaml:"email"`
	Groups *[]string `yaml:"groups"`
}

// HasRecord tells whether the user has a user record.
func (u *User) HasRecord() bool { return u.Record == nil || *u.Record }

// DirectoryRecord gives the directory's email and group ids; ok is false if
// there is no directory record.
func (u *User) DirectoryRecord() (email string, groups []string, ok bool) {
	if u.Groups != nil {
		groups, ok = append(groups, *u.Groups...), true
	}
	if u.Directory != nil {
		email, ok = u.Directory.Email, true
		if u.Directory.Groups != nil {
			groups = append(groups, *u.Directory.Groups...)
		}
	}
	return email, groups, ok
}

// Session is the session of User.
type Session struct {
	ID          string       `yaml:"id"`
	Claims      Object       `yaml:"claims"`
	ExpiresAt   *Moment      `yaml:"expires_at"`
	Impersonate *Impersonate `yaml:"impersonate"`
}

// Impersonate is the other session; without a User it does not exist.
type Impersonate struct {
	User      *User   `yaml:"user"`
	Claims    Object  `yaml:"claims"`
	Session   string  `yaml:"session"`
	ExpiresAt *Moment `yaml:"expires_at"`
}

// ServiceAccount stands in place of a session.
type ServiceAccount struct {
	ID        string  `yaml:"id"`
	UserID    string  `yaml:"user_id"`
	ExpiresAt *Moment `yaml:"expires_at"`
}

// Device is a device credential of the session.
type Device struct {
	ID       string `yaml:"id"`
	Type     string `yaml:"type"`
	Approved bool   `yaml:"approved"`
	Enrolled *bool  `yaml:"enrolled"`
	Revoked  bool   `yaml:"revoked"`
}

// MCP is the JSON-RPC call in the body.
type MCP struct {
	Method    string `yaml:"method"`
	Tool      string `yaml:"tool"`
	Arguments Object `yaml:"arguments"`
}

// SSH is what an SSH client offers.
type SSH struct {
	Username  string `yaml:"username"`
	PublicKey string `yaml:"public_key"` // authorized_keys line
}

// Settings are those of the installation and of the route.
type Settings struct {
	DownstreamMTLS *DownstreamMTLS         `yaml:"downstream_mtls"` // set: a client CA is configured
	ExternalData   map[string]ExternalData `yaml:"external_data"`
	Route          RouteSettings           `yaml:"route"`
}

// DownstreamMTLS is the enforcement mode; "" is policy_with_default_deny.
type DownstreamMTLS struct {
	Enforcement string `yaml:"enforcement"`
}

// ExternalData configures a record type.
type ExternalData struct {
	ForeignKey string `yaml:"foreign_key"`
}

// RouteSettings are the keys of a route that matter to its policy.
type RouteSettings struct {
	Public           bool     `yaml:"allow_public_unauthenticated_access"`
	AnyUser          bool     `yaml:"allow_any_authenticated_user"`
	CORSPreflight    bool     `yaml:"cors_allow_preflight"`
	AllowedUsers     []string `yaml:"allowed_users"`
	AllowedDomains   []string `yaml:"allowed_domains"`
	AllowedClaims    Object   `yaml:"allowed_idp_claims"`
	MCPServer        bool     `yaml:"mcp_server"`
	ShowErrorDetails bool     `yaml:"show_error_details"`
}

// Shortcuts gives the route keys as the policy package takes them.
func (r *RouteSettings) Shortcuts() policy.Shortcuts {
	claims := make(map[string][]any, len(r.AllowedClaims))
	for name, v := range r.AllowedClaims {
		list, ok := v.([]any)
		if !ok {
			list = []any{v}
		}
		claims[name] = list
	}
	return policy.Shortcuts{Public: r.Public, CORSPreflight: r.CORSPreflight, AnyUser: r.AnyUser,
		Domains: r.AllowedDomains, Claims: claims, Users: r.AllowedUsers}
}

// Record is a record of external data or of the product's own.
type Record struct {
	Type string `yaml:"type"`
	ID   string `yaml:"id"`
	Data Object `yaml:"data"`
}

// Object is a tree of plain values, read as policies read theirs.
type Object map[string]any

func (o *Object) UnmarshalYAML(n *yaml.Node) error {
	v, err := policy.Plain(n)
	if err != nil {
		return err
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return fmt.Errorf("line %d: wants an object", n.Line)
	}
	*o = m
	return nil
}

// Moment is a time in RFC 3339, quoted or not.
type Moment struct{ time.Time }

func (m *Moment) UnmarshalYAML(n *yaml.Node) error {
	v, err := policy.Plain(n)
	if err != nil {
		return err
	}
	text, _ := v.(string)
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return fmt.Errorf("line %d: wants a time such as 2026-03-02T10:00:00Z", n.Line)
	}
	m.Time = t
	return nil
}
