package rego

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// Functions of the standard library that leave the process or tell of it.
// Others that do so cannot exist: files are reached by none.
var (
	networkFunctions = []string{"http.send", "net.lookup_ip_addr"}
	runtimeFunctions = []string{"opa.runtime"}
)

// capabilities are the words of the language that scripts may use.
func capabilities(v ast.RegoVersion, o Options) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion(ast.CapabilitiesRegoVersion(v))
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return !o.Network && slices.Contains(networkFunctions, b.Name) ||
			!o.Runtime && slices.Contains(runtimeFunctions, b.Name)
	})
	if !o.Network {
		c.AllowNet = []string{} // remote JSON and GraphQL schemas
	}
	return c
}

// Bounds on single values, so that no chain of functions can grow without end:
// the library looks at the clock only between functions.
const (
	maxText    = 1 << 20 // bytes of a string
	maxEntries = 1 << 20 // items of an array, set or object
	maxDigits  = 1 << 13 // characters of a number
	maxPower   = 4096    // exponent of a number, bits of a shift
)

var guardOnce sync.Once

// guardBuiltins puts the bounds around every function of the library. The
// registry is the library's own and belongs to the process; nothing else in
// the process evaluates Rego.
func guardBuiltins() {
	for _, b := range ast.Builtins {
		f := topdown.GetBuiltin(b.Name)
		if f == nil {
			continue
		}
		before := growth[b.Name]
		topdown.RegisterBuiltinFunc(b.Name, func(c topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
			if err := numbersSmall(args); err != nil {
				return tooMuch(b.Name, err)
			}
			if before != nil {
				if n := before(args); n > maxText {
					return tooMuch(b.Name, errTooLarge)
				}
			}
			return f(c, args, func(t *ast.Term) error {
				if t != nil {
					if err := small(t.Value); err != nil {
						return tooMuch(b.Name, err)
					}
				}
				return iter(t)
			})
		})
	}
}

var errTooLarge = errors.New("its result is too large for a policy; make it smaller")

// tooMuch ends the evaluation; an ordinary error would only be undefined.
func tooMuch(name string, err error) error {
	return topdown.Halt{Err: fmt.Errorf("%s: %w", name, err)}
}

func small(v ast.Value) error {
	size, limit := 0, maxEntries
	switch v := v.(type) {
	case ast.String:
		size, limit = len(v), maxText
	case ast.Number:
		size, limit = len(v), maxDigits
	case *ast.Array:
		size = v.Len()
	case ast.Object:
		size = v.Len()
	case ast.Set:
		size = v.Len()
	}
	if size > limit {
		return errTooLarge
	}
	return nil
}

// numbersSmall refuses numbers such as 1e1000000000, which are short to write
// and fill the memory when worked with.
func numbersSmall(args []*ast.Term) error {
	for _, t := range args {
		n, ok := t.Value.(ast.Number)
		if !ok {
			continue
		}
		at := strings.IndexAny(string(n), "eE")
		if at < 0 && len(n) <= maxDigits {
			continue
		}
		if at >= 0 {
			if power, err := strconv.Atoi(string(n)[at+1:]); err == nil && power <= maxPower && power >= -maxPower {
				continue
			}
		}
		return errors.New("a number is too large for a policy")
	}
	return nil
}

// growth tells, for functions whose result can be much larger than what they
// are given, how large it can become.
var growth = map[string]func([]*ast.Term) int{
	"bits.lsh": func(a []*ast.Term) int {
		n, ok := a[1].Value.(ast.Number)
		if !ok {
			return 0
		}
		if bits, err := strconv.Atoi(string(n)); err != nil || bits > maxPower {
			return maxText + 1
		}
		return 0
	},
	"concat": func(a []*ast.Term) int {
		between := textLen(a[0])
		n := 0
		each := func(t *ast.Term) { n += textLen(t) + between }
		switch v := a[1].Value.(type) {
		case *ast.Array:
			v.Foreach(each)
		case ast.Set:
			v.Foreach(each)
		}
		return n
	},
	"replace": func(a []*ast.Term) int {
		s, _ := a[0].Value.(ast.String)
		old, _ := a[1].Value.(ast.String)
		return len(s) + strings.Count(string(s), string(old))*textLen(a[2])
	},
	"strings.replace_n": func(a []*ast.Term) int {
		longest := 1
		if o, ok := a[0].Value.(ast.Object); ok {
			o.Foreach(func(_, v *ast.Term) { longest = max(longest, textLen(v)) })
		}
		return textLen(a[1]) * longest
	},
	"regex.replace":             func(a []*ast.Term) int { return (textLen(a[0]) + 1) * max(textLen(a[2]), 1) },
	"strings.render_template":   templateGrowth,
	"sprintf":                   formatGrowth,
	"json.marshal":              func(a []*ast.Term) int { return spread(a[0].Value, new(int)) },
	"json.marshal_with_options": func(a []*ast.Term) int { return spread(a[0].Value, new(int)) },
	"yaml.marshal":              func(a []*ast.Term) int { return spread(a[0].Value, new(int)) },
}

func textLen(t *ast.Term) int {
	s, _ := t.Value.(ast.String)
	return len(s)
}

// formatGrowth bounds sprintf: widths are short, and every verb may print the
// largest argument.
func formatGrowth(a []*ast.Term) int {
	format, _ := a[0].Value.(ast.String)
	digits := 0
	for i := range len(format) {
		switch c := format[i]; {
		case c == '*':
			return maxText + 1
		case c >= '0' && c <= '9':
			if digits++; digits > 3 && strings.Contains(string(format), "%") {
				return maxText + 1
			}
		default:
			digits = 0
		}
	}
	largest := 0
	if args, ok := a[1].Value.(*ast.Array); ok {
		args.Foreach(func(t *ast.Term) { largest = max(largest, spread(t.Value, new(int))) })
	}
	return len(format) + strings.Count(string(format), "%")*max(largest, 1)
}

func templateGrowth(a []*ast.Term) int {
	return (textLen(a[0])/4 + 1) * max(spread(a[1].Value, new(int)), 1)
}

// spread is the length of a value written out, as far as it matters. Values
// may share parts, so that writing one out can take far more than it holds.
func spread(v ast.Value, n *int) int {
	if *n > maxText {
		return *n
	}
	each := func(t *ast.Term) { spread(t.Value, n) }
	switch v := v.(type) {
	case ast.String:
		*n += len(v)
	case ast.Number:
		*n += len(v)
	case *ast.Array:
		for i := 0; i < v.Len() && *n <= maxText; i++ {
			each(v.Elem(i))
		}
	case ast.Set:
		for _, t := range v.Slice() {
			each(t)
		}
	case ast.Object:
		for _, k := range v.Keys() {
			each(k)
			each(v.Get(k))
		}
	}
	*n += 2
	return *n
}
