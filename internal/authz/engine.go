// Package authz decides: from the credential in a request to the session, from
// the session to the policy, from the policy to a Decision. Every request and
// every open stream is judged here, and an open stream is judged again when
// anything that its Decision rested on changes.
package authz

import (
	"context"
	"net/http"
)

// Engine decides. It is safe for concurrent use and lives as long as the
// process; what changes with the configuration is in Env.
type Engine struct{}

// Env is what one generation gives to decisions: keys, settings, openers.
type Env struct{}

type assertionKey struct{}

// Decide answers one request. It never panics and never returns an Allow that
// policy did not give.
func (e *Engine) Decide(ctx context.Context, req *Request) Decision {
	return Decision{Outcome: Deny, Status: http.StatusForbidden}
}
