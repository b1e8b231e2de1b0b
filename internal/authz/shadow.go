package authz

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"postern/internal/policy"
)

// Shadow is what a route's shadow_policy would have decided on a request. It
// changes nothing: it is logged and counted.
type Shadow struct {
	// Evaluated: the route has a shadow policy and it was asked.
	Evaluated bool
	// Allow: it would have let the request in. Else it would have refused it
	// or asked for more, or it failed.
	Allow bool
	// real is what the policy in force said.
	real bool
}

// WouldAllow says that the request was refused and the shadow policy would
// have let it in.
func (s Shadow) WouldAllow() bool { return s.Evaluated && s.Allow && !s.real }

// WouldDeny says that the request was let in and the shadow policy would have
// refused it.
func (s Shadow) WouldDeny() bool { return s.Evaluated && !s.Allow && s.real }

// shadow asks the shadow policy about an input that was decided already.
// Whatever goes wrong in it is a refusal of the shadow's and no one else's.
func (e *Engine) shadow(ctx context.Context, set *routeSettings, in *policy.Input, real bool) (s Shadow) {
	s = Shadow{Evaluated: true, real: real}
	failed := func(kind string) {
		s.Allow = false
		e.logger.LogAttrs(ctx, slog.LevelWarn, "the shadow policy failed; the decision stands",
			slog.String("route-id", set.route.ID), slog.String("error", kind))
	}
	defer func() {
		if p := recover(); p != nil {
			failed(fmt.Sprintf("panic of type %T", p))
		}
	}()
	var res policy.Result
	set.shadow.Evaluate(in, &res)
	if res.Err != nil {
		failed(res.Err.Error())
		return s
	}
	s.Allow = policy.Choose(&res, policy.Client{}).Outcome == policy.Allow
	return s
}

// ShadowCounts is what the postern_policy_shadow_* metrics count of one route.
type ShadowCounts struct {
	Evaluations uint64 `json:"evaluations"`
	WouldAllow  uint64 `json:"would_allow"`
	WouldDeny   uint64 `json:"would_deny"`
}

// maxLogLine bounds a line of the authorize log, in bytes.
const maxLogLine = 4 << 20

// ReplayShadow counts again, from lines of the authorize log, what the shadow
// metrics counted, by route id. Other lines are passed over; a line that is
// cut off is too. The error is that of reading.
func ReplayShadow(from io.Reader) (map[string]ShadowCounts, error) {
	counts := map[string]ShadowCounts{}
	lines := bufio.NewScanner(from)
	lines.Buffer(make([]byte, 0, 64<<10), maxLogLine)
	for lines.Scan() {
		var l struct {
			Message     string   `json:"message"`
			Route       string   `json:"route-id"`
			Allow       bool     `json:"allow"`
			Deny        bool     `json:"deny"`
			AllowTrue   []string `json:"allow-why-true"`
			AllowFalse  []string `json:"allow-why-false"`
			DenyTrue    []string `json:"deny-why-true"`
			DenyFalse   []string `json:"deny-why-false"`
			ShadowAllow *bool    `json:"shadow-allow"`
		}
		if !strings.Contains(lines.Text(), `"shadow-allow"`) || json.Unmarshal(lines.Bytes(), &l) != nil ||
			l.Message != "authorize check" || l.ShadowAllow == nil {
			continue
		}
		var res policy.Result
		res.Allow.Value, res.Deny.Value = l.Allow, l.Deny
		for _, r := range append(l.AllowTrue, l.AllowFalse...) {
			res.Allow.Reasons = res.Allow.Reasons.Add(r)
		}
		for _, r := range append(l.DenyTrue, l.DenyFalse...) {
			res.Deny.Reasons = res.Deny.Reasons.Add(r)
		}
		s := Shadow{Evaluated: true, Allow: *l.ShadowAllow, real: policy.Choose(&res, policy.Client{}).Outcome == policy.Allow}
		c := counts[l.Route]
		c.Evaluations++
		if s.WouldAllow() {
			c.WouldAllow++
		}
		if s.WouldDeny() {
			c.WouldDeny++
		}
		counts[l.Route] = c
	}
	return counts, lines.Err()
}
