package impact

// ref is a function of atoms: a node of a reduced ordered decision diagram
// (Bryant, 1986). Equal functions are equal refs.
type ref int32

const (
	never  ref = 0
	always ref = 1
)

// maxNodes bounds a diagram. Policies of people stay far below; one made to
// exhaust the memory gets the answer that nothing is known.
const maxNodes = 1 << 18

type node struct {
	level  int32 // index of the atom
	lo, hi ref   // where it is false, where it is true
}

type triple struct{ f, g, h ref }

// diagram holds nodes; the first two stand for never and always.
type diagram struct {
	nodes  []node
	unique map[node]ref
	memo   map[triple]ref
	full   bool // the bound was hit, and answers mean nothing any more
}

func newDiagram() *diagram {
	return &diagram{nodes: make([]node, 2), unique: map[node]ref{}, memo: map[triple]ref{}}
}

// reset forgets all nodes from the n-th on.
func (d *diagram) reset(n int) {
	d.nodes = d.nodes[:n]
	clear(d.memo)
	clear(d.unique)
	for i := 2; i < n; i++ {
		d.unique[d.nodes[i]] = ref(i)
	}
	d.full = false
}

func (d *diagram) make(level int32, lo, hi ref) ref {
	if lo == hi {
		return lo
	}
	n := node{level, lo, hi}
	if r, ok := d.unique[n]; ok {
		return r
	}
	if len(d.nodes) >= maxNodes {
		d.full = true
		return never
	}
	d.nodes = append(d.nodes, n)
	r := ref(len(d.nodes) - 1)
	d.unique[n] = r
	return r
}

const bottom = int32(1) << 30

func (d *diagram) level(f ref) int32 {
	if f <= always {
		return bottom
	}
	return d.nodes[f].level
}

// at gives the two functions that f is where the atom of level is false and true.
func (d *diagram) at(f ref, level int32) (lo, hi ref) {
	if d.level(f) != level {
		return f, f
	}
	return d.nodes[f].lo, d.nodes[f].hi
}

// ite is "g where f, else h".
func (d *diagram) ite(f, g, h ref) ref {
	switch {
	case f == always:
		return g
	case f == never:
		return h
	case g == h:
		return g
	case g == always && h == never:
		return f
	}
	key := triple{f, g, h}
	if r, ok := d.memo[key]; ok {
		return r
	}
	if d.full {
		return never
	}
	top := min(d.level(f), d.level(g), d.level(h))
	f0, f1 := d.at(f, top)
	g0, g1 := d.at(g, top)
	h0, h1 := d.at(h, top)
	r := d.make(top, d.ite(f0, g0, h0), d.ite(f1, g1, h1))
	d.memo[key] = r
	return r
}

func (d *diagram) not(f ref) ref      { return d.ite(f, never, always) }
func (d *diagram) and(f, g ref) ref   { return d.ite(f, g, never) }
func (d *diagram) or(f, g ref) ref    { return d.ite(f, always, g) }
func (d *diagram) but(f, g ref) ref   { return d.and(f, d.not(g)) }
func (d *diagram) atom(level int) ref { return d.make(int32(level), never, always) }

// value evaluates f where truth tells each atom.
func (d *diagram) value(f ref, truth func(level int) bool) bool {
	for f > always {
		n := d.nodes[f]
		if truth(int(n.level)) {
			f = n.hi
		} else {
			f = n.lo
		}
	}
	return f == always
}

// literal is an atom, or its negation.
type literal struct {
	level int
	not   bool
}

// terms gives conjunctions whose disjunction lies between lower and upper and
// that holds none too many (Minato and Morreale's irredundant sum of products).
// Where upper is wider, it says what cannot happen, and makes terms shorter.
func (d *diagram) terms(lower, upper ref, most int) (list [][]literal, complete bool) {
	left := 64 * most
	var isop func(l, u ref) ([][]literal, ref)
	isop = func(l, u ref) ([][]literal, ref) {
		if left--; left < 0 || l == never {
			return nil, never
		}
		if u == always {
			return [][]literal{{}}, always
		}
		top := min(d.level(l), d.level(u))
		l0, l1 := d.at(l, top)
		u0, u1 := d.at(u, top)
		c0, f0 := isop(d.but(l0, u1), u0)
		c1, f1 := isop(d.but(l1, u0), u1)
		rest, fr := isop(d.or(d.but(l0, f0), d.but(l1, f1)), d.and(u0, u1))
		out := rest
		for _, c := range c0 {
			out = append(out, append([]literal{{int(top), true}}, c...))
		}
		for _, c := range c1 {
			out = append(out, append([]literal{{int(top), false}}, c...))
		}
		return out, d.or(fr, d.make(top, f0, f1))
	}
	list, _ = isop(lower, upper)
	complete = left >= 0 && !d.full
	if len(list) > most {
		list, complete = list[:most], false
	}
	return list, complete
}
