package rego

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"

	"postern/internal/policy"
)

// answerOf reads what a rule gave: list holds its value, or nothing if it is
// undefined. A boolean stands alone or is the first of one to three items:
// value, reasons, data. Anything else is false. An error says that a bound is
// exceeded.
func answerOf(list *ast.Term) (a policy.Answer, err error) {
	given, ok := list.Value.(*ast.Array)
	if !ok || given.Len() != 1 {
		return a, nil
	}
	switch v := given.Elem(0).Value.(type) {
	case ast.Boolean:
		a.Value = bool(v)
	case *ast.Array:
		if v.Len() < 1 || v.Len() > 3 {
			return a, nil
		}
		if first, ok := v.Elem(0).Value.(ast.Boolean); ok {
			a.Value = bool(first)
		}
		if v.Len() > 1 {
			if a.Reasons, err = reasonsOf(v.Elem(1).Value); err != nil {
				return policy.Answer{}, err
			}
		}
		if v.Len() > 2 {
			if data, ok := v.Elem(2).Value.(ast.Object); ok {
				if t := data.Get(ast.InternedTerm("device_type")); t != nil {
					if text, ok := t.Value.(ast.String); ok && len(text) <= MaxReason {
						a.DeviceType, a.HasDeviceType = string(text), true
					}
				}
			}
		}
	}
	return a, nil
}

func reasonsOf(v ast.Value) (reasons policy.Reasons, err error) {
	n := 0
	add := func(t *ast.Term) {
		text := ""
		if s, ok := t.Value.(ast.String); ok {
			text = string(s)
		} else {
			text = t.Value.String()
		}
		if n++; n > MaxReasons {
			err = fmt.Errorf("more than %d reasons; give fewer", MaxReasons)
			return
		}
		if len(text) > MaxReason {
			err = fmt.Errorf("a reason of %d bytes; at most %d are kept, so give a short word", len(text), MaxReason)
			return
		}
		reasons = reasons.Add(text)
	}
	switch v := v.(type) {
	case ast.String:
		add(ast.NewTerm(v))
	case *ast.Array:
		for i := 0; i < v.Len() && err == nil; i++ {
			add(v.Elem(i))
		}
	case ast.Set:
		for _, t := range v.Slice() {
			if err == nil {
				add(t)
			}
		}
	}
	return reasons, err
}
