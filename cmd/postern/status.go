package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/certs/acme"
	"postern/internal/server"
)

// controlFlags add the ways to name a running server: its configuration, or
// its control socket.
type controlFlags struct{ config, socket string }

func (f *controlFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", "", "configuration of the running server")
	cmd.Flags().StringVar(&f.socket, "control", "", "control socket of the running server")
}

func (f *controlFlags) client() (*server.Client, error) {
	path := f.socket
	if path == "" {
		cfg, err := loadConfig(f.config)
		if err != nil {
			return nil, err
		}
		path = server.ControlPath(cfg)
	}
	if path == "" {
		return nil, fmt.Errorf("the control socket is off (control_address): name another with --control")
	}
	return server.Dial(path), nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func statusCommand() *cobra.Command {
	var f controlFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "Ask a running server how it is", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var s server.Status
			if err := c.Call(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if asJSON {
				return printJSON(w, s)
			}
			fmt.Fprintf(w, "postern %s, up %s, generation %d, %d routes, records in %s\n",
				s.Version, time.Since(s.StartedAt).Round(time.Second), s.Generation, s.Routes, s.Storage)
			fmt.Fprintf(w, "configuration %s, checksum %s, taken %s\n", s.Config.File, s.Config.Checksum, s.Config.LoadedAt.Local().Format(time.DateTime))
			for _, k := range sortedKeys(s.Listeners) {
				fmt.Fprintf(w, "  listening: %-10s %s\n", k, s.Listeners[k])
			}
			for _, k := range sortedKeys(s.Checks) {
				fmt.Fprintf(w, "  check: %-26s %s\n", k, s.Checks[k])
			}
			for _, u := range s.Upstreams {
				fmt.Fprintf(w, "  upstream: %s at %s of %s is %s since %s: %s\n", u.Endpoint, u.Address, u.From, u.State, u.Since.Local().Format(time.DateTime), u.Reason)
			}
			if more := s.UpstreamsOut - len(s.Upstreams); more > 0 {
				fmt.Fprintf(w, "  upstream: %d more hosts are unhealthy or ejected\n", more)
			}
			for _, c := range s.Certificates {
				fmt.Fprintf(w, "  certificate: %s\n", certificateLine(c))
			}
			if r := s.Config.Refused; r != nil {
				fmt.Fprintf(w, "  refused change: checksum %s, %s\n", r.Checksum, r.At.Local().Format(time.DateTime))
			}
			for _, p := range s.Config.Problems {
				fmt.Fprintf(w, "  refused change: %s\n", p)
			}
			for _, r := range s.Config.Isolated {
				fmt.Fprintf(w, "  isolated route: %s: %s (%s): %s\n", r.Place, r.Path, r.From, r.Problem)
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// certificateLine tells how the certificate of one host is.
func certificateLine(c acme.HostStatus) string {
	line := fmt.Sprintf("%-30s %-10s", c.Name, c.State)
	if !c.NotAfter.IsZero() {
		line += " until " + c.NotAfter.Local().Format(time.DateTime)
	}
	if !c.Next.IsZero() {
		line += ", next attempt " + c.Next.Local().Format(time.DateTime)
	}
	if c.Error != "" {
		line += ": " + c.Error
	}
	return line
}

func sortedKeys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func reloadCommand() *cobra.Command {
	var f controlFlags
	cmd := &cobra.Command{
		Use: "reload", Short: "Make a running server read its configuration again", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var out struct {
				OK       bool
				Problems []string
			}
			if err := c.Call(cmd.Context(), "POST", "/v1/reload", nil, &out); err != nil {
				return err
			}
			for _, p := range out.Problems {
				fmt.Fprintln(cmd.ErrOrStderr(), p)
			}
			if !out.OK {
				return fmt.Errorf("the new configuration was refused and the old one goes on serving: mend what is listed above")
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the configuration was taken")
			return nil
		},
	}
	f.add(cmd)
	return cmd
}
