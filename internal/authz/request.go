package authz

import (
	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/route"
)

// Request is the question put to Decide. It is read-only for the engine. For
// an open stream it must stay valid until the stream is closed, because the
// stream is decided again from it.
type Request struct {
	// View is the canonical request: what is judged here is what is sent.
	View exchange.View
	// Route is the matched route. For an own path it is the route that would
	// otherwise serve the path, or nil. Nil with Internal false is a request
	// that no route matches, which is denied with route-not-found.
	Route *route.Route
	// Internal says that the path is one of Postern's own
	// (policy-language.md §9) and is answered before any policy.
	Internal bool
	// SignInHost says that the host serves sign-in (route.Match.SignIn).
	SignInHost bool
	// Env is the generation that the whole request is served from.
	Env *Env
	// MCP is the JSON-RPC call that a route hook read from the body, if the
	// route is an MCP server; nil without one.
	MCP *policy.MCPCall

	// certificate is what the client certificate of an open stream is worth by
	// now; nil is as the View says.
	certificate *exchange.CertificateState

	// as stands in for the credential in a question that ExplainAs asks. Only
	// this package can set it, and never for a request that is served.
	as *who
}

// certificateState is what the client certificate is worth.
func (r *Request) certificateState() exchange.CertificateState {
	switch peer := r.View.Peer(); {
	case r.certificate != nil:
		return *r.certificate
	case peer != nil:
		return peer.CertificateState
	}
	return exchange.CertificateMissing
}
