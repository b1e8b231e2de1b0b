//go:build extended

package conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// h2spec runs the suite against an address over TLS and gives the cases that
// fail, and how many there are.
func h2spec(t *testing.T, addr string) (failed []string, skipped, cases int) {
	t.Helper()
	bin := servertest.Tool(t, "h2spec", "github.com/summerwind/h2spec/cmd/h2spec")
	report := filepath.Join(t.TempDir(), "report.xml")
	host, port, _ := net.SplitHostPort(addr)
	out, err := exec.Command(bin, "-h", host, "-p", port, "-t", "-k", "-o", "3", "--junit-report", report).CombinedOutput()
	b, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("h2spec left no report: %v\n%s", err, out)
	}
	var suites struct {
		Suites []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Package string    `xml:"package,attr"`
				Class   string    `xml:"classname,attr"`
				Failure *struct{} `xml:"failure"`
				Error   *struct{} `xml:"error"`
				Skipped *struct{} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(b, &suites); err != nil {
		t.Fatal(err)
	}
	for _, s := range suites.Suites {
		for _, c := range s.Cases {
			cases++
			if c.Skipped != nil {
				skipped++
			}
			if c.Failure != nil || c.Error != nil {
				failed = append(failed, c.Package+": "+c.Class)
			}
		}
	}
	slices.Sort(failed)
	return failed, skipped, cases
}

// Postern fails nothing of h2spec that Go's own server passes: it adds no
// fault of its own to the codec that it is built on.
func TestH2SpecIsNoWorseThanGo(t *testing.T) {
	plain := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "hello\n")
	}))
	plain.EnableHTTP2 = true
	plain.Config.ErrorLog = log.New(io.Discard, "", 0)
	plain.StartTLS()
	defer plain.Close()
	p := servertest.Start(t, `
routes:
  - {from: https://127.0.0.1, to: @APP@, allow_public_unauthenticated_access: true}
`)
	baseline, skipped, cases := h2spec(t, plain.Listener.Addr().String())
	ours, left, mine := h2spec(t, p.Main)
	t.Logf("h2spec: Postern passes %d of %d, net/http %d of %d", mine-left-len(ours), mine, cases-skipped-len(baseline), cases)
	for _, f := range ours {
		t.Log("fails: ", f)
		if !slices.Contains(baseline, f) {
			t.Errorf("net/http passes %s", f)
		}
	}
	if cases < 140 || mine != cases {
		t.Errorf("%d cases, and %d against net/http: the suite did not run whole", mine, cases)
	}
}

// slow is an attack of slowhttptest.
type slow struct {
	name string
	args []string
}

// While hundreds of clients are slow in every way that slowhttptest knows, the
// others are served as if nobody were; the slow ones are closed.
func TestSlowClientsHinderNobody(t *testing.T) {
	bin, err := exec.LookPath("slowhttptest")
	if err != nil {
		t.Fatalf("%v; run test/deps.sh extended", err)
	}
	p := servertest.Start(t, `
timeout_read: 8s
routes:
  - {from: https://127.0.0.1, to: @APP@, allow_public_unauthenticated_access: true}
  - {from: https://app.localhost, to: @APP@, allow_public_unauthenticated_access: true}
`)
	agent := p.Agent()
	for _, s := range []slow{
		{"slow headers", []string{"-H", "-i", "2"}},
		{"slow body", []string{"-B", "-i", "2", "-s", "8192"}},
		{"slow reading", []string{"-X", "-w", "10", "-y", "20", "-n", "2", "-z", "32", "-k", "3"}},
		{"many ranges", []string{"-R", "-a", "10", "-b", "3000"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			args := append(s.args, "-c", "400", "-r", "200", "-l", "20", "-p", "3", "-u", "https://"+p.Main+"/")
			cmd := exec.Command(bin, args...)
			cmd.Dir = t.TempDir()
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			asked, worst := 0, time.Duration(0)
			pace := time.NewTicker(20 * time.Millisecond)
			defer pace.Stop()
			for over := false; !over; <-pace.C {
				select {
				case <-ended:
					over = true
				default:
				}
				began := time.Now()
				c, err := agent.Dial("app.localhost", "http/1.1")
				if err != nil {
					t.Fatalf("somebody else was not let in: %v", err)
				}
				answers, err := say(c, "GET /other HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n", false)
				if err != nil || len(answers) != 1 || answers[0] != "200" {
					t.Fatalf("somebody else was answered %q, %v", answers, err)
				}
				asked++
				worst = max(worst, time.Since(began))
			}
			plain := regexp.MustCompile("\x1b\\[[0-9;]*[A-Za-z]").ReplaceAllString(out.String(), "")
			available := regexp.MustCompile(`service available:\s+(\w+)`).FindAllStringSubmatch(plain, -1)
			for _, a := range available {
				if a[1] != "YES" {
					t.Error("slowhttptest found the service unavailable")
				}
			}
			if len(available) == 0 || asked == 0 {
				t.Errorf("the attack did not run:\n%s", plain)
			}
			last := plain[max(0, strings.LastIndex(plain, "Exit status")):]
			t.Logf("%d others served on new connections meanwhile, the slowest in %v; service available in all %d reports; %s",
				asked, worst.Round(time.Millisecond), len(available), strings.TrimSpace(strings.SplitN(last+"\n", "\n", 2)[0]))
		})
	}
}

