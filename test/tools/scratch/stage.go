package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// stage is a running proxy in front of a running upstream.
type stage struct {
	dir      string
	places   places
	addr     string // of the proxy
	port     string
	metrics  string
	roots    *x509.CertPool
	ca       *x509.Certificate
	caKey    *ecdsa.PrivateKey
	proxy    *exec.Cmd
	upstream *exec.Cmd
	hold     io.Closer // the upstream lives as long as this is open
	ended    chan error
	control  *http.Client
	source   atomic.Uint32
}

// freePort is below the range of outgoing connections, so that none of those
// can take it.
func freePort() (string, error) {
	for range 1000 {
		n, err := rand.Int(rand.Reader, big.NewInt(18000))
		if err != nil {
			return "", err
		}
		port := strconv.Itoa(12000 + int(n.Int64()))
		ln, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		ln.Close()
		return port, nil
	}
	return "", errors.New("no free port")
}

func newStage(ctx context.Context) (*stage, error) {
	dir, err := os.MkdirTemp("", "scr-")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir, ended: make(chan error, 1)}
	if err := s.authority(); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s.upstream = exec.Command(self, "upstream")
	s.upstream.Stderr = os.Stderr
	hold, err := s.upstream.StdinPipe()
	if err != nil {
		return nil, err
	}
	s.hold = hold
	out, err := s.upstream.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.upstream.Start(); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&s.places); err != nil {
		return nil, fmt.Errorf("the upstream did not start: %w", err)
	}
	for _, p := range []*string{&s.port, &s.metrics} {
		if *p, err = freePort(); err != nil {
			return nil, err
		}
	}
	s.addr = "127.0.0.1:" + s.port
	s.metrics = "127.0.0.1:" + s.metrics
	s.control = &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(dir, "c.sock"))
	}}}
	return s, s.certificate(0)
}

func (s *stage) close() {
	if s.proxy != nil {
		s.proxy.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(20 * time.Second):
			s.proxy.Process.Kill()
		}
	}
	if s.hold != nil {
		s.hold.Close()
		s.upstream.Wait()
	}
	os.RemoveAll(s.dir)
}

var hosts = []string{"app.localhost", "victim.localhost", "grpc.localhost"}

// authority makes the CA.
func (s *stage) authority() (err error) {
	if s.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "scratch"}, NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, t, t, s.caKey.Public(), s.caKey)
	if err != nil {
		return err
	}
	if s.ca, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(s.ca)
	return nil
}

// certificate puts certificate number n in place, with a key of its own.
func (s *stage) certificate(n int) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(int64(n) + 2), Subject: pkix.Name{CommonName: "scratch " + strconv.Itoa(n)}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, t, s.ca, key.Public(), s.caKey)
	if err != nil {
		return err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	// One file for both, so that nobody reads half of a pair.
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})...)
	return s.put("cert.pem", text)
}

func (s *stage) put(name string, b []byte) error {
	next := filepath.Join(s.dir, name+".next")
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, filepath.Join(s.dir, name))
}

// settings are what changes from one configuration to the next.
type settings struct {
	routes int  // routes beside the real ones
	policy int  // a number in a policy that admits everybody
	idle   int  // seconds of timeout_idle, for which the listener is exchanged
	header int  // a number in set_response_headers
	denied bool // whether the victims' route is closed
}

func (s *stage) configure(c settings) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `address: %s
health_check_addr: 127.0.0.1:0
metrics_address: %s
control_address: %s/c.sock
data_dir: %[3]s/data
databroker_storage_type: memory
shared_secret: %s
certificate_file: cert.pem
certificate_key_file: cert.pem
timeout_read: 0s
timeout_write: 0s
timeout_idle: %ds
default_upstream_timeout: 0s
proxy_log_level: warn
log_level: warn
circuit_breaker_thresholds: {max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}
set_response_headers: {X-Number: "%d"}
routes:
  - from: https://app.localhost:%[7]s
    to: http://%[8]s
    allow_websockets: true
    policy: {allow: {or: [{accept: true}, {http_path: {starts_with: "/number-%[9]d"}}]}}
  - from: https://grpc.localhost:%[7]s
    to: h2c://%[10]s
    policy: {allow: {or: [{accept: true}, {http_path: {starts_with: "/number-%[9]d"}}]}}
`, s.addr, s.metrics, s.dir, "c2NyYXRjaHNjcmF0Y2hzY3JhdGNoc2NyYXRjaDEyMzQ=", 240+c.idle, c.header, s.port, s.places.HTTP, c.policy, s.places.GRPC)
	verb := "allow"
	if c.denied {
		verb = "deny"
	}
	fmt.Fprintf(&b, "  - from: https://victim.localhost:%s\n    to: http://%s\n    allow_websockets: true\n    policy: {%s: {and: [{accept: true}]}}\n", s.port, s.places.HTTP, verb)
	for i := range c.routes {
		fmt.Fprintf(&b, "  - from: https://more-%d.localhost:%s\n    to: http://%s\n    allow_public_unauthenticated_access: true\n", i, s.port, s.places.HTTP)
	}
	return s.put("config.yaml", b.Bytes())
}

