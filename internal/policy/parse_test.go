package policy

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func TestBombsAreErrors(t *testing.T) {
	var billion strings.Builder
	billion.WriteString("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&billion, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	billion.WriteString("allow: {and: [{claim/x: *a11}]}\n")
	for name, c := range map[string]struct{ text, want string }{
		"aliases":       {billion.String(), "aliases repeat"},
		"nesting":       {"allow: {and: [{user: " + strings.Repeat("[", 500) + strings.Repeat("]", 500) + "}]}", "nested too deeply"},
		"deep nesting":  {strings.Repeat("[", 200_000), "not YAML"},
		"deep objects":  {strings.Repeat("{a: ", 100) + strings.Repeat("}", 100), "nested too deeply"},
		"self":          {"allow: &a {or: [{claim/x: *a}]}", "contains it"},
		"merge of self": {"allow: &a {<<: *a}", "contains it"},
		"size":          {strings.Repeat("#", maxText+1), "larger than"},
	} {
		_, _, err := Parse("p.yaml", []byte(c.text), Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %.300v", name, err)
		}
		if !strings.HasPrefix(c.text, "[[") {
			continue
		}
		if _, _, err := Parse("p.json", []byte(c.text), Options{}); err == nil {
			t.Errorf("%s as JSON: no error", name)
		}
	}
}

func TestNoNodeIsAnEmptyPolicy(t *testing.T) {
	for _, n := range []*yaml.Node{nil, {}, {Kind: yaml.DocumentNode}, {Kind: yaml.AliasNode}} {
		if p, _, err := ParseNode("c.yaml", n, Options{Path: "routes[0].policy"}); p != nil || err == nil {
			t.Errorf("%+v: %v", n, err)
		}
	}
}

func TestYAMLErrorsNameTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"allow:\n  and: [{accept: true}\n":       "p.yaml:2:1: not YAML: line 2: ",
		"allow: {}\n- a\n":                       "p.yaml:2:1: not YAML: line 2: ",
		"allow: {}\na: b: c\n":                   "p.yaml:2:1: not YAML: line 2: ",
		"{allow: {or: [{accept: 1}]}}}\n":        "p.yaml:1:1: not YAML: ",
		"{allow: {or: [{accept: 1}]}}\ndeny: {}": "p.yaml:2:1: not YAML: line 2: ",
		"allow: *nowhere":                        "unknown anchor",
	} {
		if _, _, err := Parse("p.yaml", []byte(text), Options{}); err == nil || !strings.HasPrefix(err.Error(), want) && !strings.Contains(err.Error(), "anchor") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, _, err := Parse("p.yaml", []byte("allow: {}\n---\n{{{ not: [YAML"), Options{}); err != nil {
		t.Errorf("a further document is read: %v", err)
	}
}

func TestManyErrorsAreBounded(t *testing.T) {
	text := "allow: {or: [" + strings.Repeat("{x: 1}, ", 5000) + "]}"
	_, _, err := Parse("p.yaml", []byte(text), Options{})
	if problems, ok := err.(Problems); !ok || len(problems) != maxErrors {
		t.Errorf("got %T of %d", err, len(problems))
	}
}

