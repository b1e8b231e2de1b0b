package policytest

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// The structs below are the format; their tags are all the keys it knows.

type documentFile struct {
	Name          string            `yaml:"name"`
	Note          string            `yaml:"note"`
	Deviation     string            `yaml:"deviation"`
	Policy        raw               `yaml:"policy"`
	PolicyText    *string           `yaml:"policy_text"`
	Rego          *string           `yaml:"rego"`
	Policies      []policyFile      `yaml:"policies"`
	InvalidPolicy *string           `yaml:"invalid_policy"`
	InvalidRego   *string           `yaml:"invalid_rego"`
	ErrorContains []string          `yaml:"error_contains"`
	ErrorAt       string            `yaml:"error_at"`
	Settings      Settings          `yaml:"settings"`
	Certificates  map[string]string `yaml:"certificates"`
	Records       []Record          `yaml:"records"`
	Now           *Moment           `yaml:"now"`
	Defaults      raw               `yaml:"defaults"`
	Cases         []raw             `yaml:"cases"`
}

type policyFile struct {
	ID          string  `yaml:"id"`
	Namespace   string  `yaml:"namespace"`
	Enforced    bool    `yaml:"enforced"`
	Explanation string  `yaml:"explanation"`
	Remediation string  `yaml:"remediation"`
	PPL         raw     `yaml:"ppl"`
	Rego        *string `yaml:"rego"`
}

type caseFile struct {
	Name           string          `yaml:"name"`
	Note           string          `yaml:"note"`
	Deviation      string          `yaml:"deviation"`
	Request        requestFile     `yaml:"request"`
	User           *User           `yaml:"user"`
	Session        *Session        `yaml:"session"`
	ServiceAccount *ServiceAccount `yaml:"service_account"`
	Device         *Device         `yaml:"device"`
	Devices        []Device        `yaml:"devices"`
	MCP            *MCP            `yaml:"mcp"`
	SSH            *SSH            `yaml:"ssh"`
	Records        []Record        `yaml:"records"`
	Now            *Moment         `yaml:"now"`
	Expect         string          `yaml:"expect"`
	Status         int             `yaml:"status"`
	Reasons        []string        `yaml:"reasons"`
	NotReasons     []string        `yaml:"not_reasons"`
	DeviceType     *string         `yaml:"device_type"`
	Remediation    *[]string       `yaml:"remediation"`
}

type requestFile struct {
	Method      *string           `yaml:"method"`
	URL         *string           `yaml:"url"`
	IP          *string           `yaml:"ip"`
	Headers     map[string]string `yaml:"headers"`
	Certificate *struct {
		Name    string `yaml:"name"`
		PEM     string `yaml:"pem"`
		Trusted *bool  `yaml:"trusted"`
	} `yaml:"client_certificate"`
}

// raw keeps a part of the tree for later.
type raw struct{ *yaml.Node }

func (r *raw) UnmarshalYAML(n *yaml.Node) error { r.Node = n; return nil }

// Load reads the documents of a test file. The error names the place of what
// is not of the format.
func Load(file string, text []byte, opts Options) ([]*Document, error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var docs []*Document
	for {
		var n yaml.Node
		err := dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: not YAML: %w", file, err)
		}
		tree, problems := policy.Resolve(file, &n)
		if len(problems) > 0 {
			return nil, problems
		}
		if tree.Kind == yaml.ScalarNode && tree.ShortTag() == "!!null" {
			continue // "---" at the end
		}
		d, err := load(file, tree, opts)
		if err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	if len(docs) == 0 {
		return nil, fmt.Errorf("%s: the file holds no test", file)
	}
	return docs, nil
}

// decode reads a resolved tree into out, refusing unknown keys.
func decode(file string, n *yaml.Node, out any) error {
	if p := unknownKey(file, n, reflect.TypeOf(out).Elem()); p != nil {
		return p
	}
	if err := n.Decode(out); err != nil {
		return fmt.Errorf("%s:%d:%d: %w", file, n.Line, n.Column, err)
	}
	return nil
}

var unmarshaler = reflect.TypeFor[yaml.Unmarshaler]()

