package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"postern/internal/demo"
	"postern/internal/server"
)

func runCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "run", Short: "Run the proxy (as postern without a subcommand does)", Args: noArgs}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), *path) }
	return cmd
}

// run serves until the context ends. SIGHUP reads the configuration again,
// SIGUSR2 starts the program anew and hands over to it.
func run(ctx context.Context, configFile string) error {
	if configFile != "" {
		if _, err := os.Stat(filepath.Join(filepath.Dir(configFile), demo.Marker)); err == nil {
			return fmt.Errorf("%s belongs to postern demo, whose keys and passwords are known: copy what you need into a configuration of your own", configFile)
		}
	}
	return server.Run(ctx, server.Options{ConfigFile: configFile, Env: os.Environ(), Version: buildVersion(),
		Sighup: signals(ctx, syscall.SIGHUP), Upgrade: signals(ctx, syscall.SIGUSR2)})
}

// signals hands a signal on until ctx ends. While nobody listens, one is kept.
func signals(ctx context.Context, sig os.Signal) <-chan struct{} {
	in := make(chan os.Signal, 1)
	signal.Notify(in, sig)
	out := make(chan struct{})
	go func() {
		defer signal.Stop(in)
		for {
			select {
			case <-ctx.Done():
				return
			case <-in:
			}
			select {
			case <-ctx.Done():
				return
			case out <- struct{}{}:
			}
		}
	}()
	return out
}
