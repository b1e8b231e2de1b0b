package rego

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/textproto"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"

	"postern/internal/policy"
)

// inputOf describes a request as scripts see it. Every text is copied, because
// an evaluation may outlive its request.
func inputOf(in *policy.Input) (ast.Value, error) {
	b := builder{}
	onSSH := in.SSH != nil
	ip := ""
	if in.ClientIP.IsValid() {
		ip = in.ClientIP.String()
	}
	host, url := in.Host, ""
	if onSSH {
		host = ""
	} else {
		url = "https://" + in.Host + in.RawPath
		if in.RawQuery != "" {
			url += "?" + in.RawQuery
		}
	}
	headers := ast.NewObject()
	if in.EachHeader != nil && !onSSH {
		in.EachHeader(func(name, value string) bool {
			key := b.text(textproto.CanonicalMIMEHeaderKey(name))
			if headers.Get(key) == nil { // the first of several, as criteria see it
				headers.Insert(key, b.text(value))
			}
			return b.size <= MaxInput
		})
	}
	leaf, intermediates := "", ""
	if in.Certificate != nil {
		leaf = certificatePEM(in.Certificate)
		for _, c := range in.Intermediates {
			intermediates += certificatePEM(c)
		}
	}
	request := ast.NewObject(
		b.pair("method", in.Method),
		b.pair("host", host),
		b.pair("hostname", hostnameOf(in.Host)),
		b.pair("path", in.Path),
		b.pair("raw_path", in.RawPath),
		b.pair("raw_query", in.RawQuery),
		b.pair("url", url),
		b.pair("ip", ip),
		b.pair("body", string(in.Body)),
		[2]*ast.Term{ast.InternedTerm("headers"), ast.NewTerm(headers)},
		[2]*ast.Term{ast.InternedTerm("client_certificate"), ast.ObjectTerm(
			[2]*ast.Term{ast.InternedTerm("presented"), ast.InternedTerm(in.Certificate != nil)},
			b.pair("leaf", leaf),
			b.pair("intermediates", intermediates),
		)},
	)
	user, key := "", ""
	if onSSH {
		user, key = in.SSH.Username, base64.StdEncoding.EncodeToString(in.SSH.PublicKey)
	}
	call := ast.NewObject(b.pair("method", ""))
	if m := in.MCP; m != nil {
		call = ast.NewObject(b.pair("method", m.Method))
		if m.Tool != "" || m.Arguments != nil {
			tool := ast.NewObject(b.pair("name", m.Tool))
			if m.Arguments != nil {
				arguments, err := b.value(m.Arguments)
				if err != nil {
					return nil, fmt.Errorf("the tool's arguments cannot be shown to the script: %w", err)
				}
				tool.Insert(ast.InternedTerm("arguments"), ast.NewTerm(arguments))
			}
			call.Insert(ast.InternedTerm("tool_call"), ast.NewTerm(tool))
		}
	}
	if b.size > MaxInput {
		return nil, fmt.Errorf("the request is larger than the %d bytes that a script may be given", MaxInput)
	}
	return ast.NewObject(
		[2]*ast.Term{ast.InternedTerm("http"), ast.NewTerm(request)},
		[2]*ast.Term{ast.InternedTerm("session"), ast.ObjectTerm(b.pair("id", in.SessionID), b.pair("user_id", in.UserID))},
		[2]*ast.Term{ast.InternedTerm("ssh"), ast.ObjectTerm(b.pair("username", user), b.pair("publickey", key))},
		[2]*ast.Term{ast.InternedTerm("mcp"), ast.NewTerm(call)},
		[2]*ast.Term{ast.InternedTerm("is_valid_client_certificate"), ast.InternedTerm(in.CertificateState == policy.CertificateOK)},
	), nil
}

// hostnameOf is an authority without port and brackets.
func hostnameOf(authority string) string {
	if inner, ok := strings.CutPrefix(authority, "["); ok {
		inner, _, _ = strings.Cut(inner, "]")
		return inner
	}
	name, _, _ := strings.Cut(authority, ":")
	return name
}

func certificatePEM(c *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
}

// builder makes values and counts what they hold.
type builder struct{ size, depth int }

func (b *builder) text(s string) *ast.Term {
	b.size += len(s) + 16
	return ast.StringTerm(strings.Clone(s))
}

func (b *builder) pair(key, value string) [2]*ast.Term {
	return [2]*ast.Term{ast.InternedTerm(key), b.text(value)}
}

// maxDepth bounds how deeply the values given to scripts may be nested.
const maxDepth = 64

// value copies a tree of plain values.
func (b *builder) value(v any) (ast.Value, error) {
	if b.size += 16; b.size > MaxRecord {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxRecord)
	}
	if b.depth++; b.depth > maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	defer func() { b.depth-- }()
	switch v := v.(type) {
	case string:
		return b.text(v).Value, nil
	case map[string]any:
		o := ast.NewObject()
		for key, item := range v {
			x, err := b.value(item)
			if err != nil {
				return nil, err
			}
			o.Insert(b.text(key), ast.NewTerm(x))
		}
		return o, nil
	case []any:
		items := make([]*ast.Term, 0, len(v))
		for _, item := range v {
			x, err := b.value(item)
			if err != nil {
				return nil, err
			}
			items = append(items, ast.NewTerm(x))
		}
		return ast.NewArray(items...), nil
	}
	return ast.InterfaceToValue(v) // null, booleans, numbers
}
