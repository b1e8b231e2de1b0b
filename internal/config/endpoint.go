package config

import (
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"postern/internal/certs"
	"postern/internal/upstream"
)

// endpoints decodes to: a URL or a list, nested as deep as one likes, each
// with a weight behind the first comma (configuration.md §3.2).
func (d *decoder) endpoints(n *yaml.Node, v reflect.Value, path string) {
	var out []upstream.Endpoint
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if isNull(n) {
			return
		}
		switch n.Kind {
		case yaml.SequenceNode:
			for _, c := range n.Content {
				walk(c)
			}
			return
		case yaml.MappingNode:
			d.fail(n, path, "a URL is wanted, not a mapping", "write to: http://host:port")
			return
		}
		at := indexed(path, len(out))
		d.places[at] = place{d.file, n.Line, n.Column}
		e, err := parseEndpoint(n.Value)
		if err != nil {
			d.fail(n, path, err.Error(), "write http://host:port, with ,weight behind it if endpoints are weighted")
			e = upstream.Endpoint{URL: &url.URL{}} // keeps the count
		}
		out = append(out, e)
	}
	walk(n)
	v.Set(reflect.ValueOf(out))
}

// endpointSchemes are the schemes of to; http+unix is another name of unix.
var endpointSchemes = map[string]string{
	"http": "http", "https": "https", "h2c": "h2c", "h3": "h3", "tcp": "tcp", "udp": "udp", "ssh": "ssh",
	"unix": "unix", "http+unix": "unix", "https+unix": "https+unix",
}

func parseEndpoint(s string) (e upstream.Endpoint, err error) {
	raw, weight, weighted := strings.Cut(strings.TrimSpace(s), ",")
	if weighted {
		w, err := strconv.ParseUint(strings.TrimSpace(weight), 10, 32)
		if err != nil {
			return e, fmt.Errorf("the weight %s is not a whole number", shorten(weight))
		}
		if w == 0 {
			return e, fmt.Errorf("the weight is 0; weights start at 1")
		}
		e.Weight = uint32(w)
	}
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil {
		return e, fmt.Errorf("%s is not a URL", shorten(raw))
	}
	if u.Scheme == "" || !strings.Contains(raw, "://") {
		return e, fmt.Errorf("%s has no scheme", shorten(raw))
	}
	scheme, ok := endpointSchemes[strings.ToLower(u.Scheme)]
	if !ok {
		return e, fmt.Errorf("the scheme of %s is none of http, https, h2c, h3, tcp, udp, ssh, unix, https+unix", shorten(raw))
	}
	u.Scheme = scheme
	switch scheme {
	case "unix", "https+unix":
		if u.Host != "" {
			return e, fmt.Errorf("%s has a host; a socket is written %s:///path", shorten(raw), scheme)
		}
		if u.Path == "" || u.Path == "/" {
			return e, fmt.Errorf("%s names no socket", shorten(raw))
		}
	default:
		if u.Hostname() == "" {
			return e, fmt.Errorf("%s has no host", shorten(raw))
		}
		if port := u.Port(); port != "" {
			if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
				return e, fmt.Errorf("the port of %s is not from 1 to 65535", shorten(raw))
			}
		}
	}
	e.URL = u
	return e, nil
}

// sans decodes match_subject_alt_names: a list of mappings with one entry.
func (d *decoder) sans(n *yaml.Node, v reflect.Value, path string) {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	out := []certs.SANMatcher{}
	for i, item := range items {
		at := indexed(path, i)
		d.places[at] = place{d.file, item.Line, item.Column}
		if item.Kind != yaml.MappingNode || len(item.Content) != 2 || item.Content[1].Kind != yaml.ScalarNode {
			d.fail(item, at, "an entry is one kind of name and its pattern, not "+kindName(item), "write - dns: 'pattern', and a further entry for a further pattern")
			continue
		}
		kind := strings.ToLower(item.Content[0].Value)
		switch kind {
		case "dns", "email", "ip_address", "uri", "user_principal_name":
		default:
			d.fail(item, at, shorten(item.Content[0].Value)+" is not a kind of alternative name", "use dns, email, ip_address, uri or user_principal_name")
			continue
		}
		pattern := item.Content[1].Value
		if err := checkRegex(pattern); err != nil {
			d.fail(item.Content[1], at, err.Error(), "use RE2 syntax")
			continue
		}
		out = append(out, certs.SANMatcher{Type: kind, Pattern: pattern})
	}
	v.Set(reflect.ValueOf(out))
}
