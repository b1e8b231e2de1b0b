package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"postern/internal/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	cmd := &cobra.Command{
		Use: "demo", Short: "Try Postern: a private application behind sign-in, on this machine, offline", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.Version, o.Out = buildVersion(), cmd.OutOrStdout()
			if o.DataDir != "" {
				if err := os.MkdirAll(filepath.Dir(o.DataDir), 0o755); err != nil {
					return err
				}
			}
			return demo.Run(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.Listen, "listen", "127.0.0.1:8443", "loopback address to serve")
	cmd.Flags().StringVar(&o.DataDir, "data-dir", "", "where accounts, keys and sessions are kept (default $XDG_DATA_HOME/postern/demo)")
	cmd.Flags().StringVar(&o.ReadyFile, "ready-file", "", "JSON file to write once the demo serves")
	return cmd
}
