// Command bench measures the CPU time that postern spends per signed-in
// request, next to an nginx that passes through unchecked, in one run.
// README.md says what is measured and how to read it.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	host     = "app.localhost"
	email    = "bench@example.com"
	password = "bench-password-of-no-use-elsewhere"
)

var (
	binary  = flag.String("postern", "", "postern binary")
	seconds = flag.Int("seconds", 4, "length of one measured run")
	rounds  = flag.Int("rounds", 3, "interleaved rounds; the median counts")
)

// peer is one proxy under test.
type peer struct {
	name   string
	url    string
	cookie string
	pid    int
}

// authority is what a client asks for, addr where it connects.
func (p *peer) authority() string { u, _ := url.Parse(p.url); return u.Host }
func (p *peer) addr() string      { u, _ := url.Parse(p.url); return "127.0.0.1:" + u.Port() }

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	program, err := filepath.Abs(*binary) // it is started in another directory
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "postern-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := certificate(dir); err != nil {
		return err
	}
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	upstream, floor, tlsPort, health := ports[0], ports[1], ports[2], ports[3]

	if _, stop, err := start(dir, 1, "nginx", "-p", dir, "-e", dir+"/upstream.err", "-c", write(dir, "upstream.conf", nginxUpstream(dir, upstream)), "-g", "daemon off;"); err != nil {
		return err
	} else {
		defer stop()
	}
	nginx, stop, err := start(dir, 0, "nginx", "-p", dir, "-e", dir+"/floor.err", "-c", write(dir, "floor.conf", nginxFloor(dir, floor, upstream)), "-g", "daemon off;")
	if err != nil {
		return err
	}
	defer stop()
	if err := users(dir); err != nil {
		return err
	}
	pid, stop, err := start(dir, 0, program, "--config", write(dir, "config.yaml", posternConfig(dir, tlsPort, health, upstream)))
	if err != nil {
		return err
	}
	defer stop()
	if err := ready("http://127.0.0.1:"+health+"/readyz", "127.0.0.1:"+upstream, "127.0.0.1:"+floor); err != nil {
		return err
	}
	postern := &peer{name: "postern", url: "https://" + host + ":" + tlsPort + "/1k", pid: pid}
	if postern.cookie, err = signIn(dir, postern.url); err != nil {
		return err
	}
	peers := []*peer{{name: "nginx", url: "https://" + host + ":" + floor + "/1k", cookie: "none=none", pid: nginx}, postern}

	fmt.Printf("\n%d cores, %s, %d rounds of %d s, 1 KiB, TLS 1.3, assertion_reuse default\n\n", runtime.NumCPU(), runtime.Version(), *rounds, *seconds)
	fmt.Println("| scenario | nginx us/request | postern us/request | ratio |")
	fmt.Println("|---|---|---|---|")
	for _, s := range []struct {
		name string
		load func(*peer) (int, error)
	}{{"TLS HTTP/1.1, 64 connections", wrk}, {"TLS HTTP/2, 16 connections x 10 streams", h2load}} {
		cost := map[string][]float64{}
		for range *rounds {
			for _, p := range peers {
				us, err := measure(p, s.load)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, p.name, err)
				}
				cost[p.name] = append(cost[p.name], us)
			}
		}
		var ratios []float64
		for i := range cost["nginx"] {
			ratios = append(ratios, cost["postern"][i]/cost["nginx"][i])
		}
		fmt.Printf("| %s | %.1f | %.1f | %.2f |\n", s.name, median(cost["nginx"]), median(cost["postern"]), median(ratios))
	}
	return nil
}

func median(v []float64) float64 {
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[len(s)/2]
}

// measure runs a load and returns CPU microseconds per answered request.
func measure(p *peer, load func(*peer) (int, error)) (float64, error) {
	before, err := cpu(p.pid)
	if err != nil {
		return 0, err
	}
	n, err := load(p)
	if err != nil {
		return 0, err
	}
	after, err := cpu(p.pid)
	if err != nil {
		return 0, err
	}
	if n < 100 {
		return 0, fmt.Errorf("only %d requests were answered", n)
	}
	return float64((after - before).Microseconds()) / float64(n), nil
}

