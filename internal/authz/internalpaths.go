package authz

import (
	"context"
	"net/http"
	"strings"
	"time"

	"postern/internal/policy"
)

// judgeInternal answers for Postern's own paths, before any policy: allowed
// with pomerium-route, or login where a session is needed and missing.
func (e *Engine) judgeInternal(ctx context.Context, req *Request, now time.Time, d *Decision) {
	path := req.View.Path()
	_, needs := policy.InternalPath(path)
	w := anonymous
	// Endpoints for programs and probes never look at records: they answer
	// while the store is down.
	if needs || path == "/.pomerium" || strings.HasPrefix(path, "/.pomerium/") && !stateless(path) {
		found, ok := e.authenticate(ctx, req, now, d)
		switch {
		case ok:
			w = found
		case needs:
			return
		default:
			// An open page without its data shows nobody.
			seq, gen, route := d.Depends.seq, d.Depends.Generation, d.Depends.RouteID
			*d = Decision{Caller: anonymous.caller, who: anonymous, engine: e, req: req, Strip: d.Strip}
			d.Depends.seq, d.Depends.Generation, d.Depends.RouteID = seq, gen, route
		}
	}
	if needs && w == anonymous {
		d.Policy.Allow.Reasons = policy.ReasonsOf(policy.ReasonPomeriumRoute, policy.ReasonUserUnauthenticated)
		d.choose(req)
		return
	}
	d.Outcome, d.Status = Allow, http.StatusOK
	d.Policy.Allow = policy.Answer{Value: true, Reasons: policy.ReasonsOf(policy.ReasonPomeriumRoute)}
	d.Why = d.Policy.Allow.Reasons
}

// stateless reports whether a page below /.pomerium is the same for everybody.
func stateless(path string) bool {
	switch strings.TrimPrefix(path, "/.pomerium/") {
	case "index.js", "index.css", "callback/", "api/v1/login", "verify-access-token", "verify-identity-token":
		return true
	}
	return strings.HasPrefix(path, "/.pomerium/favicon") || path == "/.pomerium/apple-touch-icon.png"
}
