package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// special decodes the values whose form the Go type does not tell. It reports
// false where the ordinary decoder should go on.
func (d *decoder) special(n *yaml.Node, v reflect.Value, key *declared, path string) bool {
	text := func() (string, bool) {
		s, err := toString(n)
		if err != nil {
			d.fail(n, path, err.Error(), "")
		}
		return s, err == nil
	}
	switch key.form {
	case "node", "cases":
		v.Set(reflect.ValueOf(n))
	case "b64", "b64key":
		s, ok := text()
		if !ok || s == "" {
			return true
		}
		b, err := fromBase64(s)
		if err != nil {
			hint := "encode it with base64 -w0"
			if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") {
				hint = "for the path of a file use " + key.name + "_file"
			} else if strings.Contains(s, "-----BEGIN") {
				hint = "this is PEM as it is: encode it with base64 -w0, or use " + key.name + "_file"
			}
			d.fail(n, path, err.Error(), hint)
			return true
		}
		if key.form == "b64key" && len(b) != 32 {
			d.fail(n, path, fmt.Sprintf("the value holds %d bytes, not 32", len(b)), "make one with: head -c32 /dev/urandom | base64")
			return true
		}
		v.SetBytes(b)
	case "pem":
		if s, ok := text(); ok {
			v.SetBytes([]byte(s)) // checked where the file variant is read
		}
	case "pbduration":
		dur, err := toProtoDuration(n)
		if err != nil {
			d.fail(n, path, err.Error(), "")
			return true
		}
		v.Set(reflect.ValueOf(&dur))
	case "regex":
		s, ok := text()
		if !ok {
			return true
		}
		if _, err := regexp.Compile(s); err != nil {
			d.fail(n, path, "the regular expression is malformed: "+strings.TrimPrefix(err.Error(), "error parsing regexp: "), "use RE2 syntax")
			return true
		}
		v.SetString(s)
	case "color":
		s, ok := text()
		if !ok {
			return true
		}
		if s != "" && !colorForm.MatchString(s) {
			d.fail(n, path, shorten(s)+" is not a colour such as #6F43E7", "quote the value: # starts a comment")
			return true
		}
		v.SetString(s)
	case "services":
		d.services(n, v, key, path)
	case "prefixes":
		var items []string
		d.plain(n, reflect.ValueOf(&items).Elem(), key, path)
		out := make([]netip.Prefix, 0, len(items))
		for i, s := range items {
			p, err := toPrefix(s)
			if err != nil {
				d.bad(indexed(path, i), err.Error(), "write networks in CIDR form")
				continue
			}
			out = append(out, p)
		}
		v.Set(reflect.ValueOf(out))
	case "endpoints":
		d.endpoints(n, v, path)
	case "sans":
		d.sans(n, v, path)
	case "claims":
		return d.claims(n, v, path)
	case "headers":
		return d.headerText(n, v, path)
	case "flags":
		d.flags(n, v, key, path)
	default: // hosts: an ordinary list, checked elsewhere
		return false
	}
	return true
}

var colorForm = regexp.MustCompile(`^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$`)

// allServices are the roles of a process.
var allServices = []string{"authenticate", "authorize", "proxy", "databroker"}

func (d *decoder) services(n *yaml.Node, v reflect.Value, key *declared, path string) {
	var items []string
	d.plain(n, reflect.ValueOf(&items).Elem(), key, path)
	have := map[string]bool{}
	for _, item := range items {
		name := strings.ToLower(strings.TrimSpace(item))
		switch name {
		case "all":
			for _, s := range allServices {
				have[s] = true
			}
		case "cache":
			have["databroker"] = true
		case "authenticate", "authorize", "proxy", "databroker":
			have[name] = true
		default:
			d.fail(n, path, shorten(item)+" is not a service", "use all, or any of authenticate, authorize, proxy, databroker")
			return
		}
	}
	if len(have) == 0 {
		d.fail(n, path, "the list of services is empty", "use all, or any of authenticate, authorize, proxy, databroker")
		return
	}
	var out []string
	for _, s := range allServices {
		if have[s] {
			out = append(out, s)
		}
	}
	v.Set(reflect.ValueOf(out))
}