// leaf is a CA and a certificate for app.localhost, as an operator's might be.
func leaf(t *testing.T) (ca, cert, key []byte) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Fixture CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign}
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: "app.localhost"}, DNSNames: []string{"app.localhost"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 80),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, own.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	return block("CERTIFICATE", rootDER), block("CERTIFICATE", der), block("PRIVATE KEY", keyDER)
}

// ofTheFixture are findings about the test's own certificate and address, not
// about the server.
var ofTheFixture = regexp.MustCompile(`^(cert_.*|OCSP_stapling|DNS_CAArecord|scanTime|engine_problem|optimal_proto|service)$`)

// known is the one finding of severity LOW: crypto/tls names seven days as the
// life of every ticket of TLS 1.3 and has no setting for it.
var known = regexp.MustCompile(`^TLS_session_ticket$`)

// testssl.sh finds nothing of severity MEDIUM or above, and nothing new of
// severity LOW.
func TestScannerFindsNothing(t *testing.T) {
	bin, err := exec.LookPath("testssl")
	if err != nil {
		t.Fatalf("%v; run test/deps.sh extended", err)
	}
	ca, cert, key := leaf(t)
	b64 := base64.StdEncoding.EncodeToString
	p := servertest.Start(t, fmt.Sprintf(`
certificate: %s
certificate_key: %s
routes:
  - {from: https://app.localhost, to: @APP@, allow_public_unauthenticated_access: true}
`, b64(cert), b64(key)), servertest.Options{NoLocalCA: true})
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), string(ca))
	_, port, _ := net.SplitHostPort(p.Main)
	report := filepath.Join(dir, "report.json")
	cmd := exec.Command(bin, "--quiet", "--color", "0", "--warnings", "batch", "--add-ca", filepath.Join(dir, "ca.pem"), "--nodns", "none",
		"--ip", "127.0.0.1", "--jsonfile", report, "app.localhost:"+port)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	b, readErr := os.ReadFile(report)
	if readErr != nil {
		t.Fatalf("testssl left no report: %v\n%s", err, out)
	}
	var findings []struct{ ID, Severity, Finding string }
	if err := json.Unmarshal(b, &findings); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	counts := map[string]int{}
	for _, f := range findings {
		counts[f.Severity]++
		switch f.Severity {
		case "OK", "INFO", "DEBUG":
			continue
		case "LOW":
			t.Logf("LOW %s: %s", f.ID, f.Finding)
			if !known.MatchString(f.ID) {
				t.Errorf("LOW %s is new", f.ID)
			}
			continue
		}
		if ofTheFixture.MatchString(f.ID) {
			t.Logf("of the fixture: %s %s: %s", f.Severity, f.ID, f.Finding)
			continue
		}
		t.Errorf("%s %s: %s", f.Severity, f.ID, f.Finding)
	}
	if counts["OK"] < 30 {
		t.Errorf("only %d findings are OK: the scan did not run whole\n%s", counts["OK"], out)
	}
	t.Logf("testssl.sh: %v", counts)
}
