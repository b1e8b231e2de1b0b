package authz

import (
	"time"

	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/session"
)

// Outcome is what Decide concluded.
type Outcome uint8

// The zero Outcome is Deny: a Decision that nobody filled refuses.
const (
	Deny   Outcome = iota // refused; Status says how
	Allow                 // forward, with Identity and Strip applied
	SignIn                // somebody must sign in first
	StepUp                // the signed-in person must present a device (DeviceType)
	Error                 // the decision could not be computed; refused
)

// String gives the word used in logs and test files (policy-language.md §14).
func (o Outcome) String() string {
	switch o {
	case Allow:
		return "allow"
	case SignIn:
		return "login"
	case StepUp:
		return "device"
	case Error:
		return "error"
	}
	return "deny"
}

// Decision is the answer of Decide. Slices and strings in it are shared and
// read-only. The zero value refuses.
type Decision struct {
	Outcome Outcome

	// Status is the HTTP status to answer with: 200 for Allow; 302 for a
	// SignIn or StepUp that the client can follow, else 401; 401, 403, 404,
	// 450, 495 for Deny, or 200 where the refusal is a JSON-RPC error or a
	// disallow-all /robots.txt; 500 and 503 for Error (wire-contract.md §1.3, §1.4).
	Status int

	// Redirect says that a SignIn or StepUp is answered with 302, because the
	// client can follow a browser redirect.
	Redirect bool

	// Why are the reasons that the outcome rests on: those of allow for an
	// Allow, those that refused for a Deny. Policy holds the whole result.
	Why    policy.Reasons
	Policy policy.Result

	// DeviceType is what a StepUp asks for ("any", "enclave_only", ...).
	DeviceType string
	// Details says what each attached policy contributed, for the refusal page
	// (policy-language.md §10). Filled only where somebody is refused on a
	// route with show_error_details.
	Details []policy.Detail

	// Message is a short sentence for the visitor of an Error or a bad
	// credential, or "". It holds no secret and no internal detail.
	Message string
	// Err is the cause of an Error, for the log only.
	Err error

	// Caller is who asks: never nil after Decide, and anonymous if nobody is
	// signed in.
	Caller *session.Caller
	// Carrier is how the winning credential came, CarrierNone without one.
	Carrier Carrier

	// Identity are the header fields to add upstream once Strip was applied.
	// A name may repeat (Impersonate-Group). Empty unless Outcome is Allow.
	Identity []exchange.Field
	// Strip are the names that must not pass from the client, in headers and
	// trailers. It includes Authorization when that carried our credential.
	Strip *exchange.NameSet
	// StripQuery says that the query holds pomerium_session, which must be
	// taken out of the forwarded query (see StripSessionQuery).
	StripQuery bool
	// Bare says that a CORS preflight was let through: it goes upstream
	// without cookies, credentials, identity or body.
	Bare bool

	// Preflight says that this Deny is a CORS preflight to an MCP server route,
	// answered 204 without upstream (wire-contract.md §9).
	Preflight bool

	// Shadow is what the route's shadow_policy would have decided.
	Shadow Shadow

	// Depends is what the decision rested on; streams follow it.
	Depends Depends

	// what the assertion is made from if anybody asks for it, see Assertion,
	// and an explanation, see Explain
	engine *Engine
	req    *Request
	who    *who
	began  time.Time
	judged bool // the policy of the route was asked
}

// Depends names what a Decision rested on. A change of any of it means that
// an open stream is decided again.
type Depends struct {
	SessionID      string // the session or service account of the credential
	ImpersonatedID string // the session that was evaluated instead, or ""
	ParentID       string // the browser session that a program's session came from, or ""
	UserID         string // user and directory record id, or ""
	RouteID        string
	Generation     uint64
	// Until is when the session, service account or time window ends; zero: never.
	Until time.Time
	// seq is the state of the change counter before anything was read.
	seq uint64
}

// Carrier is the place in a request where a credential was found.
type Carrier uint8

// The carriers, in the order in which they are looked for (wire-contract.md
// §1.2, §6.2).
const (
	CarrierNone Carrier = iota
	CarrierCookie
	CarrierPomeriumHeader // X-Pomerium-Authorization
	CarrierAuthorization  // Authorization: Pomerium
	CarrierBearer         // Authorization: Bearer Pomerium-
	CarrierQuery          // ?pomerium_session=
	CarrierIDPBearer      // Authorization: Bearer, verified by a provider
)
