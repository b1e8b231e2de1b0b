package policy

import (
	"crypto/x509"
	"net/netip"
	"time"
)

// Input is everything a policy may look at. It is filled by authz for one
// decision and is read-only while a policy is evaluated. The clock arrives
// here; a policy never looks at one itself.
type Input struct {
	// Now is the time of the decision.
	Now time.Time

	// Request. Method and RawPath are as judged; Path is DecodePath(RawPath) and
	// must be set with it, for http_path compares nothing else. Header gives
	// the first value of a header (any case); nil means no headers.
	Method   string
	Host     string // authority with port
	RawPath  string // percent-encoded, without query
	Path     string // RawPath decoded once (DecodePath); "" if that fails
	RawQuery string
	ClientIP netip.Addr // invalid: matches nothing
	Header   func(name string) string
	// EachHeader gives every header line; custom scripts look at all of them.
	// nil means no headers.
	EachHeader func(yield func(name, value string) bool)
	// Body is the part of the body that was read for the decision.
	Body []byte

	// Client certificate. Certificate is the presented leaf or nil.
	// CertificateState says how invalid_client_certificate answers.
	Certificate      *x509.Certificate
	Intermediates    []*x509.Certificate
	CertificateState CertificateState

	// Who is asking (policy-language.md §5). HasSession false: nobody.
	HasSession bool
	SessionID  string
	UserID     string
	Email      string
	// Claim gives the list stored under a claim's literal name.
	Claims map[string][]any
	// Groups are directory group ids; HasDirectory tells an empty list from
	// a missing directory record.
	Groups       []string
	HasDirectory bool
	// Devices are the session's device credentials in order.
	Devices []Device

	// MCP is the JSON-RPC call in the body, if the route is an MCP server.
	MCP *MCPCall
	// SSH is set on SSH routes only.
	SSH *SSHInput

	// Record finds an external record by type for the foreign key configured
	// for that type; ok is false if there is none.
	Record func(typ string) (data map[string]any, ok bool)
	// RecordIdentity tells whether the records of a type are found by the
	// person (foreign key user.id, the default, or user.email), so that they
	// need a session. nil: all are.
	RecordIdentity func(typ string) bool
	// RecordByID finds a record of any type by its id, or by an address inside
	// its $index.cidr, for custom scripts: sessions, users, service accounts,
	// directory entries and external data, with field names in snake case. nil
	// data: there is none. An error says that it cannot be read now.
	RecordByID func(typ, id string) (data map[string]any, err error)
}

// CertificateState tells how invalid_client_certificate answers.
type CertificateState uint8

// Without a client CA, and with a verified chain, the state is CertificateOK.
const (
	CertificateOK CertificateState = iota
	CertificateMissing
	CertificateInvalid
)

// Device is one device credential of the session.
type Device struct {
	ID, Type string
	Approved bool
	Enrolled bool
	Revoked  bool // the credential's record was deleted
}

// MCPCall is a JSON-RPC request read from the body of an MCP request.
type MCPCall struct {
	Method    string
	Tool      string
	Arguments map[string]any
}

// SSHInput is what an SSH route adds.
type SSHInput struct {
	Username  string
	PublicKey []byte // wire form of the offered key or certificate
}