// unknownKey finds a key that the type for its object does not name.
func unknownKey(file string, n *yaml.Node, t reflect.Type) error {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		return nil
	}
	switch {
	case t.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		for _, item := range n.Content {
			if err := unknownKey(file, item, t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Map && n.Kind == yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			if err := unknownKey(file, n.Content[i], t.Elem()); err != nil {
				return err
			}
		}
	case t.Kind() == reflect.Struct && n.Kind == yaml.MappingNode:
		types := map[string]reflect.Type{}
		for f := range t.NumField() {
			types[t.Field(f).Tag.Get("yaml")] = t.Field(f).Type
		}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			ft, ok := types[key.Value]
			if !ok {
				var names []string
				for name := range types {
					names = append(names, name)
				}
				slices.Sort(names)
				return policy.Problem{File: file, Line: key.Line, Column: key.Column,
					Message: fmt.Sprintf("unknown key %q; keys here are: %s", key.Value, strings.Join(names, ", "))}
			}
			if err := unknownKey(file, n.Content[i+1], ft); err != nil {
				return err
			}
		}
	}
	return nil
}

func load(file string, n *yaml.Node, opts Options) (*Document, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d:%d: a test must be an object with name, policy and cases", file, n.Line, n.Column)
	}
	var f documentFile
	if err := decode(file, n, &f); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d:%d: test %q: %s", file, n.Line, n.Column, f.Name, fmt.Sprintf(format, args...))
	}
	if f.Name == "" {
		return nil, bad("every test needs a name")
	}
	kinds := 0
	for _, given := range []bool{f.Policy.Node != nil, f.PolicyText != nil, f.Rego != nil, f.Policies != nil, f.InvalidPolicy != nil, f.InvalidRego != nil} {
		if given {
			kinds++
		}
	}
	if kinds > 1 {
		return nil, bad("give one of policy, policy_text, rego, policies, invalid_policy and invalid_rego, not several")
	}
	d := &Document{File: file, Name: f.Name}
	if f.InvalidPolicy != nil || f.InvalidRego != nil {
		if len(f.Cases) > 0 {
			return nil, bad("an invalid policy has no cases; remove them")
		}
		d.Invalid = &Invalid{contains: f.ErrorContains, at: f.ErrorAt}
		if f.InvalidPolicy != nil {
			_, _, d.Invalid.err = policy.Parse("policy.yaml", []byte(*f.InvalidPolicy), policy.Options{})
			return d, nil
		}
		if opts.Rego == nil {
			d.Invalid.err = errNoRego
			d.Invalid.contains = append(d.Invalid.contains, "(custom scripts are needed for this test)")
			return d, nil
		}
		_, d.Invalid.err = opts.Rego("policy.rego", *f.InvalidRego)
		return d, nil
	}
	d.NoPolicy = kinds == 0
	if len(f.Cases) == 0 {
		return nil, bad("no cases; a test that asks nothing always passes, so add some")
	}
	own, attached, err := f.load(file, opts)
	d.LoadError = err
	d.texts = f.texts(file)
	for i, node := range f.Cases {
		c, err := f.loadCase(file, node.Node)
		if err != nil {
			return nil, err
		}
		c.File, c.Document, c.Own, c.Attached = file, f.Name, own, attached
		c.Name = cmp.Or(c.Name, fmt.Sprintf("case %d", i+1))
		d.Cases = append(d.Cases, c)
	}
	return d, nil
}

var errNoRego = errors.New("this build runs no custom scripts (rego)")

// load compiles the policies of a document.
func (f *documentFile) load(file string, opts Options) (own *policy.Policy, attached []policy.Attached, err error) {
	rego := func(name, script string) (*policy.Policy, error) {
		if opts.Rego == nil {
			return nil, errNoRego
		}
		return opts.Rego(name, script)
	}
	switch {
	case f.Policy.Node != nil:
		own, _, err = policy.ParseNode(file, f.Policy.Node, policy.Options{Path: "policy"})
	case f.PolicyText != nil:
		own, _, err = policy.Parse("policy.yaml", []byte(*f.PolicyText), policy.Options{})
	case f.Rego != nil:
		own, err = rego("policy.rego", *f.Rego)
	}
	if err != nil {
		return nil, nil, err
	}
	for i, p := range f.Policies {
		a := policy.Attached{ID: p.ID, Namespace: p.Namespace, Enforced: p.Enforced,
			Explanation: p.Explanation, Remediation: p.Remediation}
		switch {
		case p.PPL.Node != nil && p.Rego == nil:
			a.Policy, _, err = policy.ParseNode(file, p.PPL.Node, policy.Options{Path: fmt.Sprintf("policies[%d].ppl", i)})
		case p.Rego != nil && p.PPL.Node == nil:
			a.Policy, err = rego(cmp.Or(p.ID, "policy")+".rego", *p.Rego)
		default:
			err = fmt.Errorf("policies[%d]: give ppl or rego, one of them", i)
		}
		if err != nil {
			return nil, nil, err
		}
		attached = append(attached, a)
	}
	return own, attached, nil
}

