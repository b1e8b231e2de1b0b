package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"postern/internal/authz"
	"postern/internal/policy"
	"postern/internal/policy/policytest"
	"postern/internal/session"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check and test policies", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policyTestCommand(), policyCheckCommand())
	return cmd
}

// policyTestCommand runs test files (policy-language.md §14) through the whole
// decision, so that statuses and internal paths are those of the proxy.
func policyTestCommand() *cobra.Command {
	var o policytest.Options
	cmd := &cobra.Command{
		Use: "test FILE...", Short: "Run policy test files",
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) == 0 {
				return usageError{errors.New("postern policy test: give at least one test file")}
			}
			secret := make([]byte, session.KeySize)
			rand.Read(secret)
			keys, err := session.NewKeys(session.NewSecret(secret), nil, session.Secret{})
			if err != nil {
				return err
			}
			o.Evaluator = authz.Cases{Keys: keys}
			o.Rego = scriptCompiler(cmd.ErrOrStderr())
			if code := policytest.Run(files, o, cmd.OutOrStdout()); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&o.JSON, "json", false, "print one JSON object per case")
	cmd.Flags().BoolVarP(&o.Verbose, "verbose", "v", false, "print passed cases and their reasons too")
	return cmd
}

// policyCheckCommand reads policy documents and tells errors and warnings
// (policy-language.md §12).
func policyCheckCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use: "check FILE...", Short: "Check policy documents for errors and likely mistakes",
		RunE: func(cmd *cobra.Command, files []string) error {
			if len(files) == 0 {
				return usageError{errors.New("postern policy check: give at least one policy file")}
			}
			bad := false
			for _, file := range files {
				text, err := os.ReadFile(file)
				if err != nil {
					return usageError{err}
				}
				_, warnings, err := policy.Parse(file, text, policy.Options{})
				if err != nil {
					bad = true
					fmt.Fprintln(cmd.OutOrStdout(), err)
				}
				for _, w := range warnings {
					bad = bad || strict
					fmt.Fprintf(cmd.OutOrStdout(), "%s (warning)\n", w)
				}
			}
			if bad {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are errors")
	return cmd
}
