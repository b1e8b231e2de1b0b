//go:build extended

package system

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// An operator turns autocert on for a program that runs, and gets a
// certificate; it is renewed; the authority goes away, and what is there goes
// on serving.
func TestAutocertAsAnOperator(t *testing.T) {
	t.Parallel()
	a := servertest.StartACME(t, servertest.ACMEOptions{Life: 30 * time.Second})
	dir, err := os.MkdirTemp("", "pa-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config.yaml")
	write := func(more string) {
		text := "address: 127.0.0.1:" + a.TLSPort + "\nhealth_check_addr: 127.0.0.1:0\ndata_dir: " + dir + "\n" + more +
			"routes:\n  - {from: 'https://app.zt.test', response: {status: 200, body: hello}, allow_public_unauthenticated_access: true}\n"
		if err := os.WriteFile(config+".new", []byte(text), 0o600); err == nil {
			err = os.Rename(config+".new", config)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("")
	p, err := startProcess(exec.Command(program, "--config", config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(syscall.SIGTERM); err != nil {
			t.Errorf("%v\n%s", err, p.out)
		}
	})
	leaf := func(roots *x509.CertPool) (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", "127.0.0.1:"+a.TLSPort, &tls.Config{ServerName: "app.zt.test", RootCAs: roots, InsecureSkipVerify: roots == nil})
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	}
	wait := func(what string, f func() error) {
		t.Helper()
		if err := eventually(45*time.Second, f); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, p.out)
		}
	}
	status := func() string {
		out, err := exec.Command(program, "status", "--config", config).CombinedOutput()
		if err != nil {
			return err.Error()
		}
		return string(out)
	}
	wait("serving", func() error { _, err := leaf(nil); return err })
	if _, err := leaf(a.Roots()); err == nil {
		t.Fatal("there is a certificate before anybody asked")
	}

	write("autocert: true\nautocert_ca: " + a.Directory + "\nautocert_trusted_ca_file: " + a.CA + "\nautocert_dir: " + dir + "/autocert\n")
	var first *x509.Certificate
	roots := a.Roots()
	wait("a certificate", func() (err error) { first, err = leaf(roots); return err })
	if out := status(); !strings.Contains(out, "app.zt.test") || !strings.Contains(out, "valid") {
		t.Error(out)
	}
	wait("a renewal", func() error {
		c, err := leaf(roots)
		if err == nil && c.SerialNumber.Cmp(first.SerialNumber) == 0 {
			err = errors.New("it is the first one still")
		}
		return err
	})

	second, err := leaf(roots)
	if err != nil {
		t.Fatal(err)
	}
	a.Stop()
	wait("a failed renewal", func() error {
		if out := status(); !strings.Contains(out, "failing") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if c, err := leaf(roots); err != nil || c.SerialNumber.Cmp(second.SerialNumber) != 0 {
		t.Errorf("the certificate did not stay: %v", err)
	}
}