// overlay lays a case over the defaults: each key replaces the default whole,
// request field by field, and null removes.
func overlay(defaults, n *yaml.Node, deep bool) *yaml.Node {
	out := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: n.Line, Column: n.Column}
	lookup := func(m *yaml.Node, key string) *yaml.Node {
		if m != nil && m.Kind == yaml.MappingNode {
			for i := 0; i < len(m.Content); i += 2 {
				if m.Content[i].Value == key {
					return m.Content[i+1]
				}
			}
		}
		return nil
	}
	isNull := func(v *yaml.Node) bool { return v.Kind == yaml.ScalarNode && v.ShortTag() == "!!null" }
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if isNull(value) {
			continue
		}
		if before := lookup(defaults, key.Value); deep && key.Value == "request" && before != nil &&
			before.Kind == yaml.MappingNode && value.Kind == yaml.MappingNode {
			value = overlay(before, value, false)
		} else if deep && key.Value == "request" && value.Kind == yaml.MappingNode {
			value = overlay(nil, value, false)
		}
		out.Content = append(out.Content, key, value)
	}
	if defaults != nil && defaults.Kind == yaml.MappingNode {
		for i := 0; i < len(defaults.Content); i += 2 {
			key, value := defaults.Content[i], defaults.Content[i+1]
			if lookup(n, key.Value) == nil && !isNull(value) {
				out.Content = append(out.Content, key, value)
			}
		}
	}
	return out
}

var outcomes = map[string]policy.Outcome{
	"allow": policy.Allow, "deny": policy.Deny, "login": policy.Login, "device": policy.Enroll, "error": policy.Error,
}

// DefaultNow is the time of a case that names none.
var DefaultNow = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)

func (f *documentFile) loadCase(file string, n *yaml.Node) (*Case, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d:%d: a case must be an object with expect", file, n.Line, n.Column)
	}
	// Unknown keys are looked for before nulls are dropped.
	for _, m := range []*yaml.Node{n, f.Defaults.Node} {
		if m != nil {
			if err := unknownKey(file, m, reflect.TypeFor[caseFile]()); err != nil {
				return nil, err
			}
		}
	}
	var cf caseFile
	if err := decode(file, overlay(f.Defaults.Node, n, true), &cf); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d:%d: case %q: %s", file, n.Line, n.Column, cf.Name, fmt.Sprintf(format, args...))
	}
	outcome, ok := outcomes[cf.Expect]
	if !ok {
		return nil, bad("expect must be allow, deny, login, device or error, not %q", cf.Expect)
	}
	c := &Case{Name: cf.Name, Line: n.Line, Column: n.Column, User: cf.User, Session: cf.Session, ServiceAccount: cf.ServiceAccount,
		MCP: cf.MCP, SSH: cf.SSH, Now: DefaultNow, Settings: f.Settings,
		Records: append(slices.Clip(f.Records), cf.Records...)}
	c.Expect = Expect{Outcome: outcome, Status: cf.Status, Reasons: cf.Reasons, NotReasons: cf.NotReasons, DeviceType: cf.DeviceType}
	if cf.Remediation != nil {
		c.Expect.Remediation, c.Expect.hasRemediation = *cf.Remediation, true
	}
	for _, now := range []*Moment{f.Now, cf.Now} {
		if now != nil {
			c.Now = now.Time
		}
	}
	if cf.Device != nil {
		c.Devices = append(c.Devices, *cf.Device)
	}
	c.Devices = append(c.Devices, cf.Devices...)
	for i := range c.Devices {
		c.Devices[i].Type = cmp.Or(c.Devices[i].Type, "any")
	}

	or := func(p *string, otherwise string) string {
		if p == nil {
			return otherwise
		}
		return *p
	}
	r := cf.Request
	c.Request = Request{Method: or(r.Method, "GET"), URL: or(r.URL, "https://app.example.com/"), IP: or(r.IP, "192.0.2.10"), Headers: r.Headers}
	if cert := r.Certificate; cert != nil {
		c.Request.Presented = true
		c.Request.Trusted = cert.Trusted == nil || *cert.Trusted
		c.Request.PEM = cert.PEM
		if cert.Name != "" {
			c.Request.PEM, ok = f.Certificates[cert.Name]
			if !ok {
				return nil, bad("certificates has no %q", cert.Name)
			}
		}
		if block, _ := pem.Decode([]byte(c.Request.PEM)); block != nil {
			c.Request.Certificate, _ = x509.ParseCertificate(block.Bytes)
		}
	}
	return c, nil
}
