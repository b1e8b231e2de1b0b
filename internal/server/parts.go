package server

import (
	"fmt"
	"reflect"
	"strings"

	"postern/internal/config"
	"postern/internal/proxy"
	"postern/internal/route"
	"postern/internal/upstream"
)

// part is everything that one route of a configuration became. It is
// immutable, but for target, which the generation that serves it fills in.
// Where the next configuration has the very same route, and the premises are
// the same, its generation takes the part over; so a change costs what
// changed, and what stayed is shared (docs/decisions/0006).
type part struct {
	from   *config.Route
	route  *route.Route
	spec   upstream.Spec
	tunnel bool
	target *proxy.Target
	// broken is why the route answers 503; "" for one that serves.
	broken string
	// remarks were made about it; a part with any is made anew, so that they
	// are made again.
	remarks []config.Problem
}

// premises is what parts rest on besides their routes. That the global
// settings which routes look at are the same, the configuration says already
// by giving the same route again.
type premises struct {
	provider   string
	upstream   upstream.Config
	extraRoots string
}

// partsOf are the parts of an earlier generation by their routes.
func (c *compiled) partsOf(previous *compiled) map[*config.Route]*part {
	if previous == nil || !reflect.DeepEqual(c.premises, previous.premises) {
		return nil
	}
	known := make(map[*config.Route]*part, len(previous.parts))
	for _, p := range previous.parts {
		if len(p.remarks) == 0 && p.broken == "" && len(p.from.Authz.SubPolicies) == 0 {
			known[p.from] = p
		}
	}
	return known
}

// makePart makes one route. It is nil where the route cannot even stand in
// for itself; then a problem is fatal.
func (c *compiled) makePart(cfg *config.Config, r *config.Route) (*part, []config.Problem) {
	p := &part{from: r}
	if len(r.Broken) > 0 {
		return c.standIn(p, r.Broken[0])
	}
	rt, problems := c.compileRoute(cfg, r, c.premises.provider)
	if cfg.Control.ConfigBadRoute == "isolate" {
		for i, bad := range problems {
			if bad.Level == config.LevelFatal {
				problems[i] = config.Isolate(bad)
				stood, more := c.standIn(p, bad)
				return stood, append(problems, more...)
			}
		}
	}
	if rt == nil {
		return nil, problems
	}
	p.route, p.remarks = rt, problems
	if p.tunnel = rt.From.Protocol != route.HTTP; !p.tunnel {
		p.spec = upstreamSpec(cfg, r, rt.ClusterName).Identified()
	}
	return p, problems
}

// standIn gives a broken route its place: where its matchers are readable it
// owns what it would have owned, else its whole host. So nothing that it was
// to serve falls to another route, whose policy may be wider.
func (c *compiled) standIn(p *part, bad config.Problem) (*part, []config.Problem) {
	r := p.from
	p.broken = bad.Message
	// The response makes it another route than all others.
	s := route.Spec{
		From: r.Match.From, Prefix: r.Match.Prefix, Path: r.Match.Path, Regex: r.Match.Regex,
		DownstreamServerName: r.Match.TLSDownstreamServerName, Name: r.Match.Name, Response: "broken " + r.Path(),
	}
	whole := s
	whole.Prefix, whole.Path, whole.Regex = "", "", ""
	unnamed := whole
	unnamed.DownstreamServerName = ""
	host := unnamed
	host.From = hostOnly(s.From)
	for _, try := range []route.Spec{s, whole, unnamed, host} {
		if rt, err := route.New(try); err == nil {
			p.route, p.tunnel = rt, rt.From.Protocol != route.HTTP
			return p, nil
		}
	}
	// It cannot be isolated: what it was to judge would fall to others.
	return nil, []config.Problem{{
		File: r.File, Line: r.Line, Column: r.Column, Path: r.Path(),
		Message: "the route cannot be isolated, because its from names no host that could answer 503", Hint: "write from: https://host",
	}}
}