func TestJSONPositions(t *testing.T) {
	for text, want := range map[string]string{
		"{\"allow\":\n  {\"and\": [{\"é\\ud83d\\ude00\": 1},   {\"emial\": 1}]}}": `p.json:2:37: allow.and[1]: unknown criterion "emial"`,
		`{"allow": {}, "allow": {}}`: "p.json:1:15: key \"allow\" is given twice, first on line 1",
		"{\"allow\": {\"and\": [}":   "p.json:1:20: not JSON: line 1",
		"\n\n{\"allow\"":             "p.json:3:9: not JSON: line 3: the text ends too early",
		"{} x":                       "p.json:1:4: not JSON",
		"  ":                         "p.json:1:1: the policy is empty",
		`{"allow": {"or": [{"user": {"iss": 1}}]}}`: `p.json:1:29: allow.or[0].user: unknown string operator "iss"`,
	} {
		_, _, err := Parse("p.json", []byte(text), Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
	}
}

func TestFoldCase(t *testing.T) {
	text := "Allow:\n  AND: [{Claim/Team: {HAS: Core}}, {Domain: {IS: X.test}}]\n"
	if _, _, err := Parse("p.yaml", []byte(text), Options{}); err == nil {
		t.Error("exact reading takes other cases")
	}
	p, warnings, err := Parse("c.yaml", []byte(text), Options{FoldCase: true, Path: "routes[3].policy"})
	if err != nil {
		t.Fatal(err)
	}
	if len(warnings) != 6 || !strings.HasPrefix(warnings[0].Error(), "c.yaml:1:1: routes[3].policy: ") {
		t.Errorf("warnings: %v", warnings)
	}
	in := &Input{HasSession: true, UserID: "u", Email: "a@X.test"}
	for name, want := range map[string]Outcome{"Team": Allow, "team": Allow, "TEAM": Deny} {
		in.Claims = map[string][]any{name: {"Core"}}
		if got := outcomeOf(p, in); got != want {
			t.Errorf("claim %s: %v", name, got)
		}
	}
	in.Claims = map[string][]any{"Team": {}, "team": {"Core"}}
	if got := outcomeOf(p, in); got != Deny {
		t.Errorf("an empty claim of the literal name: %v", got)
	}
	if _, _, err := Parse("c.yaml", []byte("allow: {}\nALLOW: {}"), Options{FoldCase: true, Path: "x"}); err == nil ||
		!strings.Contains(err.Error(), `c.yaml:2:1: x: key "allow" is given twice, first on line 1`) {
		t.Errorf("two spellings of one key: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	for text, want := range map[string]string{
		"allow: {or: [{user: [a, b]}]}":                                           "1:21: allow.or[0].user: user compares a string with a list",
		"allow: {or: [{email: {not: 5}}]}":                                        "never equal",
		"allow: {or: [{claim/a: [x]}]}":                                           "a list inside the list",
		"allow: {or: [{groups: {has: [x]}}]}":                                     "a list inside the list",
		"allow: {or: [{claim: x}]}":                                               "1:15: allow.or[0].claim: claim without a name",
		"allow: {or: [{user/x: a}]}":                                              "sub-path",
		"allow: {or: [{accept: 1}], and: []}":                                     "1:33: allow.and: \"and\" has an empty list",
		"allow: {or: [{user: {}}]}":                                               "empty matcher",
		"allow: {or: [{claim/a: {}}]}":                                            "empty matcher",
		"allow: {or: [{device: {}}]}":                                             "empty matcher",
		"allow: {or: [{client_certificate: {}}]}":                                 "empty matcher",
		"allow: {or: [{client_certificate: {san_dns: {}}}]}":                      "empty matcher",
		"allow: {and: [{user: a}, {user: {is: b}}]}":                              "1:26: allow.and[1].user: this and can never be true",
		"allow: {and: [{claim/a: {is: 1}}, {claim/a: {is: 2}}]}":                  "can never be true",
		"allow: {or: [{time_of_day: {timezone: UTC, after: 10PM, before: 6AM}}]}": "over midnight",
		"allow: {or: [{date: {after: 2026-02-01, before: 2026-01-01}}]}":          "never true",
		"allow: {or: [{mcp_tool: x}]}":                                            "1:15: allow.or[0].mcp_tool: mcp_tool under allow",
		"deny: {or: [{ssh_publickey: []}]}":                                       "ssh_publickey under deny",
		"deny: {or: [{ssh_ca: []}]}":                                              "ssh_ca under deny",
		"deny: {nor: [{invalid_client_certificate: 1}]}":                          "refuses everybody",
		"allow: {or: [{accept: 1}]}\ndeny: {or: [{user: a}]}":                     "2:14: deny.or[0].user: user under deny makes every visitor",
		"allow: {or: [{domain: {in: [x.test, a@x.test]}}]}":                       `no domain holds an @, so "a@x.test"`,
		"allow: {or: [{groups: 5}]}":                                              "group ids are strings",
	} {
		_, warnings, err := Parse("p.yaml", []byte(text), Options{})
		if err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if !slices.ContainsFunc(warnings, func(w Problem) bool { return strings.Contains(w.Error(), want) }) {
			t.Errorf("%s\n got %v\nwant %s", text, warnings, want)
		}
	}
	for _, text := range []string{typicalPolicy, "allow: {and: [{user: a}, {user: {is: a}}]}", "allow: {and: [{claim/a: {is: 1}}, {claim/b: {is: 2}}]}",
		"allow: {or: [{user: a}, {user: b}]}\ndeny: {or: [{user: c}]}"} {
		if _, warnings, err := Parse("p.yaml", []byte(text), Options{}); err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", text, warnings, err)
		}
	}
	p := mustParse(t, "deny: {or: [{user: c}]}")
	if len(p.WarningsIfPublic()) != 1 {
		t.Error("a public route is not warned of its identity deny")
	}
}

func TestSuggest(t *testing.T) {
	valid := []string{"email", "domain", "user", "is", "in", "not_in", "http_path"}
	for bad, want := range map[string]string{
		"emial": "email", "EMAIL": "email", " email ": "email", "e-mail": "email", "usre": "user", "uesr": "user", "use": "user",
		"it": "in", "xx": "", "domains": "domain", "dommmain": "domain", "htttp-path": "http_path", "completely": "", "": "",
		"notin": "not_in", strings.Repeat("x", 1000): "",
	} {
		if got := suggest(bad, valid); got != want {
			t.Errorf("%q: got %q, want %q", bad, got, want)
		}
	}
}

func TestNumbersCompareByValue(t *testing.T) {
	equal := [][2]string{{"7", "7.0"}, {"0", "-0.00"}, {"1e3", "1000"}, {"0.001", "1E-3"}, {"120", "1.2e2"},
		{"9007199254740993", "9007199254740993.0"}, {"-5", "-0.5e1"}}
	for _, pair := range equal {
		a, ok := parseNumber(pair[0])
		b, ok2 := parseNumber(pair[1])
		if !ok || !ok2 || a.compare(b) != 0 {
			t.Errorf("%v: %+v %+v", pair, a, b)
		}
	}
	rising := []string{"-1e300", "-10", "-9.5", "-0.1", "0", "1e-9", "0.5", "1", "1.5", "9", "10", "9007199254740992", "9007199254740993", "1e300"}
	for i := range rising {
		for j := range rising {
			a, _ := parseNumber(rising[i])
			b, _ := parseNumber(rising[j])
			if got, want := a.compare(b), max(-1, min(1, i-j)); got != want {
				t.Errorf("%s against %s: %d", rising[i], rising[j], got)
			}
		}
	}
	for _, bad := range []string{"", "-", "01", "1.", ".5", "+1", "1e", "1e+", " 1", "1 ", "0x1", "1_0", "NaN", "Inf", "1e99999999999999999999", strings.Repeat("9", 500)} {
		if _, ok := parseNumber(bad); ok {
			t.Errorf("%q is taken for a JSON number", bad)
		}
	}
	o := newOperand(int64(9007199254740993))
	if o.equals(9007199254740992.0) || !o.equals(json.Number("9007199254740993")) {
		t.Error("the last digit of a large integer is lost")
	}
	seven := newOperand(7.0)
	if !seven.equals(7.0) || !seven.equals(int64(7)) || seven.equals("7") || seven.equals(true) {
		t.Error("seven")
	}
}

func TestEveryReasonHasItsName(t *testing.T) {
	seen := map[string]bool{}
	for r := range reasonCount {
		if name := r.String(); name == "" || seen[name] {
			t.Errorf("reason %d is called %q", r, name)
		} else {
			seen[name] = true
		}
	}
	s := Reasons{}.Add("zz-custom").Add("accept").Add("aa-custom").Add("zz-custom")
	if got := s.Union(ReasonsOf(ReasonEmailOK)).Names(); !slices.Equal(got, []string{"aa-custom", "accept", "email-ok", "zz-custom"}) {
		t.Errorf("got %v", got)
	}
}

func TestEveryCriterionIsDocumented(t *testing.T) {
	for _, c := range Criteria() {
		if c.Name == "" || c.Doc == "" || c.Value == "" || c.Compile == nil {
			t.Errorf("%+v", c)
		}
	}
	if len(Criteria()) != len(criteria) {
		t.Error("two criteria of one name")
	}
}
