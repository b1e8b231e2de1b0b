package authz

import (
	"time"

	"postern/internal/policy"
	"postern/internal/session"
)

// Satisfies says whether a policy about people alone (admin_policy) allows the
// caller. Request criteria in it see an empty request. A nil set, an anonymous
// caller and an error are a no.
func Satisfies(set *policy.Set, c *session.Caller, now time.Time) bool {
	if set == nil || c.Anonymous() {
		return false
	}
	in := policy.Input{Now: now, HasSession: true, SessionID: c.ID, UserID: c.UserID(), Email: c.Email()}
	in.Claims = map[string][]any{}
	if c.Session != nil {
		for k, v := range c.Session.Claims {
			in.Claims[k] = v
		}
	}
	if c.User != nil {
		for k, v := range c.User.Claims {
			in.Claims[k] = v
		}
	}
	if c.Directory != nil {
		in.Groups, in.HasDirectory = c.Directory.GroupIDs, true
	}
	var res policy.Result
	set.Evaluate(&in, &res)
	return res.Err == nil && res.Allowed()
}