// hostOnly finds the host in an address that is malformed otherwise.
func hostOnly(from string) string {
	_, rest, found := strings.Cut(from, "://")
	if !found {
		rest = from
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		rest = rest[:i]
	}
	rest = rest[strings.LastIndexByte(rest, '@')+1:]
	if i := strings.LastIndexByte(rest, ':'); i >= 0 && !strings.HasSuffix(rest, "]") {
		rest = rest[:i]
	}
	return "https://" + rest
}

// place puts the parts in the order of a table, which may have copied routes.
func (c *compiled) place(table *route.Table) {
	for i, rt := range table.Routes() {
		if p := c.parts[i]; p.route != rt {
			moved := *p
			moved.route, moved.target = rt, nil
			c.parts[i] = &moved
		}
	}
}

// breakOff takes a route out of service for a problem found late, and gives
// the problem as it is reported then.
func (c *compiled) breakOff(slot int, bad config.Problem) config.Problem {
	broken := *c.parts[slot]
	if broken.broken != "" {
		return config.Isolate(bad)
	}
	broken.broken, broken.spec, broken.target = bad.Message, upstream.Spec{}, nil
	c.parts[slot] = &broken
	return config.Isolate(bad)
}

// specs are what the upstream pool is built of, by slot.
func (c *compiled) specs() []upstream.Spec {
	specs := make([]upstream.Spec, len(c.parts))
	for i, p := range c.parts {
		specs[i] = p.spec
	}
	return specs
}

// buildPool builds the upstreams. What fails refuses the configuration, or,
// where bad routes are isolated, its routes.
func (s *Server) buildPool(c *compiled, cfg *config.Config, previous *upstream.Pool) (*upstream.Pool, error) {
	for {
		pool, failed := upstream.Build(c.specs(), previous, s.log)
		if len(failed) == 0 {
			return pool, nil
		}
		pool.Close()
		var list problemList
		for _, f := range failed {
			list = append(list, c.problem(f.Slot, f.Err))
		}
		if cfg.Control.ConfigBadRoute != "isolate" {
			return nil, list
		}
		for i, f := range failed {
			s.report([]config.Problem{c.breakOff(f.Slot, list[i])})
		}
	}
}

// targets gives what the door does with each route, by slot.
func (s *Server) targets(c *compiled, cfg *config.Config, pool *upstream.Pool) ([]*proxy.Target, error) {
	claims := claimHeaderNames(cfg)
	out := make([]*proxy.Target, len(c.parts))
	for i, p := range c.parts {
		if p.broken == "" && p.target == nil || p.target != nil && p.target.Upstream != pool.Target(i) {
			o := proxy.TargetOptions{
				Upstream:            pool.Target(i),
				PassIdentityHeaders: cfg.Authz.PassIdentityHeaders != nil && *cfg.Authz.PassIdentityHeaders,
				ClaimHeaders:        claims,
			}
			if to := p.from.Upstream.To; len(to) > 0 {
				o.FirstTo = to[0].URL
			}
			target, err := proxy.NewTarget(p.route, p.from.Proxy, o)
			made := *p
			made.target = target
			c.parts[i], p = &made, &made
			if err != nil {
				bad := c.problem(i, err)
				if cfg.Control.ConfigBadRoute != "isolate" {
					return nil, problemList{bad}
				}
				s.report([]config.Problem{c.breakOff(i, bad)})
				p = c.parts[i]
			}
		}
		if p.broken != "" {
			out[i] = proxy.BrokenTarget(p.route, p.broken)
			continue
		}
		out[i] = p.target
	}
	return out, nil
}

// Isolated is a route that answers 503 because of a mistake in it.
type Isolated struct {
	From    string `json:"from"`
	Path    string `json:"path"`
	Place   string `json:"place"`
	Problem string `json:"problem"`
}

// isolated lists the routes that are out of service.
func (c *compiled) isolated() []Isolated {
	var out []Isolated
	for _, p := range c.parts {
		if r := p.from; p.broken != "" {
			out = append(out, Isolated{From: r.Match.From, Path: r.Path(), Place: fmt.Sprintf("%s:%d:%d", r.File, r.Line, r.Column), Problem: p.broken})
		}
	}
	return out
}