// start runs the proxy until it serves.
func (s *stage) start(program string) error {
	if err := s.configure(settings{}); err != nil {
		return err
	}
	program, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	if program, err = filepath.Abs(program); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	s.proxy = exec.Command(program, "--config", "config.yaml")
	s.proxy.Dir, s.proxy.Stdout, s.proxy.Stderr = s.dir, log, log
	s.proxy.Env = append(os.Environ(), "HOME="+s.dir, "GOGC=100")
	if err := s.proxy.Start(); err != nil {
		return err
	}
	go func() { s.ended <- s.proxy.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; {
		if res, err := s.control.Get("http://postern/v1/status"); err == nil {
			res.Body.Close()
			return nil
		}
		select {
		case err := <-s.ended:
			s.ended <- err
			return fmt.Errorf("the program ended: %v\n%s", err, s.log())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return fmt.Errorf("the program does not serve\n%s", s.log())
		}
	}
}

func (s *stage) log() string {
	b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return string(b)
}

// generation is the number of the configuration that the proxy serves.
func (s *stage) generation() (int, error) {
	res, err := s.control.Get("http://postern/v1/status")
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var a struct{ Generation int }
	err = json.NewDecoder(res.Body).Decode(&a)
	return a.Generation, err
}

// reload has the proxy read its configuration now and tells how long it took.
func (s *stage) reload() (time.Duration, error) {
	began := time.Now()
	res, err := s.control.Post("http://postern/v1/reload", "", nil)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	var a struct {
		OK       bool
		Problems []string
	}
	if err := json.NewDecoder(res.Body).Decode(&a); err != nil {
		return 0, err
	}
	if !a.OK {
		return 0, fmt.Errorf("the change was refused: %s", strings.Join(a.Problems, "; "))
	}
	return time.Since(began), nil
}

// dial opens a TCP connection from one of many loopback addresses, so that the
// ports of closed ones do not run out.
func (s *stage) dial(ctx context.Context) (net.Conn, error) {
	n := s.source.Add(1)
	d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+n%250))}}
	return d.DialContext(ctx, "tcp", s.addr)
}

func (s *stage) tls(protocol string) *tls.Config {
	c := &tls.Config{RootCAs: s.roots}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	return c
}

func (s *stage) transport(protocol string) *http.Transport {
	return &http.Transport{TLSClientConfig: s.tls(protocol), ForceAttemptHTTP2: protocol == "h2", MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) }}
}

// usage is what the proxy's process uses.
type usage struct {
	RSS               float64 // bytes
	Heap              float64 // bytes that the last garbage collection found in use
	Goroutines, Files int
	CPU               time.Duration
}

func (s *stage) usage() (u usage, err error) {
	pid := s.proxy.Process.Pid
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			u.RSS = kb * 1024
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	if _, rest, ok := strings.Cut(string(stat), ") "); ok {
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		u.CPU = time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
	}
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return u, err
	}
	u.Files = len(files)
	res, err := http.Get("http://" + s.metrics + "/metrics")
	if err != nil {
		return u, err
	}
	defer res.Body.Close()
	in := bufio.NewScanner(res.Body)
	for in.Scan() {
		name, value, _ := strings.Cut(in.Text(), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			u.Goroutines = int(v)
		case "go_memstats_next_gc_bytes":
			u.Heap = v / 2 // GOGC is 100: the next collection is at twice that
		}
	}
	return u, in.Err()
}

// settled is the usage when the proxy has little to do: the least of several
// looks, since a look may fall anywhere between two garbage collections.
func (s *stage) settled(looks int, every time.Duration) (least usage, err error) {
	for i := range looks {
		if i > 0 {
			time.Sleep(every)
		}
		u, err := s.usage()
		if err != nil {
			return u, err
		}
		if i == 0 || u.Heap < least.Heap {
			least.Heap = u.Heap
		}
		if i == 0 || u.RSS < least.RSS {
			least.RSS = u.RSS
		}
		least.Goroutines, least.Files, least.CPU = u.Goroutines, u.Files, u.CPU
	}
	return least, nil
}

func mib(b float64) string { return fmt.Sprintf("%.0f MiB", b/(1<<20)) }
