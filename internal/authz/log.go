package authz

import (
	"encoding/json"
	"time"

	"postern/internal/telemetry"
)

// writeLog writes the authorize log line of a decision (wire-contract.md §12).
func (e *Engine) writeLog(req *Request, d *Decision, now time.Time) {
	log := req.Env.log
	if !log.Enabled() || req.View == nil {
		return
	}
	v, w := req.View, d.who
	if w == nil {
		w = anonymous
	}
	entry := telemetry.AuthorizeEntry{
		Time:           now,
		RequestID:      v.RequestID(),
		CheckRequestID: v.RequestID(),
		Method:         v.Method(),
		Host:           v.Authority(),
		Path:           v.Path(),
		Query:          v.RawQuery(),
		User:           w.userID,
		Email:          w.email,
		Header:         v.Header,
		Headers:        v.Headers(),
		Allow:          d.Policy.Allow.Value,
		Deny:           d.Policy.Deny.Value,
		AllowReasons:   d.Policy.Allow.Reasons.Names(),
		DenyReasons:    d.Policy.Deny.Reasons.Names(),
	}
	if p := v.Peer(); p != nil {
		entry.IP = p.Direct.Addr()
	}
	if rt := req.Route; rt != nil && !req.Internal {
		set := req.Env.settings(rt)
		entry.RouteID, entry.RouteChecksum, entry.ClusterStatName = rt.ID, set.checksum, rt.StatName
		if set.groupsFilter != nil {
			_, entry.RemovedGroups = set.groupClaim(w)
		}
		entry.IsMCP = rt.MCPServer
	}
	if c := w.caller; c != nil && !c.Anonymous() {
		if c.ServiceAccount != nil {
			entry.HasServiceAccount, entry.ServiceAccountID = true, c.ID
		} else {
			entry.HasSession, entry.SessionID = true, c.ID
		}
		if c.ImpersonatedBy != nil {
			entry.Impersonated = true
			entry.ImpersonateSessionID = c.Session.ID
			entry.ImpersonateUserID = w.userID
			entry.ImpersonateEmail = w.email
		}
		if s := c.Session; s != nil {
			entry.IDTokenClaims = func() map[string]any {
				m := make(map[string]any, len(s.Claims))
				for k, v := range s.Claims {
					m[k] = v
				}
				return m
			}
		}
	}
	if m := req.MCP; m != nil {
		entry.MCPMethod, entry.MCPTool = m.Method, m.Tool
		entry.MCPParameters = func() []byte {
			b, _ := json.Marshal(m.Arguments)
			return b
		}
	}
	if d.Shadow.Evaluated {
		entry.HasShadow, entry.ShadowAllow, entry.ShadowDeny = true, d.Shadow.Allow, !d.Shadow.Allow
	}
	if log.WantsTrace(d.Outcome != Allow && req.Route != nil && req.Route.ShowErrorDetails) {
		entry.Trace = func() any { return d.explainBriefly() }
	}
	log.Write(&entry)
}
