package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v3"

	"postern/internal/route"
)

// A configuration is made of its global settings and of one routeResult for
// each item of its routes. A result rests on nothing but the text of the item,
// the files that it names and the premises, so that a later configuration may
// take it over where those are the same; what routes say about each other is
// looked at every time. See docs/decisions/0006.

// routeItem is one item of a list of routes as it was read.
type routeItem struct {
	list         string
	index        int
	file         string
	line, column int
	key          itemKey
	// text is what it was read from, where the document was taken apart; node
	// what the parser made of it, if it had to.
	text []byte
	node *yaml.Node
}

// parse reads the text of an item taken apart.
func (it *routeItem) parse() bool {
	if it.node == nil {
		if n := parseItem(textItem{it.text, it.line}); n != nil && n.Line == it.line {
			it.node, it.column = n, n.Column
		}
	}
	return it.node != nil
}

// textKey knows an item by its text.
func textKey(file string, text []byte) (key itemKey) {
	h := sha256.New()
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(file)))
	h.Write([]byte("text"))
	h.Write(size[:])
	h.Write([]byte(file))
	h.Write(text)
	h.Sum(key[:0])
	return key
}

// nodeKey knows an item by its tree, wherever in the document it stands.
func nodeKey(file, list string, n *yaml.Node) (key itemKey) {
	w := keyWriter{hash: sha256.New(), line: n.Line, nodes: maxExpanded, text: maxDocument}
	w.put("node")
	w.put(file)
	w.put(list)
	if !w.tree(n, 0) {
		return itemKey{}
	}
	w.hash.Sum(key[:0])
	return key
}

// routeResult is all that one item came to.
type routeResult struct {
	key itemKey
	// route is the route where the item stands; ok says that it is one.
	route *Route
	ok    bool
	id    string // of the route, "" where it is not valid
	files []WatchedFile
	// What is wrong, what stops a start, and settings without effect.
	problems, start, narrowing []Problem
	waiting                    []string
	shared                     []sharedPolicy
	// fixed results speak of a place outside of the item.
	fixed bool
}

// clean says that nothing in it tells a place, but the route itself.
func (r *routeResult) clean() bool {
	return r.ok && len(r.problems)+len(r.start)+len(r.narrowing) == 0 && r.route.Extra.UpstreamTunnel == nil
}

// routesBefore are the results of an earlier configuration. Nil has none.
type routesBefore struct {
	results  map[itemKey]*routeResult
	premises *Config
}

func routesOf(earlier *Config) *routesBefore {
	if earlier == nil || earlier.premises == nil {
		return nil
	}
	b := &routesBefore{results: make(map[itemKey]*routeResult, len(earlier.results)), premises: earlier.premises}
	for _, r := range earlier.results {
		if r.key != (itemKey{}) {
			b.results[r.key] = r
		}
	}
	return b
}

func (b *routesBefore) find(key itemKey) *routeResult {
	if b == nil {
		return nil
	}
	return b.results[key]
}

// premises are the global settings that routes may look at, and all that they
// see: what is not copied here does not exist for them.
func (c *Config) routePremises() *Config {
	return &Config{
		Authn: c.Authn, Authz: c.Authz, Proxy: c.Proxy, Upstream: c.Upstream,
		Identity: c.Identity, Features: c.Features, Control: Control{ConfigBadRoute: c.Control.ConfigBadRoute},
	}
}

// makeRoutes makes the routes of all items, in the order in which they are
// tried. Without complete they are only decoded.
func (d *decoder) makeRoutes(files *fileSet, before *routesBefore, complete bool) {
	slices.SortStableFunc(d.items, func(a, b *routeItem) int { return cmp.Compare(listRank(a.list), listRank(b.list)) })
	c := d.cfg
	premises := c.routePremises()
	if before != nil && (!complete || !reflect.DeepEqual(premises, before.premises)) {
		before = nil
	}
	if before != nil {
		premises = before.premises
		for _, r := range before.results {
			for _, s := range r.shared {
				d.shared.known[s.key] = s.policy
			}
		}
	}
	c.Routes = make([]*Route, 0, len(d.items))
	results := make([]*routeResult, 0, len(d.items))
	seen := make(map[string]*Route, len(d.items))
	for _, it := range d.items {
		r := before.take(it, files)
		if r == nil {
			r = d.makeRoute(it, premises, files, complete)
		}
		results = append(results, r)
		d.adopt(r, seen)
	}
	if complete {
		c.premises, c.results = premises, results
	}
	d.items = nil
}

// take gives the result of an item that did not change, nor a file it names.
func (b *routesBefore) take(it *routeItem, files *fileSet) *routeResult {
	r := b.find(it.key)
	if r == nil || r.fixed {
		return nil
	}
	for _, f := range r.files {
		if files.hash(f.Path) != f.Hash {
			return nil
		}
	}
	if r.route.Line == it.line && r.route.Index == it.index {
		return r
	}
	if !r.clean() {
		return nil
	}
	return r.moved(it)
}

