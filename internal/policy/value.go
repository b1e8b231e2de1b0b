package policy

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// operand is a value of the policy, ready to be compared with values of the
// request. Types count: the number 7 is not the string "7" (§6).
type operand struct {
	kind   operandKind
	text   string
	truth  bool
	number number
	list   []operand
	object map[string]operand
}

type operandKind uint8

const (
	kindNull operandKind = iota
	kindString
	kindBool
	kindNumber
	kindList
	kindObject
)

// newOperand turns the result of Plain into an operand.
func newOperand(v any) operand {
	switch v := v.(type) {
	case nil:
		return operand{kind: kindNull}
	case string:
		return operand{kind: kindString, text: v}
	case bool:
		return operand{kind: kindBool, truth: v}
	case []any:
		o := operand{kind: kindList, list: make([]operand, len(v))}
		for i, item := range v {
			o.list[i] = newOperand(item)
		}
		return o
	case map[string]any:
		o := operand{kind: kindObject, object: make(map[string]operand, len(v))}
		for name, item := range v {
			o.object[name] = newOperand(item)
		}
		return o
	}
	n, _ := numberOf(v)
	return operand{kind: kindNumber, number: n}
}

// equals compares with a value as JSON decodes it.
func (o *operand) equals(v any) bool {
	switch v := v.(type) {
	case nil:
		return o.kind == kindNull
	case string:
		return o.kind == kindString && o.text == v
	case bool:
		return o.kind == kindBool && o.truth == v
	case []any:
		if o.kind != kindList || len(o.list) != len(v) {
			return false
		}
		for i := range v {
			if !o.list[i].equals(v[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		if o.kind != kindObject || len(o.object) != len(v) {
			return false
		}
		for name, item := range v {
			if mine, ok := o.object[name]; !ok || !mine.equals(item) {
				return false
			}
		}
		return true
	case float64:
		return o.kind == kindNumber && o.number.exact && o.number.float == v
	}
	if o.kind != kindNumber {
		return false
	}
	n, ok := numberOf(v)
	return ok && o.number.compare(n) == 0
}

// same tells whether two operands are one value.
func (o *operand) same(p *operand) bool {
	if o.kind != p.kind {
		return false
	}
	switch o.kind {
	case kindString:
		return o.text == p.text
	case kindBool:
		return o.truth == p.truth
	case kindNumber:
		return o.number.compare(p.number) == 0
	case kindList:
		if len(o.list) != len(p.list) {
			return false
		}
		for i := range o.list {
			if !o.list[i].same(&p.list[i]) {
				return false
			}
		}
	case kindObject:
		if len(o.object) != len(p.object) {
			return false
		}
		for name, item := range o.object {
			if other, ok := p.object[name]; !ok || !item.same(&other) {
				return false
			}
		}
	}
	return true
}

// number is an exact decimal: sign * 0.DIGITS * 10^exponent, DIGITS without
// zeros at either end; zero has no digits. So 7.0 equals 7, and integers
// beyond 2^53 keep their last digits.
type number struct {
	negative bool
	digits   string
	exponent int
	float    float64
	exact    bool // float is this number as JSON would decode it
}

func numberOf(v any) (number, bool) {
	switch v := v.(type) {
	case int:
		return parseNumber(strconv.Itoa(v))
	case int64:
		return parseNumber(strconv.FormatInt(v, 10))
	case uint64:
		return parseNumber(strconv.FormatUint(v, 10))
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return number{}, false
		}
		return parseNumber(strconv.FormatFloat(v, 'e', -1, 64))
	case json.Number:
		return parseNumber(v.String())
	}
	return number{}, false
}

// parseNumber reads a JSON number and nothing else.
func parseNumber(s string) (n number, ok bool) {
	if len(s) > 400 {
		return n, false // no number that a policy compares is that long
	}
	rest := s
	if strings.HasPrefix(rest, "-") {
		n.negative, rest = true, rest[1:]
	}
	whole := leadingDigits(rest)
	if whole == "" || len(whole) > 1 && whole[0] == '0' {
		return n, false
	}
	rest = rest[len(whole):]
	fraction := ""
	if strings.HasPrefix(rest, ".") {
		fraction = leadingDigits(rest[1:])
		if fraction == "" {
			return n, false
		}
		rest = rest[1+len(fraction):]
	}
	if rest != "" {
		if rest[0] != 'e' && rest[0] != 'E' {
			return n, false
		}
		power := rest[1:]
		unsigned := power
		if power != "" && (power[0] == '+' || power[0] == '-') {
			unsigned = power[1:]
		}
		if leadingDigits(unsigned) != unsigned || unsigned == "" {
			return n, false
		}
		e, err := strconv.Atoi(power)
		if err != nil || e > 1<<30 || e < -1<<30 {
			return n, false
		}
		n.exponent = e
	}
	n.exponent += len(whole)
	n.digits = whole + fraction
	trimmed := strings.TrimLeft(n.digits, "0")
	n.exponent -= len(n.digits) - len(trimmed)
	n.digits = strings.TrimRight(trimmed, "0")
	if n.digits == "" {
		n.negative, n.exponent, n.exact = false, 0, true
		return n, true
	}
	if f, err := strconv.ParseFloat(s, 64); err == nil {
		n.float = f
		back := strconv.FormatFloat(f, 'e', -1, 64)
		mantissa, power, _ := strings.Cut(strings.TrimPrefix(back, "-"), "e")
		e, _ := strconv.Atoi(power)
		n.exact = strings.TrimRight(strings.Replace(mantissa, ".", "", 1), "0") == n.digits && e+1 == n.exponent
	}
	return n, true
}

func leadingDigits(s string) string {
	i := 0
	for i < len(s) && s[i] >= '0' && s[i] <= '9' {
		i++
	}
	return s[:i]
}

// compare gives -1, 0 or 1.
func (n number) compare(m number) int {
	sign := func(x number) int {
		switch {
		case x.digits == "":
			return 0
		case x.negative:
			return -1
		}
		return 1
	}
	s := sign(n)
	if t := sign(m); s != t {
		if s < t {
			return -1
		}
		return 1
	}
	switch {
	case s == 0:
		return 0
	case n.exponent > m.exponent:
		return s
	case n.exponent < m.exponent:
		return -s
	}
	return s * strings.Compare(n.digits, m.digits)
}

// text gives the string a scalar stands for; ok is false for other types.
func text(n *yaml.Node) (s string, ok bool) {
	if n.Kind != yaml.ScalarNode {
		return "", false
	}
	v, err := scalar(n)
	if err != nil {
		return "", false
	}
	s, ok = v.(string)
	return s, ok
}
