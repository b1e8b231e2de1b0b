package config

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// The coercions of configuration.md §1.3: what a scalar in a document or an
// environment variable means for a key of a given type.

// isNull reports an absent value: null, ~ or nothing at all.
func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// kindName says what a node is, for messages.
func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!bool":
		return "a switch"
	case "!!int", "!!float":
		return "a number"
	case "!!null":
		return "nothing"
	case "!!timestamp":
		return "a date"
	}
	return "text"
}

// toString reads text. Numbers, switches and dates are taken as written.
func toString(n *yaml.Node) (string, error) {
	if n.Kind != yaml.ScalarNode {
		return "", fmt.Errorf("text is wanted, not %s", kindName(n))
	}
	if isNull(n) {
		return "", nil
	}
	return n.Value, nil
}

// toBool reads a switch: true and false, the forms t T TRUE True (and the
// f-forms) and the numbers 1 and 0, quoted or not.
func toBool(n *yaml.Node, strict bool) (bool, error) {
	if n.Kind != yaml.ScalarNode {
		return false, fmt.Errorf("true or false is wanted, not %s", kindName(n))
	}
	if strict && n.ShortTag() != "!!bool" {
		return false, fmt.Errorf("true or false is wanted here without quotes, not %s", shorten(n.Value))
	}
	switch n.ShortTag() {
	case "!!bool", "!!str", "!!int":
		if n.Value == "" {
			return false, nil
		}
		if v, err := strconv.ParseBool(n.Value); err == nil {
			return v, nil
		}
	}
	return false, fmt.Errorf("%s is not true or false", shorten(n.Value))
}

// toInt reads a whole number of at most bits bits; unsigned ones may not be
// negative.
func toInt(n *yaml.Node, bits int, unsigned, strict bool) (int64, uint64, error) {
	fail := func() (int64, uint64, error) {
		if n.Kind != yaml.ScalarNode {
			return 0, 0, fmt.Errorf("a number is wanted, not %s", kindName(n))
		}
		return 0, 0, fmt.Errorf("%s is not a whole number", shorten(n.Value))
	}
	if n.Kind != yaml.ScalarNode {
		return fail()
	}
	tag := n.ShortTag()
	if strict && tag == "!!str" {
		return 0, 0, fmt.Errorf("a number is wanted here without quotes, not %s", shorten(n.Value))
	}
	text := n.Value
	switch tag {
	case "!!int":
	case "!!str":
		if text == "" {
			return 0, 0, nil
		}
	case "!!float": // 1e3 and 5.0 are whole numbers
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return fail()
		}
		text = strconv.FormatInt(int64(f), 10)
	default:
		return fail()
	}
	if unsigned {
		v, err := strconv.ParseUint(text, 0, bits)
		if err != nil {
			if s, errSigned := strconv.ParseInt(text, 0, 64); errSigned == nil && s < 0 {
				return 0, 0, fmt.Errorf("%s is negative; a number from 0 is wanted", text)
			}
			return rangeError(text, err, bits, true, fail)
		}
		return 0, v, nil
	}
	v, err := strconv.ParseInt(text, 0, bits)
	if err != nil {
		return rangeError(text, err, bits, false, fail)
	}
	return v, 0, nil
}

func rangeError(text string, err error, bits int, unsigned bool, fail func() (int64, uint64, error)) (int64, uint64, error) {
	if ne, ok := err.(*strconv.NumError); ok && ne.Err == strconv.ErrRange {
		if unsigned {
			return 0, 0, fmt.Errorf("%s is too large; the largest is %d", shorten(text), uint64(1)<<(bits-1)-1+uint64(1)<<(bits-1))
		}
		return 0, 0, fmt.Errorf("%s is out of range; the largest is %d", shorten(text), int64(1)<<(bits-1)-1)
	}
	return fail()
}

func toFloat(n *yaml.Node) (float64, error) {
	if n.Kind == yaml.ScalarNode {
		switch n.ShortTag() {
		case "!!int", "!!float", "!!str":
			if v, err := strconv.ParseFloat(n.Value, 64); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				return v, nil
			}
		}
		return 0, fmt.Errorf("%s is not a number", shorten(n.Value))
	}
	return 0, fmt.Errorf("a number is wanted, not %s", kindName(n))
}

