package system

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/html"
)

// world is everything one script has started.
type world struct {
	env  interface{ Getenv(string) string }
	work string

	mu      sync.Mutex
	procs   map[string]*process
	agents  map[string]*agent
	sockets map[string]*socket
}

type worldKey struct{}

func newWorld(e interface {
	Getenv(string) string
}) *world {
	return &world{env: e, work: e.Getenv("WORK"), procs: map[string]*process{}, agents: map[string]*agent{}, sockets: map[string]*socket{}}
}

func (w *world) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.procs {
		p.cmd.Process.Signal(syscall.SIGCONT)
		p.stop(syscall.SIGTERM)
	}
}

// process is a program in the background with its output kept.
type process struct {
	cmd  *exec.Cmd
	out  *lockedBuffer
	done chan struct{}
	err  error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, out: &lockedBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	return p, nil
}

// stop sends sig and waits; a program that does not leave is killed.
func (p *process) stop(sig syscall.Signal) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	p.cmd.Process.Signal(sig)
	select {
	case <-p.done:
		return p.err
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("did not leave within 20 seconds of signal %v", sig)
	}
}

// eventually polls until f returns nil or the limit is over.
func eventually(limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(25 * time.Millisecond):
		}
	}
}

// agent is a browser without a screen: cookies, redirects, forms. Every host
// name leads to 127.0.0.1.
type agent struct {
	client *http.Client
	hops   []string
	last   *page
}

func newAgent(caFile string) (*agent, error) {
	pool := x509.NewCertPool()
	if caFile != "" {
		b, err := os.ReadFile(caFile)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s holds no certificate", caFile)
		}
	}
	jar, _ := cookiejar.New(nil)
	a := &agent{}
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: pool},
		ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}
	a.client = &http.Client{Transport: tr, Jar: jar, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return a, nil
}

// page is an answer with its body read.
type page struct {
	*http.Response
	body string
}

func (a *agent) do(req *http.Request) (*page, error) {
	res, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return nil, err
	}
	a.hops = append(a.hops, fmt.Sprintf("%d %s %s", res.StatusCode, req.Method, req.URL))
	a.last = &page{res, string(b)}
	return a.last, nil
}

// visit follows redirects, and fills a sign-in form with the account if there
// is one, until something else answers.
func (a *agent) visit(target, email, password string) (*page, error) {
	a.hops = nil
	req, err := http.NewRequest("GET", target, nil)
	if err != nil {
		return nil, err
	}
	return a.follow(req, email, password)
}

func (a *agent) follow(req *http.Request, email, password string) (*page, error) {
	req.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
	filled := 0
	for range 25 {
		p, err := a.do(req)
		if err != nil {
			return nil, err
		}
		if loc := p.Header.Get("Location"); p.StatusCode/100 == 3 && loc != "" {
			next, err := p.Request.URL.Parse(loc)
			if err != nil {
				return nil, err
			}
			req, _ = http.NewRequest("GET", next.String(), nil)
			req.Header.Set("Accept", "text/html,application/xhtml+xml,*/*;q=0.8")
			if next.Path == "/oauth2/callback" {
				filled = 0 // that form was accepted
			}
			continue
		}
		form := findForm(p.body)
		if form == nil || email == "" || filled >= 2 {
			return p, nil
		}
		filled++
		if req, err = form.fill(p.Request.URL, email, password); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("more than 25 redirects:\n%s", strings.Join(a.hops, "\n"))
}

// form is a sign-in form: it has a password field.
type form struct {
	action, method string
	values         url.Values
	email          string
	password       string
}

func findForm(body string) *form {
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		return nil
	}
	var out *form
	var cur *form
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		if n.Type == html.ElementNode {
			at := func(k string) string {
				for _, a := range n.Attr {
					if a.Key == k {
						return a.Val
					}
				}
				return ""
			}
			switch n.Data {
			case "form":
				cur = &form{action: at("action"), method: strings.ToUpper(at("method")), values: url.Values{}}
			case "input":
				if cur == nil {
					break
				}
				switch at("type") {
				case "password":
					cur.password = at("name")
					if cur.email != "" {
						out = cur
					}
				case "hidden":
					cur.values.Set(at("name"), at("value"))
				case "checkbox", "submit", "radio":
				default:
					cur.email = at("name")
				}
			}
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(doc)
	return out
}

func (f *form) fill(base *url.URL, email, password string) (*http.Request, error) {
	f.values.Set(f.email, email)
	f.values.Set(f.password, password)
	to, err := base.Parse(f.action)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", to.String(), strings.NewReader(f.values.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", base.Scheme+"://"+base.Host)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	req.Header.Set("Accept", "text/html")
	return req, nil
}

// startIDP runs a real identity provider: "dex" or "oidc" (npm oidc-provider).
func (w *world) startIDP(kind, name, users string, redirects, logout, ttl string) (string, error) {
	var cmd *exec.Cmd
	port := w.env.Getenv(name + "_PORT")
	if port == "" {
		port = "0"
	}
	switch kind {
	case "dex":
		cmd = exec.Command(filepath.Join(top, ".bin", "dex"), "-listen", "127.0.0.1:"+port, "-users", users, "-redirects", redirects, "-ttl", ttl+"s")
		cmd.Dir = filepath.Join(top, "test", "tools", "dex")
	case "oidc":
		cmd = exec.Command("node", "provider.mjs", "--port", port, "--users", users, "--redirects", redirects, "--logout", logout, "--ttl", ttl)
		cmd.Dir = filepath.Join(top, "test", "tools", "npm")
	default:
		return "", fmt.Errorf("unknown provider %q: dex or oidc", kind)
	}
	p, err := startProcess(cmd)
	if err != nil {
		return "", err
	}
	w.mu.Lock()
	w.procs[name] = p
	w.mu.Unlock()
	issuer := ""
	err = eventually(60*time.Second, func() error {
		for _, l := range strings.Split(p.out.String(), "\n") {
			if strings.HasPrefix(l, "http://127.0.0.1:") {
				issuer = strings.TrimSpace(l)
				return nil
			}
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended: %v\n%s", kind, p.err, p.out.String())
		default:
		}
		return fmt.Errorf("%s did not say where it listens:\n%s", kind, p.out.String())
	})
	return issuer, err
}
