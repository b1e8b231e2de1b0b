package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sort"
	"time"

	"github.com/spf13/cobra"
)

// healthCommand asks the health listener (wire-contract.md §2).
func healthCommand() *cobra.Command {
	var addr string
	var expect []string
	var verbose bool
	cmd := &cobra.Command{
		Use: "health", Short: "Ask a running server's health listener; exit status 1 if it is not well", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := &http.Client{Timeout: 5 * time.Second}
			res, err := client.Get("http://" + addr + "/status")
			if err != nil {
				return fmt.Errorf("nobody answers at %s: start postern, or name its health_check_addr with -a: %w", addr, err)
			}
			defer res.Body.Close()
			var s struct {
				Statuses map[string]struct {
					Status string `json:"status"`
					Error  string `json:"error"`
				} `json:"statuses"`
				Checks []string `json:"checks"`
			}
			if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&s); err != nil {
				return fmt.Errorf("%s does not answer like a health listener: %w", addr, err)
			}
			want := s.Checks
			if len(expect) > 0 {
				want = expect
			}
			names := make([]string, 0, len(s.Statuses))
			for n := range s.Statuses {
				names = append(names, n)
			}
			for _, n := range want {
				if !slices.Contains(names, n) {
					names = append(names, n)
				}
			}
			sort.Strings(names)
			failed := 0
			for _, n := range names {
				st := s.Statuses[n]
				bad := slices.Contains(want, n) && (st.Status != "RUNNING" || st.Error != "")
				if bad {
					failed++
				}
				if bad || verbose {
					word := st.Status
					if word == "" {
						word = "UNKNOWN"
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s: %s %s\n", n, word, st.Error)
				}
			}
			if failed > 0 {
				return exitCode(1)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&addr, "addr", "a", "127.0.0.1:28080", "address of the health listener")
	cmd.Flags().StringArrayVarP(&expect, "expect", "e", nil, "check that must be running (repeatable); all required ones if not given")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "print every check")
	return cmd
}
