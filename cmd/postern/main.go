// Command postern is the whole program: the proxy, its demonstration and the
// tools around it. One file per subcommand; exit status 0 is good, 1 a failed
// check or run, 2 wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(execute(os.Args[1:]))
}

// execute runs the command line and returns the exit status.
func execute(args []string) int {
	// Interrupt once to drain, twice to leave.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop()
	}()

	root := rootCommand()
	root.SetArgs(legacyArgs(args))
	err := root.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintf(os.Stderr, "postern: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintln(os.Stderr, "See postern --help.")
		return 2
	}
	return 1
}

// exitCode ends the program with a status after everything was said.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// usageError is wrong usage: exit status 2.
type usageError struct{ error }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "postern",
		Short: "An identity-aware reverse proxy",
		Long: `Postern stands in front of private applications, signs people in, decides
every request by policy and tells the application who is there.

Without a subcommand it runs the proxy: postern --config config.yaml.
For a first look: postern demo.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
	}
	config := configFlag(root)
	root.RunE = func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), *config) }
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(
		runCommand(),
		demoCommand(),
		validateCommand(),
		configCommand(),
		policyCommand(),
		schemaCommand(),
		echKeyCommand(),
		usersCommand(),
		sessionsCommand(),
		statusCommand(),
		reloadCommand(),
		healthCommand(),
		versionCommand(),
	)
	return root
}

func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("config", "", "configuration file (.yaml, .json, .toml); environment only if not given")
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%q is not a subcommand or argument of %q", args[0], cmd.CommandPath())}
	}
	return nil
}

func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s: give %s", cmd.CommandPath(), what)}
		}
		return nil
	}
}

// legacyArgs accepts the spellings of old service files: -config FILE,
// -config=FILE (with a warning) and -version (configuration.md §1.1).
func legacyArgs(args []string) []string {
	out := make([]string, 0, len(args))
	for _, a := range args {
		switch {
		case a == "-config" || strings.HasPrefix(a, "-config="):
			fmt.Fprintln(os.Stderr, "postern: -config is the old spelling; write --config")
			a = "-" + a
		case a == "-version" || a == "--version":
			a = "version"
		}
		out = append(out, a)
	}
	return out
}
