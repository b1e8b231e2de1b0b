package main

import (
	"errors"

	"github.com/spf13/cobra"

	"postern/internal/config"
	"postern/internal/policy"
)

// schemaCommand prints the JSON schemas that editors check and complete by.
func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema [config|policy]", Short: "Print the JSON schema of the configuration or of policies, for editors",
		ValidArgs: []string{"config", "policy"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0, len(args) == 1 && args[0] == "config":
				return printJSON(cmd.OutOrStdout(), config.Schema())
			case len(args) == 1 && args[0] == "policy":
				return printJSON(cmd.OutOrStdout(), policy.Schema())
			}
			return usageError{errors.New("postern schema: say config or policy")}
		},
	}
}

// policyReferenceCommand prints the part of docs/policy.md that is made from
// the declarations.
func policyReferenceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "Print the reference page of the policy language", Args: noArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write([]byte(policy.Reference()))
			return err
		},
	}
}
