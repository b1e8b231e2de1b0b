package main

import (
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/server"
)

func sessionsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "sessions", Short: "List and revoke sessions of a running server", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(sessionsListCommand(), sessionsRevokeCommand())
	return cmd
}

func sessionsListCommand() *cobra.Command {
	var f controlFlags
	var user string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List living sessions, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			var list []server.SessionInfo
			if err := c.Call(cmd.Context(), "GET", "/v1/sessions?user="+url.QueryEscape(user), nil, &list); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SESSION\tUSER\tSINCE\tUNTIL\tFROM\tKIND")
			for _, s := range list {
				who, kind := s.Email, "browser"
				if who == "" {
					who = s.UserID
				}
				if s.Program {
					kind = "program"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, who, s.IssuedAt.Local().Format(time.DateTime), s.ExpiresAt.Local().Format(time.DateTime), s.RemoteIP, kind)
			}
			return w.Flush()
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&user, "user", "", "only sessions of this user (id or e-mail)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func sessionsRevokeCommand() *cobra.Command {
	var f controlFlags
	var user string
	cmd := &cobra.Command{
		Use: "revoke [ID...]", Short: "End sessions at once, open streams included",
		RunE: func(cmd *cobra.Command, ids []string) error {
			if len(ids) == 0 && user == "" {
				return usageError{fmt.Errorf("give session ids (see postern sessions list) or --user")}
			}
			c, err := f.client()
			if err != nil {
				return err
			}
			var out struct{ Revoked int }
			if err := c.Call(cmd.Context(), "POST", "/v1/sessions/revoke", map[string]any{"ids": ids, "user": user}, &out); err != nil {
				return err
			}
			if out.Revoked == 0 {
				return fmt.Errorf("no such session is alive; see postern sessions list")
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d ended\n", out.Revoked)
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&user, "user", "", "all sessions of this user (id or e-mail)")
	return cmd
}