// cpu is the user and system time of a process and its children (nginx workers).
func cpu(pid int) (time.Duration, error) {
	total := time.Duration(0)
	pids := []int{pid}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)); err == nil {
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	for _, id := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil {
			return 0, err
		}
		_, rest, _ := bytes.Cut(b, []byte(") "))
		f := strings.Fields(string(rest))
		if len(f) < 13 {
			return 0, fmt.Errorf("/proc/%d/stat is too short", id)
		}
		user, _ := strconv.Atoi(f[11])
		sys, _ := strconv.Atoi(f[12])
		total += time.Duration(user+sys) * 10 * time.Millisecond // USER_HZ is 100
	}
	return total, nil
}

var (
	wrkCount    = regexp.MustCompile(`(\d+) requests in`)
	wrkErrors   = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
	h2loadCount = regexp.MustCompile(`(\d+) 2xx`)
)

func wrk(p *peer) (int, error) {
	out, err := onLoadCore("wrk", "-t1", "-c64", fmt.Sprintf("-d%ds", *seconds), "-H", "Cookie: "+p.cookie, "-H", "Host: "+p.authority(),
		"https://"+p.addr()+"/1k") // wrk does not resolve *.localhost everywhere
	if err != nil {
		return 0, err
	}
	if m := wrkErrors.FindStringSubmatch(out); m != nil {
		return 0, fmt.Errorf("%s refused answers under load", m[1])
	}
	return count(wrkCount, out)
}

func h2load(p *peer) (int, error) {
	out, err := onLoadCore("h2load", "-c16", "-m10", "-D"+strconv.Itoa(*seconds), "--connect-to="+p.addr(), "-H", "Cookie: "+p.cookie, p.url)
	if err != nil {
		return 0, err
	}
	return count(h2loadCount, out)
}

func count(re *regexp.Regexp, out string) (int, error) {
	m := re.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("the load generator said nothing about requests:\n%s", out)
	}
	return strconv.Atoi(m[1])
}

func onLoadCore(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*seconds)*time.Second+30*time.Second)
	defer cancel()
	argv = pin(1, argv)
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", argv[0], err, out)
	}
	return string(out), nil
}

func pin(core int, argv []string) []string {
	if runtime.NumCPU() < 2 {
		return argv
	}
	return append([]string{"taskset", "-c", strconv.Itoa(core)}, argv...)
}

// start runs a server on a core and returns its process id and a way to end it.
func start(dir string, core int, argv ...string) (int, func(), error) {
	argv = pin(core, argv)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	log, err := os.Create(filepath.Join(dir, filepath.Base(argv[len(argv)-1])+".log"))
	if err != nil {
		return 0, nil, err
	}
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	return cmd.Process.Pid, func() {
		cmd.Process.Signal(syscall.SIGTERM)
		done := make(chan struct{})
		go func() { cmd.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
		}
		log.Close()
	}, nil
}