// claims decodes jwt_claims_headers: a mapping of header to claim, or a list
// of claims for which x-pomerium-claim-<claim> is the header.
func (d *decoder) claims(n *yaml.Node, v reflect.Value, path string) bool {
	n = d.jsonText(n)
	var names []string
	switch {
	case n.Kind == yaml.MappingNode:
		return false
	case n.Kind == yaml.ScalarNode:
		names = strings.FieldsFunc(n.Value, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
	default:
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				if item.Kind == yaml.MappingNode {
					return false // a list of mappings
				}
				d.fail(item, path, "the name of a claim is wanted, not "+kindName(item), "")
				return true
			}
			names = append(names, item.Value)
		}
	}
	out := make(map[string]string, len(names))
	for _, name := range names {
		if name != "" {
			out["x-pomerium-claim-"+name] = name
		}
	}
	v.Set(reflect.ValueOf(out))
	return true
}

// headerText decodes headers written as Name:value,Name2:value2, as the
// variable HEADERS permits; everything else is an ordinary mapping.
func (d *decoder) headerText(n *yaml.Node, v reflect.Value, path string) bool {
	n = d.jsonText(n)
	if n.Kind != yaml.ScalarNode || n.Value == "" || isNull(n) {
		return false
	}
	out := map[string]string{}
	for part := range strings.SplitSeq(n.Value, ",") {
		name, value, ok := strings.Cut(part, ":")
		if !ok {
			d.fail(n, path, shorten(part)+" is not of the form Name:value", "write a JSON object or Name:value,Name2:value2")
			return true
		}
		out[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	v.Set(reflect.ValueOf(out))
	return true
}

// flags merges runtime flags over what is there.
func (d *decoder) flags(n *yaml.Node, v reflect.Value, key *declared, path string) {
	set := map[string]bool{}
	d.mapping(n, reflect.ValueOf(&set).Elem(), key, path)
	merged := map[string]bool{}
	for name, on := range v.Interface().(map[string]bool) {
		merged[name] = on
	}
	for name, on := range set {
		folded := strings.ToLower(name)
		if _, known := flagDefaults[folded]; !known {
			hint := "remove it"
			names := make([]string, 0, len(flagDefaults))
			for f := range flagDefaults {
				names = append(names, f)
			}
			if near := suggest(folded, sorted(names)); near != "" {
				hint = "did you mean " + near + "?"
			}
			d.problem(LevelLogged, KindUnknownKey, path+"."+name, "the runtime flag is unknown and has no effect", hint)
			continue
		}
		merged[folded] = on
	}
	v.Set(reflect.ValueOf(merged))
}

// jsonText reads text that holds a JSON object or list as that, as variables
// of the environment write maps.
func (d *decoder) jsonText(n *yaml.Node) *yaml.Node {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return n
	}
	text := strings.TrimSpace(n.Value)
	if !strings.HasPrefix(text, "{") && !strings.HasPrefix(text, "[") {
		return n
	}
	inner, err := parseJSON([]byte(text))
	if err != nil || inner == nil {
		return n
	}
	move(inner, n.Line, n.Column)
	return inner
}

// move gives a tree the position of the text it was read from.
func move(n *yaml.Node, line, column int) {
	n.Line, n.Column = line, column
	for _, c := range n.Content {
		move(c, line, column)
	}
}

// toAny reads a value of any kind: text, bool, int64, float64, lists and maps.
func toAny(n *yaml.Node) (any, error) {
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := toAny(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, c := range n.Content {
			v, err := toAny(c)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	}
	switch n.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		return toBool(n, false)
	case "!!int":
		if v, err := strconv.ParseInt(n.Value, 0, 64); err == nil {
			return v, nil
		}
	case "!!float":
		if v, err := toFloat(n); err == nil {
			return v, nil
		}
	}
	return n.Value, nil
}