// toDuration reads a Go duration. A bare whole number is nanoseconds, as in
// the specification; bare tells so that the operator can be warned.
func toDuration(n *yaml.Node) (d time.Duration, bare bool, err error) {
	if n.Kind != yaml.ScalarNode {
		return 0, false, fmt.Errorf("a duration such as 30s is wanted, not %s", kindName(n))
	}
	switch n.ShortTag() {
	case "!!int":
		v, err := strconv.ParseInt(n.Value, 0, 64)
		if err != nil {
			return 0, false, fmt.Errorf("%s is not a duration such as 30s or 1h5m", shorten(n.Value))
		}
		d, bare = time.Duration(v), v != 0
	case "!!str":
		if d, err = time.ParseDuration(n.Value); err != nil {
			return 0, false, fmt.Errorf("%s is not a duration such as 30s or 1h5m", shorten(n.Value))
		}
	default:
		return 0, false, fmt.Errorf("%s is not a duration such as 30s or 1h5m", shorten(n.Value))
	}
	if d < 0 {
		return 0, false, fmt.Errorf("%s is negative; a duration from 0 is wanted", shorten(n.Value))
	}
	return d, bare, nil
}

// toProtoDuration reads the JSON form of a protobuf duration: seconds, with
// up to nine decimals, and an s.
func toProtoDuration(n *yaml.Node) (time.Duration, error) {
	wrong := fmt.Errorf("%s is not a duration in seconds such as \"5s\" or \"0.25s\"", shorten(n.Value))
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		if n.Kind != yaml.ScalarNode {
			return 0, fmt.Errorf("a duration in seconds such as \"5s\" is wanted, not %s", kindName(n))
		}
		return 0, wrong
	}
	digits, ok := strings.CutSuffix(n.Value, "s")
	if !ok || strings.Trim(strings.Replace(digits, ".", "", 1), "0123456789") != "" {
		return 0, wrong
	}
	if _, decimals, _ := strings.Cut(digits, "."); len(decimals) > 9 {
		return 0, wrong
	}
	d, err := time.ParseDuration(n.Value)
	if err != nil {
		return 0, wrong
	}
	return d, nil
}

// toEnum finds the permitted word that is meant: any case, with or without the
// prefix its constants share, or only its last part.
func (d *declared) toEnum(value string) (string, bool) {
	if d.form == "exact" {
		for _, w := range d.enum {
			if w == value {
				return w, true
			}
		}
		return "", false
	}
	if value == "" {
		return d.enum[0], true
	}
	folded := strings.ToLower(value)
	tries := []string{folded, strings.TrimPrefix(folded, d.name+"_")}
	if d.prefix != "" {
		tries = append(tries, strings.TrimPrefix(strings.TrimPrefix(folded, d.prefix), "_"))
	}
	for _, try := range tries {
		for _, w := range d.enum {
			if strings.ToLower(w) == try && try != "" {
				return w, true
			}
		}
	}
	for _, w := range d.enum {
		if strings.HasSuffix(strings.ToLower(w), "_"+folded) {
			return w, true
		}
	}
	return "", false
}

// toURL reads a URL. Whether scheme and host are needed is for the check of
// the key.
func toURL(n *yaml.Node) (*url.URL, error) {
	s, err := toString(n)
	if err != nil || s == "" {
		return nil, err
	}
	u, err := url.Parse(strings.TrimSpace(s))
	if err != nil {
		return nil, fmt.Errorf("%s is not a URL", shorten(s))
	}
	return u, nil
}

// toPrefix reads a network (CIDR) or a single address.
func toPrefix(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.Prefix{}, fmt.Errorf("%s is not a network such as 10.0.0.0/8 or an address", shorten(s))
}

// fromBase64 decodes standard padded base64; line ends inside are ignored.
func fromBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s))
	if err != nil {
		return nil, fmt.Errorf("the value is not standard base64 with padding")
	}
	return b, nil
}
