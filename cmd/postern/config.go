package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/internal/config"
)

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Tell about configuration keys", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(configKeysCommand(), configReferenceCommand())
	return cmd
}

// configKeysCommand lists the same declarations that parse.
func configKeysCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "keys", Short: "List every key with type, default, environment variable and whether it acts", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys := config.Keys()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), keys)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "KEY\tTYPE\tDEFAULT\tENV\tSTATUS")
			for _, k := range keys {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Name, k.Type, k.Default, k.Env, k.Status)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, with documentation")
	return cmd
}

func configReferenceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reference", Short: "Print the reference page of all keys in Markdown", Args: noArgs, Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), config.Reference())
			return err
		},
	}
}
