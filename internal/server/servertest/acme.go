package servertest

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// ACME is a real ACME server (Pebble) on this machine. It validates every name
// at 127.0.0.1.
type ACME struct {
	t          testing.TB
	Directory  string // URL
	CA         string // PEM file: who vouches for the server itself
	HTTPPort   string // where http-01 is asked
	TLSPort    string // where tls-alpn-01 is asked
	Log        *Log
	management string
	dir        string
	env        []string
	cmd        *exec.Cmd
	client     *http.Client
}

// ACMEOptions change how the server is started.
type ACMEOptions struct {
	// Life of certificates; 0 is 90 days.
	Life time.Duration
	// DNS is a name server, host:port; "" answers 127.0.0.1 for everything.
	DNS string
	// EAB are keys of external account binding, which is then required.
	EAB map[string]string
	// OCSP is the responder that certificates name.
	OCSP string
	// Refused are domains that it issues nothing for.
	Refused []string
	// AlwaysValid asks no challenge.
	AlwaysValid bool
}

// StartACME starts a server; it ends with the test.
func StartACME(t testing.TB, o ACMEOptions) *ACME {
	t.Helper()
	a := &ACME{t: t, dir: t.TempDir(), Log: &Log{}}
	ports := make([]string, 4)
	for i := range ports {
		var err error
		if ports[i], err = Port(); err != nil {
			t.Fatal(err)
		}
	}
	a.HTTPPort, a.TLSPort = ports[2], ports[3]
	a.Directory, a.management = "https://127.0.0.1:"+ports[0]+"/dir", "https://127.0.0.1:"+ports[1]
	a.CA = a.makeCertificate()
	if o.DNS == "" {
		o.DNS = startDNS(t)
	}
	if o.Life == 0 {
		o.Life = 90 * 24 * time.Hour
	}
	algorithm := "ecdsa"
	if o.OCSP != "" {
		algorithm = "rsa" // the only keys it gives to a responder
	}
	number := func(s string) int { n, _ := strconv.Atoi(s); return n }
	b, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + ports[0], "managementListenAddress": "127.0.0.1:" + ports[1],
		"certificate": a.CA, "privateKey": filepath.Join(a.dir, "key.pem"),
		"httpPort": number(a.HTTPPort), "tlsPort": number(a.TLSPort), "ocspResponderURL": o.OCSP, "keyAlgorithm": algorithm,
		"externalAccountBindingRequired": o.EAB != nil, "externalAccountMACKeys": o.EAB, "domainBlocklist": o.Refused,
		"retryAfter": map[string]int{"authz": 1, "order": 1},
		// With one profile it picks no other at random.
		"profiles": map[string]any{"ordinary": map[string]any{"description": "d", "validityPeriod": int(o.Life / time.Second)}},
	}})
	if err == nil {
		err = os.WriteFile(filepath.Join(a.dir, "pebble.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=5")
	if o.AlwaysValid {
		a.env = append(a.env, "PEBBLE_VA_ALWAYS_VALID=1")
	}
	a.cmd = exec.Command(Tool(t, "pebble", "github.com/letsencrypt/pebble/v2/cmd/pebble"), "-config", "pebble.json", "-dnsserver", o.DNS)
	a.start()
	t.Cleanup(a.Stop)
	return a
}

func (a *ACME) start() {
	a.t.Helper()
	a.cmd = exec.Command(a.cmd.Path, a.cmd.Args[1:]...)
	a.cmd.Dir, a.cmd.Env, a.cmd.Stdout, a.cmd.Stderr = a.dir, a.env, a.Log, a.Log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The signal comes when the thread ends that started the process.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		started <- a.cmd.Start()
		_ = a.cmd.Wait()
	}()
	if err := <-started; err != nil {
		a.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if b, err := os.ReadFile(a.CA); err != nil || !pool.AppendCertsFromPEM(b) {
		a.t.Fatal("no CA", err)
	}
	a.client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	deadline := time.Now().Add(limit)
	for {
		_, err := a.Get("/roots/0")
		if err == nil {
			res, derr := a.client.Get(a.Directory)
			if err = derr; err == nil {
				res.Body.Close()
				return
			}
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("the ACME server does not answer: %v\n%s", err, a.Log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Stop ends the server; what it issued stays valid.
func (a *ACME) Stop() {
	if a.cmd.Process != nil {
		_ = a.cmd.Process.Kill()
	}
	for range 500 {
		if c, err := net.DialTimeout("tcp", strings.TrimPrefix(a.management, "https://"), time.Second); err != nil {
			return
		} else {
			c.Close()
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Restart starts it again at the same addresses. It has forgotten accounts and
// has a new root.
func (a *ACME) Restart() { a.start() }

// Get reads from the management interface.
func (a *ACME) Get(path string) ([]byte, error) {
	res, err := a.client.Get(a.management + path)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", path, res.Status)
	}
	return b, err
}

// Roots trusts what the server issues.
func (a *ACME) Roots() *x509.CertPool {
	a.t.Helper()
	b, err := a.Get("/roots/0")
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(b) {
		a.t.Fatal("the root cannot be had", err)
	}
	return pool
}

// Issued counts certificates issued so far.
func (a *ACME) Issued() int { return strings.Count(a.Log.String(), "Issued certificate serial") }

// Accounts counts accounts made so far.
func (a *ACME) Accounts() int { return strings.Count(a.Log.String(), " accounts in memory") }

func (a *ACME) makeCertificate() string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ACME server"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		a.t.Fatal(err)
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert := filepath.Join(a.dir, "cert.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, filepath.Join(a.dir, "key.pem"): {Type: "PRIVATE KEY", Bytes: k}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert
}

// startDNS answers 127.0.0.1 for every name.
func startDNS(t testing.TB) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go answerDNS(c)
		}
	}()
	return ln.Addr().String()
}

// answerDNS serves one connection (RFC 1035 §4.2.2): the ACME server asks by
// TCP only.
func answerDNS(c net.Conn) {
	defer c.Close()
	for {
		var size uint16
		if binary.Read(c, binary.BigEndian, &size) != nil {
			return
		}
		b := make([]byte, size)
		var m dnsmessage.Message
		if _, err := io.ReadFull(c, b); err != nil || m.Unpack(b) != nil || len(m.Questions) != 1 {
			return
		}
		q := m.Questions[0]
		m.Response, m.Authoritative, m.Additionals = true, true, nil
		if q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
		}
		out, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}

// Tool gives the path of a test tool of test/tools, built once and kept in
// .bin. The package is "." for one of our own.
func Tool(t testing.TB, name, pkg string) string {
	t.Helper()
	_, here, _, _ := runtime.Caller(0)
	top := filepath.Join(filepath.Dir(here), "..", "..", "..")
	bin := filepath.Join(top, ".bin", name)
	dir := filepath.Join(top, "test", "tools", name)
	fresh := func() bool {
		b, err := os.Stat(bin)
		m, err2 := os.Stat(filepath.Join(dir, "go.mod"))
		return err == nil && err2 == nil && !m.ModTime().After(b.ModTime())
	}
	if fresh() {
		return bin
	}
	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(bin+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if fresh() {
		return bin
	}
	cmd := exec.Command("go", "build", "-o", bin+".new", pkg)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("the test tool %s cannot be built: %v\n%s", name, err, out)
	}
	if err := os.Rename(bin+".new", bin); err != nil {
		t.Fatal(err)
	}
	return bin
}

// StartTool starts a tool that prints its address, and gives that; it ends
// with the test.
func StartTool(t testing.TB, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(Tool(t, name, "."), args...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%s does not say where it listens: %v", name, err)
	}
	return string(bytes.TrimSpace(line))
}
