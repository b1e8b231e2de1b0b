package main

import (
	"crypto/rand"
	"errors"

	"github.com/spf13/cobra"

	"postern/internal/authz"
	"postern/internal/policy/policytest"
	"postern/internal/session"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Check and test policies", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policyTestCommand(), policyExplainCommand(), policyCheckCommand(), policyWhoCanCommand(), policyDiffCommand(), policyReferenceCommand())
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
	cmd.Flags().BoolVar(&o.Cover, "cover", false, "tell which rules and criteria no case reached")
	cmd.Flags().BoolVar(&o.Mutate, "mutate", false, "put the cases to deliberately broken variants of the policies; exit 1 if one survives")
	cmd.Flags().BoolVarP(&o.Verbose, "verbose", "v", false, "print passed cases and their reasons too")
	return cmd
}
