package rego

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/print"
	"github.com/open-policy-agent/opa/v1/types"
	"golang.org/x/crypto/ssh"

	"postern/internal/policy"
)

// functions are those that Postern adds to the standard library.
func functions() []*topdown.Builtin {
	return []*topdown.Builtin{
		{
			Decl: &ast.Builtin{
				Name:             "get_databroker_record",
				Description:      "The record of a type with an id, or with an address inside its $index.cidr; null if there is none.",
				Decl:             types.NewFunction(types.Args(types.S, types.S), types.A),
				Nondeterministic: true,
			},
			Func: getRecord,
		},
		{
			Decl: &ast.Builtin{
				Name:             "ssh_verify_user_cert",
				Description:      "Whether a user certificate is signed by an authority, within its validity, and names the login name or none.",
				Decl:             types.NewFunction(types.Args(types.S, types.S, types.A), types.B),
				Nondeterministic: true,
			},
			Func: verifyUserCertificate,
		},
	}
}

func runOf(b topdown.BuiltinContext) *run {
	r, _ := b.Context.Value(runKey{}).(*run)
	return r
}

// getRecord looks a record up. What cannot be read now ends the evaluation: a
// deny rule must not be false because a store is away.
func getRecord(b topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
	typ, ok1 := args[0].Value.(ast.String)
	id, ok2 := args[1].Value.(ast.String)
	r := runOf(b)
	if !ok1 || !ok2 || r == nil {
		return iter(ast.NullTerm())
	}
	data, err := r.record(string(typ), string(id))
	if err != nil {
		return topdown.Halt{Err: err}
	}
	if data == nil {
		return iter(ast.NullTerm())
	}
	v, err := (&builder{}).value(data)
	if err != nil {
		return topdown.Halt{Err: fmt.Errorf("record %s of type %s cannot be shown to the script: %w", id, typ, err)}
	}
	return iter(ast.NewTerm(v))
}

// record asks for a record while the request still waits.
func (r *run) record(typ, id string) (map[string]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.input == nil {
		return nil, errTimeout
	}
	if r.input.RecordByID == nil || id == "" {
		return nil, nil
	}
	return r.input.RecordByID(typ, id)
}

// verifyUserCertificate takes the certificate as base64 of its wire form or as
// an authorized_keys line, and the authorities as one line, a list or a set.
func verifyUserCertificate(b topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
	name, ok1 := args[0].Value.(ast.String)
	certificate, ok2 := args[1].Value.(ast.String)
	r := runOf(b)
	if !ok1 || !ok2 || r == nil {
		return iter(ast.InternedTerm(false))
	}
	var authorities [][]byte
	add := func(t *ast.Term) {
		if s, ok := t.Value.(ast.String); ok {
			if key := wireForm(string(s)); key != nil {
				authorities = append(authorities, key)
			}
		}
	}
	switch v := args[2].Value.(type) {
	case ast.String:
		add(args[2])
	case *ast.Array:
		v.Foreach(add)
	case ast.Set:
		v.Foreach(add)
	}
	r.mu.Lock()
	in := r.input
	good := false
	if in != nil {
		good = policy.VerifyUserCertificate(policy.UserCertificate{
			Name: string(name), Certificate: wireForm(string(certificate)), Authorities: authorities,
			From: in.ClientIP, Now: in.Now,
		})
	}
	r.mu.Unlock()
	return iter(ast.InternedTerm(good))
}

// wireForm reads a key or certificate; nil if it is none.
func wireForm(s string) []byte {
	if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s)); err == nil {
		return raw
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(s))
	if err != nil {
		return nil
	}
	return key.Marshal()
}

// printer hands on what a script prints.
type printer struct {
	p *program
	r *run
}

func (h printer) Print(c print.Context, text string) error {
	out := h.p.scripts.opts.Print
	if out == nil || h.r.printed >= MaxPrint {
		return nil
	}
	h.r.printed++
	if len(text) > MaxPrintLine {
		text = strings.ToValidUTF8(text[:MaxPrintLine], "") + "..."
	}
	line := 0
	if c.Location != nil {
		line = max(c.Location.Row-h.p.added, 1)
	}
	out(h.p.name, line, text)
	return nil
}
