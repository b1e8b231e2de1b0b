package acme_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// nameServer is a real BIND with a zone that takes signed updates.
type nameServer struct {
	addr    string
	dir     string
	keyFile string // for nsupdate
	secret  string
}

func startBind(t *testing.T) *nameServer {
	t.Helper()
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	// Not below the test's own directory: named must be able to write there.
	dir, err := os.MkdirTemp("", "named-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n := &nameServer{addr: "127.0.0.1:" + port, dir: dir, keyFile: filepath.Join(dir, "acme.key"), secret: base64.StdEncoding.EncodeToString([]byte("a key for this test, 32 bytes ok."))}
	for name, text := range map[string]string{
		"acme.key": fmt.Sprintf("key \"acme\" {\n\talgorithm hmac-sha256;\n\tsecret \"%s\";\n};\n", n.secret),
		"512.key":  fmt.Sprintf("key \"acme512\" {\n\talgorithm hmac-sha512;\n\tsecret \"%s\";\n};\n", n.secret),
		"secret":   n.secret + "\n",
		"zone":     "$TTL 60\n@ SOA ns.zt.test. admin.zt.test. 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n* A 127.0.0.1\n",
		"named.conf": fmt.Sprintf(`include "%[1]s/acme.key"; include "%[1]s/512.key";
options { directory "%[1]s"; listen-on port %[2]s { 127.0.0.1; }; listen-on-v6 { none; }; recursion no; pid-file "%[1]s/pid"; session-keyfile "%[1]s/session.key"; dnssec-validation no; };
controls { };
zone "zt.test" { type master; file "%[1]s/zone"; allow-update { key acme; key acme512; }; };
`, dir, port),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := &servertest.Log{}
	named := "/usr/sbin/named"
	cmd := exec.Command(named, "-g", "-4", "-c", filepath.Join(dir, "named.conf"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; install bind9", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	deadline := time.Now().Add(patience)
	for {
		c, err := net.Dial("tcp", n.addr)
		if err == nil {
			c.Close()
			return n
		}
		if time.Now().After(deadline) {
			t.Fatalf("named does not answer: %v\n%s", err, log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// script is a program that writes records by nsupdate.
func (n *nameServer) script(t *testing.T) string {
	t.Helper()
	file := filepath.Join(n.dir, "dns-hook")
	host, port, _ := net.SplitHostPort(n.addr)
	text := fmt.Sprintf("#!/bin/sh\necho \"$@\" >> %[1]s/calls\nenv > %[1]s/env\ncase $1 in present) do=add;; cleanup) do=delete;; *) exit 1;; esac\n"+
		"printf 'server %[2]s %[3]s\\nzone zt.test\\nupdate %%s %%s 60 TXT %%s\\nsend\\n' $do \"$2\" \"$3\" | nsupdate -k %[4]s\n", n.dir, host, port, n.keyFile)
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func lines(list ...string) string { return strings.Join(list, "\n") }

// A wildcard host gets a certificate by dns-01, by each kind of provider.
func TestDNS(t *testing.T) {
	t.Parallel()
	for name, settingsOf := range map[string]func(t *testing.T, n *nameServer) string{
		"rfc2136": func(t *testing.T, n *nameServer) string {
			return lines("autocert_dns_provider: rfc2136", "autocert_dns_server: "+n.addr, "autocert_dns_tsig_key: acme", "autocert_dns_tsig_secret: "+n.secret)
		},
		"rfc2136 without looking": func(t *testing.T, n *nameServer) string {
			return lines("autocert_dns_provider: rfc2136", "autocert_dns_server: "+n.addr, "autocert_dns_zone: zt.test", "autocert_dns_tsig_key: acme512",
				"autocert_dns_tsig_algorithm: hmac-sha512", "autocert_dns_tsig_secret_file: "+filepath.Join(n.dir, "secret"), "autocert_dns_propagation_timeout: 0s")
		},
		"exec": func(t *testing.T, n *nameServer) string {
			return lines("autocert_dns_provider: exec", "autocert_dns_command: "+n.script(t))
		},
		"webhook": func(t *testing.T, n *nameServer) string {
			hook := n.webhook(t)
			secret := filepath.Join(n.dir, "token")
			if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return lines("autocert_dns_provider: webhook", "autocert_dns_webhook: "+hook.URL, "autocert_dns_webhook_secret_file: "+secret)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startBind(t)
			a := servertest.StartACME(t, servertest.ACMEOptions{DNS: n.addr})
			text := settings(a, "autocert_dns_resolvers: ["+n.addr+"]\n"+settingsOf(t, n), "*.wild.zt.test", "plain.zt.test")
			// The ACME server finds nobody at its own ports: by DNS or not at all.
			text = strings.Replace(text, "address: 127.0.0.1:"+a.TLSPort, "address: 127.0.0.1:0", 1)
			p := servertest.Start(t, text)
			for _, host := range []string{"any.wild.zt.test", "plain.zt.test"} {
				serves(t, p, a, host)
			}
			if c, err := leaf(p, "deep.any.wild.zt.test", a.Roots()); err == nil {
				t.Errorf("a wildcard of one label serves %v", c.DNSNames)
			}
			eventually(t, "records taken away", p, func() error {
				out, err := exec.Command("dig", "+short", "-p", n.addr[strings.LastIndexByte(n.addr, ':')+1:], "@127.0.0.1", "TXT", "_acme-challenge.wild.zt.test").CombinedOutput()
				if len(out) > 0 {
					return fmt.Errorf("%s, %v", out, err)
				}
				return err
			})
			if strings.Contains(p.Log.String(), n.secret) || strings.Contains(p.Log.String(), "hunter2") {
				t.Error("the log holds a secret")
			}
			if name == "exec" {
				env, _ := os.ReadFile(filepath.Join(n.dir, "env"))
				if strings.Contains(string(env), "HOME=") || !strings.Contains(string(env), "PATH=") {
					t.Errorf("the program's environment is\n%s", env)
				}
			}
		})
	}
}

// webhook writes records for requests that bear the secret.
func (n *nameServer) webhook(t *testing.T) *httptest.Server {
	script := n.script(t)
	var one sync.Mutex
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Action, FQDN, Value string }
		b, _ := io.ReadAll(r.Body)
		if r.Method != "POST" || r.Header.Get("Authorization") != "Bearer hunter2" || json.Unmarshal(b, &in) != nil {
			http.Error(w, "no", 403)
			return
		}
		one.Lock()
		defer one.Unlock()
		if out, err := exec.Command(script, in.Action, in.FQDN, in.Value).CombinedOutput(); err != nil {
			http.Error(w, string(out), 500)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// A refusal says who refused what.
func TestDNSRefused(t *testing.T) {
	t.Parallel()
	n := startBind(t)
	a := servertest.StartACME(t, servertest.ACMEOptions{DNS: n.addr})
	wrong := base64.StdEncoding.EncodeToString([]byte("another key"))
	p := servertest.Start(t, settings(a, "autocert_dns_resolvers: ["+n.addr+"]\nautocert_dns_provider: rfc2136\nautocert_dns_server: "+n.addr+
		"\nautocert_dns_tsig_key: acme\nautocert_dns_tsig_secret: "+wrong, "*.wild.zt.test"), servertest.Options{NoLocalCA: true})
	eventually(t, "an error", p, func() error {
		if s := state(p, "*.wild.zt.test"); !strings.Contains(s.Error, "DNS server "+n.addr) {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
}
