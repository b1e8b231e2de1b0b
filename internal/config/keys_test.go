package config

import (
	"os"
	"strings"
	"testing"
)

// The list of keys covers the specification: names, variables, defaults.
func TestKeysCoverTheSpecification(t *testing.T) {
	keys := map[string]Key{}
	for _, k := range Keys() {
		if _, twice := keys[k.Name]; twice {
			t.Errorf("%s is declared twice", k.Name)
		}
		keys[k.Name] = k
	}
	named := 0
	for line := range strings.Lines(readFile(t, "testdata/keys.txt")) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "#" {
			continue
		}
		named++
		k, ok := keys[fields[0]]
		if !ok {
			t.Errorf("%s is not declared", fields[0])
			continue
		}
		if len(fields) > 1 && fields[1] == "-" && k.Env != "" && k.Name != "blob_storage" && !strings.HasPrefix(k.Name, "ssh_rls") {
			t.Errorf("%s has the variable %s", k.Name, k.Env)
		}
		if len(fields) > 1 && fields[1] != "-" && k.Env != fields[1] {
			t.Errorf("the variable of %s is %q, not %q", k.Name, k.Env, fields[1])
		}
		if want := strings.Join(fields[min(2, len(fields)):], " "); want != "" && !sameDefault(k.Default, want) {
			t.Errorf("the default of %s is %q, not %q", k.Name, k.Default, want)
		}
	}
	if named < 300 {
		t.Errorf("only %d keys are named", named)
	}
}

func sameDefault(got, want string) bool {
	zero := func(s string) bool { return s == "" || s == "0" || s == "0s" || s == "false" }
	return got == want || got == strings.Trim(want, "[]") || zero(got) && zero(want)
}

func TestDeclarationsAreWhole(t *testing.T) {
	for _, k := range Keys() {
		if k.Doc == "" || !strings.HasSuffix(k.Doc, ".") {
			t.Errorf("%s: the doc %q is no sentence", k.Name, k.Doc)
		}
		if k.Status != "acts" && k.Status != "accepted" && k.Status != "ignored" {
			t.Errorf("%s: the status is %q", k.Name, k.Status)
		}
		if k.Section == "" {
			t.Errorf("%s has no section", k.Name)
		}
		if strings.HasPrefix(k.Name, "routes[]") && k.Env != "" {
			t.Errorf("%s has a variable", k.Name)
		}
		if strings.Contains(k.Name, "secret") && !k.Secret && k.Type != "path" && k.Type != "bool" {
			t.Errorf("%s is not declared secret", k.Name)
		}
	}
	variables := map[string]string{}
	for _, k := range Keys() {
		if other := variables[k.Env]; other != "" && k.Env != "" {
			t.Errorf("%s and %s share the variable %s", k.Name, other, k.Env)
		}
		variables[k.Env] = k.Name
	}
}

// docs/reference/configuration.md is what Reference makes; -update writes it.
func TestReferencePage(t *testing.T) {
	const page = "../../docs/reference/configuration.md"
	want := Reference()
	if *update {
		if err := os.MkdirAll("../../docs/reference", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if readFile(t, page) != want {
		t.Error("the page is not up to date: run go test ./internal/config -run ReferencePage -args -update")
	}
	for _, k := range Keys() {
		if !strings.Contains(want, "|`"+k.Name+"`|") {
			t.Errorf("%s is not on the page", k.Name)
		}
	}
}
