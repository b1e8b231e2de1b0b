package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"postern/internal/config"
	"postern/internal/policy"
	"postern/internal/policy/impact"
	"postern/internal/server"
)

// policyCheckCommand reads policy documents, or all policies of a
// configuration, and tells errors and warnings (policy-language.md §12), rules
// that are unreachable and criteria that can never hold together.
func policyCheckCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use: "check [FILE...]", Short: "Check policies for errors, likely mistakes and rules that do nothing",
		Long: `Reads policy documents, or with --config every policy of a configuration. Told
are errors, warnings, rules that another rule makes useless, rules whose criteria
contradict each other, and intervals in which no moment lies.

Exit status 1 if there is an error, or with --strict a warning.`,
	}
	path := configFlag(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are errors")
	cmd.RunE = func(cmd *cobra.Command, files []string) error {
		if len(files) == 0 && *path == "" {
			return usageError{errors.New("postern policy check: give at least one policy file, or --config FILE")}
		}
		bad := false
		out := cmd.OutOrStdout()
		warn := func(w any) {
			bad = bad || strict
			fmt.Fprintf(out, "%s (warning)\n", w)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return usageError{err}
			}
			p, warnings, err := checkDocument(file, text)
			if err != nil {
				bad = true
				fmt.Fprintln(out, err)
			}
			for _, w := range append(warnings, impact.Check(p)...) {
				warn(w)
			}
		}
		if *path != "" {
			cfg, problems := config.LoadFile(*path, os.Environ())
			var policies *server.Policies
			if cfg != nil {
				var more []config.Problem
				policies, more = server.CompilePolicies(cfg)
				problems = append(problems, more...)
			}
			for _, p := range problems {
				switch {
				case p.Level == config.LevelFatal:
					bad = true
					fmt.Fprintln(out, p)
				case p.Level == config.LevelWarning && isPolicyPath(p.Path):
					warn(p)
				}
			}
			if policies != nil {
				seen := map[*policy.Policy]bool{}
				for i := range policies.Routes {
					for _, w := range checkSet(policies.Routes[i].Impact.Set, seen) {
						warn(w)
					}
				}
				if !bad {
					fmt.Fprintf(out, "%d routes checked\n", len(policies.Routes))
				}
			}
		}
		if bad {
			return exitCode(1)
		}
		return nil
	}
	return cmd
}

// isPolicyPath tells that a setting holds a policy.
func isPolicyPath(path string) bool {
	for _, part := range []string{"].policy", ".sub_policies", "admin_policy", "shadow_policy", "ssh_policy"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return false
}
