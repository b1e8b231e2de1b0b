package record_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"postern/internal/record"
)

func TestCheckClock(t *testing.T) {
	now := time.Now()
	for lag, good := range map[time.Duration]bool{
		-time.Hour: true, 0: true, 59 * time.Second: true, record.MaxClockLag: true, record.MaxClockLag + 1: false, 24 * time.Hour: false,
	} {
		if err := (record.Versions{NewestAt: now.Add(lag)}).CheckClock(now); (err == nil) != good {
			t.Errorf("newest record %s ahead of the clock: %v", lag, err)
		}
	}
	if err := (record.Versions{}).CheckClock(now); err != nil {
		t.Errorf("empty store: %v", err)
	}
}

func TestMergeFields(t *testing.T) {
	for _, c := range []struct {
		dst, src string
		mask     []string
		want     string // "" for an error
	}{
		{`{"a":1,"b":2}`, `{"a":9,"b":9}`, []string{"a"}, `{"a":9,"b":2}`},
		{`{"a":1,"b":2}`, `{}`, []string{"a"}, `{"b":2}`},
		{`{}`, `{"a":{"b":{"c":1}}}`, []string{"a.b.c"}, `{"a":{"b":{"c":1}}}`},
		{`{"idToken":{"raw":"x","issuer":"i"}}`, `{"idToken":{"raw":"y"}}`, []string{"id_token.raw"}, `{"idToken":{"issuer":"i","raw":"y"}}`},
		{`{"idToken":{"raw":"x","issuer":"i"}}`, `{}`, []string{"idToken.raw"}, `{"idToken":{"issuer":"i"}}`},
		{`{"idToken":{"raw":"x"}}`, `{}`, []string{"idToken.raw"}, `{}`},
		{`{"n":12345678901234567890,"f":1.10}`, `{"x":1}`, []string{"x"}, `{"f":1.10,"n":12345678901234567890,"x":1}`},
		{``, `{"x":1}`, []string{"x"}, `{"x":1}`},
		{`[]`, `{}`, []string{"x"}, ``},
		{`{}`, `5`, []string{"x"}, ``},
		{`{"a":5}`, `{"a":{"b":1}}`, []string{"a.b"}, ``},
		{`{}`, `{}`, []string{"a."}, ``},
		{`{}`, `{}`, []string{""}, ``},
	} {
		got, err := record.MergeFields(json.RawMessage(c.dst), json.RawMessage(c.src), c.mask)
		if c.want == "" {
			if !errors.Is(err, record.ErrInvalid) {
				t.Errorf("%s + %s %v: %s, %v; want ErrInvalid", c.dst, c.src, c.mask, got, err)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s + %s %v: %s, %v; want %s", c.dst, c.src, c.mask, got, err, c.want)
		}
	}
}

func TestClone(t *testing.T) {
	a := &record.Record{Type: "t", ID: "i", Data: json.RawMessage(`{}`), Index: map[string]string{"k": "v"}}
	b := a.Clone()
	b.Data[0], b.Index["k"] = 'x', "y"
	if string(a.Data) != "{}" || a.Index["k"] != "v" {
		t.Fatal("a clone shares memory")
	}
	if (*record.Record)(nil).Clone() != nil {
		t.Fatal("clone of nothing")
	}
}
