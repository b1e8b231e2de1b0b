package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"postern/internal/certs"
)

// echKeyCommand makes keys of Encrypted Client Hello.
func echKeyCommand() *cobra.Command {
	var publicName, file string
	var keep int
	cmd := &cobra.Command{
		Use: "ech-key [HOST...]", Short: "Make a key of Encrypted Client Hello, and the DNS records that publish it",
		Long: `Make a key of Encrypted Client Hello (ECH, RFC 9849), which hides from the
network which application a browser asks for. What stands in its place is the
public name: a name of yours that a certificate of Postern is for.

With --file the key is put in front of those in the file, of which the newest
are kept, so that clients with the key of yesterday are still served: name the
file as ech_keys_file, wait until Postern has read it, then publish the records.
Without --file the key is printed; it is a secret.

For each HOST the HTTPS record (RFC 9848) is printed that tells browsers the key.`,
		Example: "  postern ech-key --public-name cover.example.com --file ech.pem app.example.com wiki.example.com",
		RunE: func(cmd *cobra.Command, hosts []string) error {
			if publicName == "" {
				return usageError{errors.New("ech-key: --public-name is missing: give the name that stands in the clear, such as cover.example.com")}
			}
			if keep < 0 || keep > 7 {
				return usageError{errors.New("ech-key: --keep is from 0 to 7")}
			}
			var before []byte
			var others []certs.ECHKey
			if file != "" {
				var err error
				before, err = os.ReadFile(file)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("%w; name another file", err)
				}
				if len(bytes.TrimSpace(before)) > 0 {
					if others, err = certs.ParseECHKeys(before); err != nil {
						return fmt.Errorf("%s: %w", file, err)
					}
				}
			}
			key, err := certs.NewECHKey(publicName, others)
			if err != nil {
				return fmt.Errorf("the key %w", err)
			}
			text, err := key.PEM()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if file == "" {
				fmt.Fprintf(out, "%s\n", text)
			} else {
				for _, old := range others[:min(keep, len(others))] {
					more, err := old.PEM()
					if err != nil {
						return err
					}
					text = append(text, more...)
				}
				if err := putSecret(file, text); err != nil {
					return err
				}
				fmt.Fprintf(out, "%s holds the new key and %d before it.\nech_keys_file: %s\n\n", file, min(keep, len(others)), file)
			}
			if len(hosts) == 0 {
				fmt.Fprintf(out, "ech=%s\n", base64.StdEncoding.EncodeToString(key.List))
			}
			for _, h := range hosts {
				fmt.Fprintln(out, key.Record(strings.ToLower(h)))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&publicName, "public-name", "", "the name that stands in the clear; a certificate must be for it")
	cmd.Flags().StringVar(&file, "file", "", "put the key in front of those in this file")
	cmd.Flags().IntVar(&keep, "keep", 1, "how many older keys of --file go on being accepted")
	return cmd
}

// putSecret writes a file and puts it in place by rename: for its owner alone,
// or for whom the one before was.
func putSecret(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return fmt.Errorf("%w; name a file in a directory that can be written", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if before, statErr := os.Stat(file); statErr == nil {
		err = errors.Join(err, f.Chmod(before.Mode().Perm()))
		if owner, ok := before.Sys().(*syscall.Stat_t); ok && int(owner.Uid) != os.Geteuid() {
			err = errors.Join(err, f.Chown(int(owner.Uid), int(owner.Gid)))
		}
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
