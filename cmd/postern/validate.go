package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"postern/internal/config"
	"postern/internal/server"
)

// loadConfig reads a configuration for a tool; what does not stop it is said
// by validate and the server.
func loadConfig(path string) (*config.Config, error) {
	cfg, problems := config.LoadFile(path, os.Environ())
	if cfg == nil {
		for _, p := range problems {
			if p.Level == config.LevelFatal {
				fmt.Fprintln(os.Stderr, p)
			}
		}
		return nil, errors.New("the configuration has errors: mend what is listed above")
	}
	return cfg, nil
}

// validateCommand is the build of a generation without binding and swap
// (decision 33: no network).
func validateCommand() *cobra.Command {
	var strict, asJSON bool
	cmd := &cobra.Command{
		Use: "validate", Short: "Check a configuration without starting anything", Args: noArgs,
		Long: `Reads the configuration and all files it names, and compiles routes and
policies. Every problem is printed with file, line and column. No network is
touched. Exit status 1 if the configuration would not load.

Settings that would narrow access and that this version does not enforce yet are
named too: such a configuration is well formed, but this version refuses to
start with it. With --strict these, and warnings, are errors.`,
	}
	path := configFlag(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings, and settings that this version refuses to start with, are errors")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print problems as JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, problems := config.LoadFile(*path, os.Environ())
		if cfg != nil {
			problems = append(problems, server.Check(cfg)...)
		}
		problems = config.ForValidate(problems)
		bad := config.Fatal(problems)
		var start []config.Problem
		if cfg != nil {
			start = cfg.StartProblems()
		}
		if strict {
			for _, p := range problems {
				bad = bad || p.Level <= config.LevelWarning
			}
			bad = bad || len(start) > 0
		}
		if asJSON {
			if err := printJSON(cmd.OutOrStdout(), map[string]any{"ok": !bad, "problems": problems, "refused_at_start": start}); err != nil {
				return err
			}
		} else {
			for _, p := range problems {
				fmt.Fprintln(cmd.ErrOrStderr(), p)
			}
			for _, p := range start {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s (this version refuses to start with it)\n", p)
			}
		}
		if bad {
			return exitCode(1)
		}
		if !asJSON {
			fmt.Fprintf(cmd.OutOrStdout(), "%d routes, %d settings read: the configuration loads\n", len(cfg.Routes), len(cfg.Files()))
		}
		return nil
	}
	return cmd
}
