package portal

import (
	"strings"

	"postern/internal/pages"
	"postern/internal/policy"
	"postern/internal/route"
	"postern/internal/session"
)

// hints are the criteria that the selection understands.
var hints = map[string]bool{
	"accept": true, "authenticated_user": true, "domain": true, "email": true, "groups": true, "user": true,
}

// selected lists the routes that c can probably open. It is a hint and no
// authorization: it reads only allow rules, skips `nor`, `not` and an `and` of
// several criteria, and knows a handful of criteria (wire-contract.md §2). A
// deny rule, the hour or the network may still refuse.
func (p *Portal) selected(c *session.Caller) []*route.Route {
	in := &policy.Input{
		Now: p.o.Now(), HasSession: true, SessionID: c.ID, UserID: c.UserID(), Email: c.Email(),
		HasDirectory: c.Directory != nil, Header: func(string) string { return "" },
	}
	if c.Directory != nil {
		in.Groups = c.Directory.GroupIDs
	}
	var out []*route.Route
	for _, rt := range p.o.Routes {
		if admits(rt, in) {
			out = append(out, rt)
		}
	}
	return out
}

func admits(rt *route.Route, in *policy.Input) bool {
	for _, attached := range rt.Policies {
		if attached.Policy == nil {
			continue
		}
		rules := attached.Policy.Rules()
		for i := range rules {
			rule := &rules[i]
			if rule.Action != "allow" || (rule.Operator != "or" && (rule.Operator != "and" || len(rule.Criteria) != 1)) {
				continue
			}
			for j := range rule.Criteria {
				use := &rule.Criteria[j]
				if use.Criterion != nil && hints[use.Criterion.Name] && use.Holds(in) {
					return true
				}
			}
		}
	}
	return false
}

// displayName is the route's name, else its public address.
func displayName(rt *route.Route) string {
	if rt.Name != "" {
		return rt.Name
	}
	return rt.From.Authority()
}

// apiType is the type in the portal's JSON, where SSH is not known.
func apiType(rt *route.Route) string {
	switch {
	case rt.MCPServer:
		return "mcp"
	case rt.From.Protocol == route.TCP, rt.From.Protocol == route.UDP:
		return rt.From.Protocol.String()
	}
	return "http"
}

// connectCommand is the command that opens a tunnel on a terminal, or "". The
// bastion form is given as a whole, as the client resolves it.
func connectCommand(program string, rt *route.Route) string {
	if rt.From.Protocol != route.TCP && rt.From.Protocol != route.UDP {
		return ""
	}
	target := address(rt)
	if len(rt.From.Targets) > 0 {
		target = rt.From.Raw
	}
	return program + " " + rt.From.Protocol.String() + " " + target
}

// address is host:port for a tunnel, whose port is never left out, and the
// host as a browser shows it otherwise.
func address(rt *route.Route) string {
	a := rt.From.Authority()
	if rt.From.Port == 0 && (rt.From.Protocol == route.TCP || rt.From.Protocol == route.UDP) {
		a += ":443"
	}
	return a
}

// appOf makes a card of a route. Routes that nobody can open from a page are
// left out: a host with "*" names no address, and SSH and MCP servers are not
// for browsers.
func appOf(rt *route.Route) (pages.App, bool) {
	app := pages.App{
		Name: displayName(rt), Type: apiType(rt), Address: address(rt),
		Description: rt.Description, LogoURL: rt.LogoURL, Command: connectCommand("postern", rt),
	}
	switch {
	case rt.From.Wildcard() || rt.From.Protocol == route.SSH || rt.MCPServer:
		return app, false
	case app.Command != "":
		return app, true
	}
	path := "/"
	switch {
	case rt.Regex != "":
	case strings.HasPrefix(rt.Path, "/"):
		path = rt.Path
	case strings.HasPrefix(rt.Prefix, "/"):
		path = rt.Prefix
	}
	app.URL = rt.From.Scheme + "://" + rt.From.Authority() + path
	if path != "/" {
		app.Address += path
	}
	return app, true
}
