package server

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"postern/internal/certs"
	"postern/internal/config"
	"postern/internal/policy"
	"postern/internal/policy/impact"
	"postern/internal/policy/policytest"
	"postern/internal/route"
)

// Policies is what decides in a configuration, route by route, for tools that
// ask about it without a server.
type Policies struct {
	Routes []RoutePolicies
	table  *route.Table
}

// RoutePolicies is everything that decides about one route.
type RoutePolicies struct {
	// Label is how people know the route: from, with its path rule.
	Label string
	Name  string
	// Key is the same for the same route in two configurations.
	Key          string
	File         string
	Line, Column int
	Impact       impact.Route
}

// CompilePolicies compiles a configuration and gives its policies. The
// problems are those of compiling. Policy tests are not run: what they would
// refuse can be asked about, too.
func CompilePolicies(cfg *config.Config) (*Policies, []config.Problem) {
	c, problems := compileUntested(cfg, nil)
	if config.Fatal(problems) || c.table == nil {
		return nil, problems
	}
	p := &Policies{table: c.table}
	for _, rt := range c.table.Routes() {
		p.Routes = append(p.Routes, c.policies(rt))
	}
	return p, problems
}

func (c *compiled) policies(rt *route.Route) RoutePolicies {
	r := c.parts[rt.Slot].from
	label := r.Match.From
	switch {
	case rt.Path != "":
		label += rt.Path
	case rt.Prefix != "":
		label += rt.Prefix + "*"
	case rt.Regex != "":
		label += " (regex " + rt.Regex + ")"
	}
	pool := policy.Pool{CertificateRule: c.certRule && rt.From.Protocol != route.SSH, Attached: attachedOf(rt)}
	return RoutePolicies{
		Label: label, Name: rt.Name, Key: label, File: r.File, Line: r.Line, Column: r.Column,
		Impact: impact.Route{Set: policy.NewSet(pool), SSH: rt.From.Protocol == route.SSH, MCP: rt.MCPServer, ClientCAs: c.clientCAs},
	}
}

func attachedOf(rt *route.Route) (list []policy.Attached) {
	for _, a := range rt.Policies {
		list = append(list, policy.Attached{ID: a.ID, Namespace: a.Namespace, Enforced: a.Enforced,
			Explanation: a.Explanation, Remediation: a.Remediation, Policy: a.Policy})
	}
	return list
}

// Find gives the route that serves a URL, such as https://app.example.com/x.
func (p *Policies) Find(address string) (*RoutePolicies, error) {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("%q is not the URL of a route: write https://host/path", address)
	}
	if rp := p.At(u.Host, u.EscapedPath()); rp != nil {
		return rp, nil
	}
	for i := range p.Routes { // tunnels are not found by host and path
		if strings.TrimSuffix(p.Routes[i].Label, "/") == strings.TrimSuffix(address, "/") {
			return &p.Routes[i], nil
		}
	}
	return nil, fmt.Errorf("no route serves %s: compare the from of the routes", address)
}

// At gives the route for a host and a path, nil if there is none.
func (p *Policies) At(host, path string) *RoutePolicies {
	m := p.table.Find(strings.ToLower(host), cmp.Or(path, "/"))
	if m.Route == nil {
		return nil
	}
	return &p.Routes[m.Route.Slot]
}

// runPolicyTests puts the cases beside routes, and those of policy_tests, to
// the policies just compiled. A case that fails is fatal: what somebody wrote
// down as the meaning of a policy no longer holds.
func (c *compiled) runPolicyTests(cfg *config.Config) (problems []config.Problem) {
	target := func(rt *route.Route) policytest.Target {
		t := policytest.Target{Attached: attachedOf(rt)}
		t.Settings.Route.MCPServer = rt.MCPServer
		t.Settings.Route.ShowErrorDetails = rt.ShowErrorDetails
		if c.clientCAs {
			mode := string(cfg.Certs.DownstreamMTLS.Enforcement)
			if !c.certRule {
				mode = string(certs.EnforcePolicy)
			}
			t.Settings.DownstreamMTLS = &policytest.DownstreamMTLS{Enforcement: mode}
		}
		return t
	}
	unusable := func(file, path string, line, column int, err error) {
		p := config.Problem{File: file, Line: line, Column: column, Path: path, Message: err.Error()}
		var at policy.Problem
		if errors.As(err, &at) {
			p.Line, p.Column, p.Message = at.Line, at.Column, at.Message
		}
		problems = append(problems, p)
	}
	run := func(d *policytest.Document, path string) {
		for i, o := range d.Run(policytest.Options{}) {
			if o.Pass {
				continue
			}
			problems = append(problems, config.Problem{
				File: d.File, Line: o.Line, Column: o.Column, Path: fmt.Sprintf("%s[%d]", path, i),
				Message: fmt.Sprintf("the policy test %q fails: %s; got %s", o.Name, strings.Join(o.Problems, "; "), o.Got()),
				Hint:    "correct the policy, or the test if it is wrong",
			})
		}
	}
	for _, rt := range c.table.Routes() {
		r := c.parts[rt.Slot].from
		n := r.Extra.PolicyTests
		if n == nil || c.parts[rt.Slot].broken != "" {
			continue
		}
		before := len(problems)
		path := r.Path() + ".policy_tests"
		d, err := policytest.LoadBeside(r.File, cmp.Or(rt.Name, r.Match.From), n, target(rt))
		if err != nil {
			unusable(r.File, path, n.Line, n.Column, err)
		} else {
			run(d, path)
		}
		if cfg.Control.ConfigBadRoute == "isolate" {
			for i := before; i < len(problems); i++ {
				problems[i] = c.breakOff(rt.Slot, problems[i])
			}
		}
	}
	for i, f := range cfg.Control.PolicyTestTexts {
		path := fmt.Sprintf("policy_tests[%d]", i)
		docs, err := policytest.Load(f.File, f.Text, policytest.Options{})
		if err != nil {
			unusable(f.File, path, 0, 0, err)
			continue
		}
		for _, d := range docs {
			if d.NoPolicy {
				for _, k := range d.Cases {
					u, err := url.Parse(k.Request.URL)
					var rt *route.Route
					if err == nil {
						rt = c.table.Find(strings.ToLower(u.Host), cmp.Or(u.EscapedPath(), "/")).Route
					}
					if rt == nil {
						d.LoadError = fmt.Errorf("no route serves %s", k.Request.URL)
						break
					}
					k.Put(target(rt))
				}
			}
			run(d, path)
		}
	}
	return problems
}