// moved is the result of an item that stands elsewhere now.
func (r *routeResult) moved(it *routeItem) *routeResult {
	moved, rt := *r, *r.route
	by := it.line - rt.Line
	rt.Line, rt.Index = it.line, it.index
	rt.Policy = movedTree(rt.Policy, by)
	if rt.Policy != nil {
		rt.Compiled = rt.Compiled.At(rt.Path()+".policy", rt.Policy.Line)
	}
	rt.Extra.ShadowPolicy = movedTree(rt.Extra.ShadowPolicy, by)
	if rt.Extra.ShadowPolicy != nil {
		rt.Shadow = rt.Shadow.At(rt.Path()+".shadow_policy", rt.Extra.ShadowPolicy.Line)
	}
	rt.Extra.PolicyTests = movedTree(rt.Extra.PolicyTests, by)
	moved.route = &rt
	return &moved
}

// makeRoute decodes and checks one item by itself.
func (d *decoder) makeRoute(it *routeItem, premises *Config, files *fileSet, complete bool) *routeResult {
	cfg := *premises
	sub := &decoder{cfg: &cfg, file: it.file, places: map[string]place{}, overruled: map[string]bool{}, budget: maxProblems, shared: d.shared, around: d}
	d.shared.used = nil
	r := &Route{List: it.list, Index: it.index, File: it.file, Line: it.line, Column: it.column, content: new(int)}
	res := &routeResult{key: it.key, route: r}
	if !it.parse() {
		// Only a text that was parsed before is taken apart.
		sub.add(Problem{File: it.file, Line: it.line, Column: 1, Path: r.Path(), Message: "the route cannot be read by itself", Hint: "write it in the ordinary form of YAML"})
	} else if res.ok = sub.route(it.node, r); res.ok && complete {
		named := newFileSet(files.read)
		sub.resolveRouteFiles(r, named)
		res.files = named.list()
		sub.checkRoute(r)
		if !Fatal(sub.problems) {
			if compiled, err := route.New(r.spec()); err != nil {
				sub.bad(r.Path(), err.Error(), "")
			} else {
				res.id = compiled.ID
			}
		}
		cfg.resolveRoute(r)
	}
	res.waiting = sub.noteSet()
	res.start, res.narrowing = cfg.start, Narrowing(&cfg)
	res.problems = sub.problems
	res.shared = d.shared.used
	res.fixed = sub.abroad
	if complete && res.ok && premises.Control.ConfigBadRoute == "isolate" {
		res.isolate() // what is no route at all could not answer 503
	}
	return res
}

// isolate keeps what is wrong with a route to the route.
func (r *routeResult) isolate() {
	var bad []Problem
	for i, p := range r.problems {
		if p.Level == LevelFatal {
			r.problems[i] = isolated(p)
			bad = append(bad, p)
		}
	}
	for _, p := range slices.Concat(r.start, r.narrowing) {
		r.problems = append(r.problems, isolated(p))
		bad = append(bad, p)
	}
	r.start, r.narrowing = nil, nil
	r.route.Broken = bad
}

// isolated is a problem that would refuse the configuration, and does not.
func isolated(p Problem) Problem {
	p.Level, p.Kind = LevelWarning, KindIsolated
	p.Message += " (the route answers 503 until this is corrected)"
	return p
}

// Isolate gives a route that what serves it found wrong the same treatment:
// the problem as it is reported then.
func Isolate(p Problem) Problem { return isolated(p) }

// adopt makes a result part of the configuration.
func (d *decoder) adopt(res *routeResult, seen map[string]*Route) {
	for _, p := range res.problems {
		d.add(p)
	}
	d.cfg.start = append(d.cfg.start, res.start...)
	d.cfg.narrowing = append(d.cfg.narrowing, res.narrowing...)
	d.cfg.waiting = append(d.cfg.waiting, res.waiting...)
	if !res.ok {
		return
	}
	r := res.route
	d.cfg.Routes = append(d.cfg.Routes, r)
	if res.id == "" {
		return
	}
	if other := seen[res.id]; other != nil {
		p := Problem{File: r.File, Line: r.Line, Column: r.Column, Path: r.Path(),
			Message: fmt.Sprintf("it is equal to %s in line %d: from, prefix, path, regex and destination are the same", other.Path(), other.Line),
			Hint:    "remove one of them; different policies do not make two routes"}
		if d.cfg.Control.ConfigBadRoute == "isolate" {
			broken := *r
			broken.Broken = []Problem{p}
			d.cfg.Routes[len(d.cfg.Routes)-1] = &broken
			p = isolated(p)
		}
		d.add(p)
		return
	}
	seen[res.id] = r
}
