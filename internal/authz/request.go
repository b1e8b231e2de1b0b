package authz

import (
	"postern/internal/exchange"
	"postern/internal/policy"
	"postern/internal/route"
)

// Request is the question put to Decide. It is read-only for the engine and
// must stay valid until the exchange ends, because an open stream is decided
// again from it.
type Request struct {
	// View is the canonical request: what is judged here is what is sent.
	View exchange.View
	// Route is the matched route. It is nil for an internal path on a host
	// without routes, and (with Internal false) for a request that no route
	// matches, which is denied with route-not-found.
	Route *route.Route
	// Internal says that the path is one of Postern's own
	// (policy-language.md §9) and is answered before any policy.
	Internal bool
	// Env is the generation that the whole request is served from.
	Env *Env
	// MCP is the JSON-RPC call that a route hook read from the body, if the
	// route is an MCP server. MCPMethod and MCPTool log fields come from it.
	MCP *policy.MCPCall
}
