package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/config"
	"postern/internal/policy"
	"postern/internal/policy/impact"
	"postern/internal/server"
)

// peopleFlags say where the known people come from: a data file, or a running
// server.
type peopleFlags struct{ data, socket string }

func (f *peopleFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.data, "data", "", "file of known people: users, directory_users, groups (YAML or JSON, as GET /v1/people answers)")
	cmd.Flags().StringVar(&f.socket, "control", "", "control socket of a running server that knows the people")
}

// load reads the people; cfg names the server if nothing else does.
func (f *peopleFlags) load(cmd *cobra.Command, cfg *config.Config) (*server.People, error) {
	if f.data != "" {
		b, err := os.ReadFile(f.data)
		if err != nil {
			return nil, usageError{err}
		}
		p, err := server.ParsePeople(b)
		if err != nil {
			return nil, usageError{fmt.Errorf("%s: %w", f.data, err)}
		}
		return p, nil
	}
	socket := f.socket
	if socket == "" && cfg != nil {
		socket = server.ControlPath(cfg)
	}
	if socket == "" {
		return nil, usageError{fmt.Errorf("nobody is known: give --data FILE, or --control SOCKET of a running server")}
	}
	p := &server.People{}
	if err := server.Dial(socket).Call(cmd.Context(), "GET", "/v1/people", nil, p); err != nil {
		return nil, usageError{fmt.Errorf("%w; or give the people with --data FILE", err)}
	}
	return p, nil
}

// compilePolicies reads a configuration and compiles its policies.
func compilePolicies(path string) (*config.Config, *server.Policies, error) {
	cfg, err := loadConfig(path)
	if err != nil {
		return nil, nil, usageError{err}
	}
	p, problems := server.CompilePolicies(cfg)
	if p == nil {
		for _, one := range problems {
			if one.Level == config.LevelFatal {
				fmt.Fprintln(os.Stderr, one)
			}
		}
		return nil, nil, usageError{fmt.Errorf("%s: the configuration has errors: mend what is listed above", path)}
	}
	return cfg, p, nil
}

// accessReport is one answer, as --json prints it.
type accessReport struct {
	ID     string `json:"id,omitempty"`
	Email  string `json:"email,omitempty"`
	Name   string `json:"name,omitempty"`
	Route  string `json:"route,omitempty"`
	Access string `json:"access"` // always, never, conditional
	// When: alternatives, each a list of what must come together.
	When     [][]string       `json:"when,omitempty"`
	Complete *bool            `json:"complete,omitempty"` // false: there are more alternatives
	By       []impact.RuleRef `json:"by,omitempty"`
	Against  []impact.RuleRef `json:"against,omitempty"`
	SignIn   bool             `json:"sign_in,omitempty"`

	text string
}

func newAccessReport(a impact.Access) accessReport {
	r := accessReport{Access: "conditional", By: a.By, Against: a.Against, SignIn: a.SignIn, text: a.String()}
	switch {
	case a.Never():
		r.Access = "never"
	case a.Always():
		r.Access = "always"
	default:
		terms, complete := a.Terms()
		r.When, r.Complete = terms, &complete
	}
	return r
}

func rulesText(list []impact.RuleRef) string {
	if len(list) == 0 {
		return "no rule"
	}
	out := make([]string, 0, len(list))
	for i, r := range list {
		if i == 4 {
			out = append(out, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		at := r.File
		if r.Line > 0 {
			at = fmt.Sprintf("%s:%d:%d", r.File, r.Line, r.Column)
		}
		out = append(out, at+" "+r.Path)
	}
	return strings.Join(out, ", ")
}

// why says by which rule somebody gets in, or is kept out.
func (r *accessReport) why() string {
	switch {
	case r.Access != "never" && len(r.Against) > 0:
		return "by " + rulesText(r.By) + ", unless " + rulesText(r.Against)
	case r.Access != "never":
		return "by " + rulesText(r.By)
	case r.SignIn:
		return "must sign in"
	case len(r.Against) > 0:
		return "denied by " + rulesText(r.Against)
	}
	return "no rule admits"
}

func label(p *impact.Person) string {
	switch {
	case p.Anonymous:
		return "(nobody signed in)"
	case p.Email != "":
		return p.Email
	}
	return p.ID
}

// checkSet looks at all policies that decide about a route.
func checkSet(set *policy.Set, seen map[*policy.Policy]bool) (out []policy.Problem) {
	for _, p := range set.Policies() {
		if !seen[p] && p.Name() != "route shortcuts" {
			seen[p] = true
			out = append(out, impact.Check(p)...)
		}
	}
	return out
}
