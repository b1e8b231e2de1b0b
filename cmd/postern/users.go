package main

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/internal/identity"
	"postern/internal/server"
	"postern/internal/session"
)

// usersCommand keeps local accounts (decision 15): in a file given with --file
// or named by local_users_file, or as records of a running server.
func usersCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "users", Short: "Keep local accounts", Args: noArgs,
		Long: `Local accounts let people sign in without another identity provider. They are
kept in a file (--file, or local_users_file of --config) or, where there is
none, as records of the running server (--control or --config).`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(usersAddCommand(), usersPasswordCommand(), usersRemoveCommand(), usersListCommand())
	return cmd
}

// accounts is one place where local accounts are kept.
type accounts interface {
	list(cmd *cobra.Command) ([]server.AccountInfo, error)
	put(cmd *cobra.Command, a server.AccountChange) error
	remove(cmd *cobra.Command, email string) error
}

type usersFlags struct {
	controlFlags
	file string
}

func (f *usersFlags) add(cmd *cobra.Command) {
	f.controlFlags.add(cmd)
	cmd.Flags().StringVar(&f.file, "file", "", "file of local accounts")
}

func (f *usersFlags) place() (accounts, error) {
	if f.file != "" {
		return usersFile(f.file), nil
	}
	if f.socket == "" {
		cfg, err := loadConfig(f.config)
		if err != nil {
			return nil, err
		}
		if file := cfg.Identity.LocalUsersFile; file != "" {
			return usersFile(file), nil
		}
	}
	c, err := f.client()
	if err != nil {
		return nil, err
	}
	return serverAccounts{c}, nil
}

func usersAddCommand() *cobra.Command {
	var f usersFlags
	var name, id string
	var groups []string
	var fromStdin bool
	cmd := &cobra.Command{
		Use: "add EMAIL", Short: "Add an account, with a password that is asked for or generated", Args: exactArgs(1, "the e-mail address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			place, err := f.place()
			if err != nil {
				return err
			}
			password, generated, err := readPassword(cmd, fromStdin)
			if err != nil {
				return err
			}
			if err := place.put(cmd, server.AccountChange{AccountInfo: server.AccountInfo{ID: id, Email: args[0], Name: name, Groups: groups}, Password: password, Create: true}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s may sign in now\n", args[0])
			if generated {
				fmt.Fprintf(cmd.OutOrStdout(), "password: %s\n", password)
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&name, "name", "", "display name")
	cmd.Flags().StringVar(&id, "id", "", "id of the account; made from the address if not given")
	cmd.Flags().StringArrayVar(&groups, "group", nil, "group (repeatable)")
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input; else one is generated and printed")
	return cmd
}

func usersPasswordCommand() *cobra.Command {
	var f usersFlags
	var fromStdin bool
	cmd := &cobra.Command{
		Use: "password EMAIL", Short: "Set a new password", Args: exactArgs(1, "the e-mail address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			place, err := f.place()
			if err != nil {
				return err
			}
			password, generated, err := readPassword(cmd, fromStdin)
			if err != nil {
				return err
			}
			if err := place.put(cmd, server.AccountChange{AccountInfo: server.AccountInfo{Email: args[0]}, Password: password}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s has a new password\n", args[0])
			if generated {
				fmt.Fprintf(cmd.OutOrStdout(), "password: %s\n", password)
			}
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input; else one is generated and printed")
	return cmd
}

func usersRemoveCommand() *cobra.Command {
	var f usersFlags
	cmd := &cobra.Command{
		Use: "remove EMAIL", Short: "Remove an account", Args: exactArgs(1, "the e-mail address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			place, err := f.place()
			if err != nil {
				return err
			}
			if err := place.remove(cmd, args[0]); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s was removed\n", args[0])
			return nil
		},
	}
	f.add(cmd)
	return cmd
}

func usersListCommand() *cobra.Command {
	var f usersFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Short: "List accounts", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			place, err := f.place()
			if err != nil {
				return err
			}
			list, err := place.list(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "EMAIL\tNAME\tGROUPS\tID")
			for _, a := range list {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", a.Email, a.Name, strings.Join(a.Groups, ","), a.ID)
			}
			return w.Flush()
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// readPassword takes a line of standard input, or makes a password.
func readPassword(cmd *cobra.Command, fromStdin bool) (password string, generated bool, err error) {
	if !fromStdin {
		return rand.Text()[:20], true, nil
	}
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	password = strings.TrimRight(line, "\r\n")
	if password == "" {
		return "", false, fmt.Errorf("standard input holds no password: give it as one line (%w)", err)
	}
	return password, false, nil
}

// usersFile keeps accounts in a local_users_file; a running server notices.
type usersFile string

func (f usersFile) read() ([]session.LocalAccount, error) {
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return identity.ParseUsers(b)
}

func (f usersFile) write(list []session.LocalAccount) error {
	b, err := identity.FormatUsers(list)
	if err != nil {
		return err
	}
	if _, err := identity.ParseUsers(b); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(string(f)), ".users-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), string(f))
}

func (f usersFile) list(*cobra.Command) ([]server.AccountInfo, error) {
	list, err := f.read()
	out := []server.AccountInfo{}
	for _, a := range list {
		out = append(out, server.AccountInfo{ID: a.ID, Email: a.Email, Name: a.Name, Groups: a.Groups, Disabled: a.Disabled})
	}
	return out, err
}

func (f usersFile) put(_ *cobra.Command, change server.AccountChange) error {
	list, err := f.read()
	if err != nil {
		return err
	}
	list, err = change.Apply(list)
	if err != nil {
		return err
	}
	return f.write(list)
}

func (f usersFile) remove(_ *cobra.Command, email string) error {
	list, err := f.read()
	if err != nil {
		return err
	}
	n := len(list)
	list = slices.DeleteFunc(list, func(a session.LocalAccount) bool { return strings.EqualFold(a.Email, email) || a.ID == email })
	if len(list) == n {
		return fmt.Errorf("%s holds no account %s; see postern users list", f, email)
	}
	return f.write(list)
}

// serverAccounts keeps accounts as records of a running server.
type serverAccounts struct{ c *server.Client }

func (s serverAccounts) list(cmd *cobra.Command) (out []server.AccountInfo, err error) {
	err = s.c.Call(cmd.Context(), "GET", "/v1/users", nil, &out)
	return out, err
}

func (s serverAccounts) put(cmd *cobra.Command, change server.AccountChange) error {
	return s.c.Call(cmd.Context(), "PUT", "/v1/users", change, nil)
}

func (s serverAccounts) remove(cmd *cobra.Command, email string) error {
	return s.c.Call(cmd.Context(), "DELETE", "/v1/users", map[string]string{"email": email}, nil)
}