func ready(health string, addrs ...string) error {
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := func() error {
			for _, a := range addrs {
				c, err := net.Dial("tcp", a)
				if err != nil {
					return err
				}
				c.Close()
			}
			res, err := http.Get(health)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			if res.StatusCode != 200 {
				b, _ := io.ReadAll(res.Body)
				return fmt.Errorf("%s: %s", res.Status, b)
			}
			return nil
		}()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// signIn opens a session as a browser does and proves that strangers and
// forgers do not reach the upstream. It returns the Cookie header.
func signIn(dir, target string) (string, error) {
	pool := x509.NewCertPool()
	b, err := os.ReadFile(filepath.Join(dir, "cert.pem"))
	if err != nil {
		return "", err
	}
	pool.AppendCertsFromPEM(b)
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar, Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool},
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(addr)
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		}}}
	get := func(c *http.Client, cookie string) (*http.Response, string, error) {
		req, _ := http.NewRequest("GET", target, nil)
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
			req.Header.Set("Accept", "application/json")
		}
		res, err := c.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res, string(b), err
	}
	stranger := &http.Client{Transport: client.Transport, Timeout: client.Timeout}
	for _, c := range []string{"none=none", "__Host-_pomerium=forged"} {
		if res, _, err := get(stranger, c); err != nil || res.StatusCode != 401 {
			return "", fmt.Errorf("a stranger with cookie %q was not refused: %v %v", c, res, err)
		}
	}
	res, body, err := get(client, "")
	if err != nil {
		return "", err
	}
	form := regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`).FindAllString(body, -1)
	values := url.Values{"email": {email}, "password": {password}}
	for _, in := range form {
		name := regexp.MustCompile(`name="([^"]*)"`).FindStringSubmatch(in)
		value := regexp.MustCompile(`value="([^"]*)"`).FindStringSubmatch(in)
		if name != nil && value != nil {
			values.Set(name[1], strings.NewReplacer("&amp;", "&", "&#43;", "+", "&#34;", `"`).Replace(value[1]))
		}
	}
	req, _ := http.NewRequest("POST", res.Request.URL.String(), strings.NewReader(values.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", "https://"+res.Request.URL.Host)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	res, err = client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	got, _ := io.ReadAll(res.Body)
	if res.StatusCode != 200 || len(got) != 1024 || res.Header.Get("X-Saw-Assertion") == "" {
		return "", fmt.Errorf("signed in, but the answer is %s with %d bytes (assertion seen by the upstream: %q)", res.Status, len(got), res.Header.Get("X-Saw-Assertion"))
	}
	u, _ := url.Parse(target)
	var parts []string
	for _, c := range jar.Cookies(u) {
		parts = append(parts, c.Name+"="+c.Value)
	}
	if len(parts) == 0 {
		return "", errors.New("signed in without a cookie")
	}
	return strings.Join(parts, "; "), nil
}

func users(dir string) error {
	cmd := exec.Command(*binary, "users", "add", email, "--file", filepath.Join(dir, "users.yaml"), "--group", "bench", "--password-stdin")
	cmd.Stdin = strings.NewReader(password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("postern users add: %w\n%s", err, out)
	}
	return nil
}

func posternConfig(dir, port, health, upstream string) string {
	b := make([]byte, 32)
	rand.Read(b)
	secret := base64.StdEncoding.EncodeToString(b)
	return fmt.Sprintf(`address: 127.0.0.1:%[2]s
health_check_addr: 127.0.0.1:%[3]s
certificate_file: %[1]s/cert.pem
certificate_key_file: %[1]s/key.pem
shared_secret: %[5]s
cookie_secret: %[5]s
idp_provider: local
local_users_file: %[1]s/users.yaml
pass_identity_headers: true
log_level: info
routes:
  - from: https://%[6]s:%[2]s
    to: http://127.0.0.1:%[4]s
    policy:
      - allow:
          and:
            - domain: example.com
            - groups: bench
      - deny:
          or:
            - email: {in: [mallory@example.com, trudy@example.com]}
`, dir, port, health, upstream, secret, host)
}

func nginxCommon(dir, name string) string {
	return fmt.Sprintf(`user root; worker_processes 1; pid %[1]s/%[2]s.pid; error_log %[1]s/%[2]s.err warn;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; tcp_nodelay on;
  client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
`, dir, name)
}

func nginxUpstream(dir, port string) string {
	return nginxCommon(dir, "upstream") + fmt.Sprintf(`  server { listen 127.0.0.1:%s backlog=4096;
    large_client_header_buffers 8 32k;
    location / { add_header X-Saw-Assertion $http_x_pomerium_jwt_assertion; return 200 "%s"; } }
}
`, port, strings.Repeat("x", 1024))
}

func nginxFloor(dir, port, upstream string) string {
	return nginxCommon(dir, "floor") + fmt.Sprintf(`  upstream app { server 127.0.0.1:%[3]s; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 1h; }
  server { listen 127.0.0.1:%[2]s ssl http2 backlog=4096;
    http2_max_concurrent_streams 256;
    ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem; ssl_protocols TLSv1.3;
    proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    location / { proxy_pass http://app; } }
}
`, dir, port, upstream)
}

// certificate makes the throw-away certificate that every peer serves.
func certificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host}, DNSNames: []string{host},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return err
	}
	k, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	write(dir, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(dir, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: k})))
	return nil
}

func write(dir, name, content string) string {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	return path
}

func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		out = append(out, port)
	}
	return out, nil
}
