package policy

import (
	"strconv"
	"strings"
)

// Outcome is what becomes of a request. The zero Outcome is Deny.
type Outcome uint8

const (
	Deny Outcome = iota
	Allow
	Login  // nobody is signed in and that mattered
	Enroll // a device is to be enrolled; written "device"
	Error  // the policy could not be evaluated
)

// String gives the word used in test files and logs.
func (o Outcome) String() string {
	switch o {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	case Login:
		return "login"
	case Enroll:
		return "device"
	}
	return "error"
}

// Client is what the outcome of an HTTP request depends on beside the rules.
type Client struct {
	// Follows says that a redirect makes sense to this client (see Follows).
	Follows bool
	// MCPRoute: the route is an MCP server. MCPCall: the body is a JSON-RPC call.
	MCPRoute, MCPCall bool
	// Robots: the path is /robots.txt, answered 200 with a disallow-all body
	// unless the request is allowed.
	Robots bool
}

// Choice is an outcome with what is needed to answer.
type Choice struct {
	Outcome Outcome
	// Status is the HTTP status: 200 for an allow (the upstream's own in
	// truth), 302 for a redirect, 0 on SSH.
	Status int
	// Reasons are those the refusal rests on: of the deny or of the allow.
	Reasons Reasons
	// DeviceType is the type to enrol; "any" unless a rule said otherwise.
	DeviceType string
}

var certificateReasons = ReasonsOf(ReasonClientCertificateRequired, ReasonInvalidClientCertificate)

// Choose selects the outcome of an HTTP request (§8); the first line that
// applies decides.
func Choose(res *Result, c Client) Choice {
	choice := Choice{DeviceType: res.DeviceType()}
	allow, deny := &res.Allow, &res.Deny
	either := func(r Reason) bool { return allow.Reasons.Has(r) || deny.Reasons.Has(r) }
	redirect := func() int {
		if c.Follows && !c.MCPRoute {
			return 302
		}
		return 401
	}
	switch {
	case res.Err != nil:
		choice.Outcome, choice.Status = Error, 500
		return choice
	case deny.Reasons.HasAny(certificateReasons):
		choice.Outcome, choice.Status, choice.Reasons = Deny, 495, deny.Reasons
	case either(ReasonUserUnauthenticated):
		choice.Outcome, choice.Status, choice.Reasons = Login, redirect(), allow.Reasons.Union(deny.Reasons)
	case either(ReasonDeviceUnauthenticated):
		choice.Outcome, choice.Status, choice.Reasons = Enroll, redirect(), allow.Reasons.Union(deny.Reasons)
	case deny.Value:
		choice.Outcome, choice.Status, choice.Reasons = Deny, DenyStatus(deny.Reasons, c), deny.Reasons
	case allow.Value:
		choice.Outcome, choice.Status, choice.Reasons = Allow, 200, allow.Reasons
		return choice
	default:
		choice.Outcome, choice.Status, choice.Reasons = Deny, DenyStatus(allow.Reasons, c), allow.Reasons
	}
	if c.Robots {
		choice.Status = 200
	}
	return choice
}

// DenyStatus is the status of a refusal for these reasons (§8).
func DenyStatus(why Reasons, c Client) int {
	switch {
	case why.Has(ReasonDeviceUnauthorized):
		return 450
	case why.Has(ReasonRouteNotFound):
		return 404
	case why.HasAny(certificateReasons):
		return 495
	case c.MCPCall:
		return 200 // a JSON-RPC error, code -32602
	case c.MCPRoute:
		return 401 // with WWW-Authenticate
	}
	return 403
}

// ChooseSSH selects the outcome of an SSH connection (§8). later is set for
// checks in a connection already let in, which only allow or deny. Refused
// keys have ReasonSSHPublicKeyUnauthorized among the reasons: the client may
// offer another.
func ChooseSSH(res *Result, later bool) Choice {
	choice := Choice{DeviceType: res.DeviceType(), Reasons: res.Allow.Reasons.Union(res.Deny.Reasons)}
	switch {
	case res.Err != nil:
		choice.Outcome = Error
	case !later && choice.Reasons.Has(ReasonSSHPublicKeyUnauthorized):
		choice.Outcome = Deny
	case !later && choice.Reasons.Has(ReasonUserUnauthenticated):
		choice.Outcome = Login
	case res.Allowed():
		choice.Outcome = Allow
	default:
		choice.Outcome = Deny
	}
	return choice
}

// Follows tells whether a client can follow a redirect to sign in (wire
// contract §1.4): not with a token in a header or the query, not gRPC, and not
// if it prefers something other than HTML. contentType and accept are the
// header values, "" if missing.
func Follows(contentType, accept string, token bool) bool {
	return !token && !isGRPC(contentType) && AcceptsHTML(accept)
}

func isGRPC(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	for _, kind := range []string{"application/grpc", "application/grpc-web", "application/grpc-web-text"} {
		if rest, ok := strings.CutPrefix(t, kind); ok && (rest == "" || rest[0] == '+') {
			return true
		}
	}
	return false
}

// offers are the media types an answer may have, in order of preference.
var offers = []string{
	"text/html", "application/json", "text/plain",
	"application/grpc-web-text", "application/grpc-web+proto", "application/grpc+proto",
}

// AcceptsHTML tells whether an Accept header leads to an HTML page. It does
// when it is missing, unreadable, or matches no offer at all; ties go to the
// earlier offer (RFC 9110 §12.5.1).
func AcceptsHTML(accept string) bool {
	type mediaRange struct {
		kind        string
		specificity int
		q           float64
	}
	var ranges []mediaRange
	for part := range strings.SplitSeq(accept, ",") {
		kind, params, _ := strings.Cut(part, ";")
		kind = strings.ToLower(strings.TrimSpace(kind))
		if kind == "" {
			continue
		}
		main, sub, ok := strings.Cut(kind, "/")
		if !ok || main == "" || sub == "" || main == "*" && sub != "*" {
			return true
		}
		r := mediaRange{kind: kind, specificity: 2, q: 1}
		switch {
		case main == "*":
			r.specificity = 0
		case sub == "*":
			r.specificity = 1
		}
		for param := range strings.SplitSeq(params, ";") {
			name, value, _ := strings.Cut(param, "=")
			if strings.EqualFold(strings.TrimSpace(name), "q") {
				q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil || !(q >= 0 && q <= 1) {
					return true
				}
				r.q = q
			}
		}
		ranges = append(ranges, r)
		if len(ranges) > 64 {
			return true // no browser and no program lists so many
		}
	}
	best, bestQ := "", 0.0
	for _, offer := range offers {
		specificity, q := -1, 0.0
		for _, r := range ranges {
			prefix, wild := strings.CutSuffix(r.kind, "*")
			matches := r.kind == offer || r.kind == "*/*" || wild && r.specificity == 1 && strings.HasPrefix(offer, prefix)
			if matches && r.specificity > specificity {
				specificity, q = r.specificity, r.q
			}
		}
		if q > bestQ {
			best, bestQ = offer, q
		}
	}
	return best == "" || best == "text/html"
}
