package servertest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// Agent is a browser without a screen: cookies, redirects on request, forms.
// Every host name leads to the main listener of its program.
type Agent struct {
	t      testing.TB
	p      *Program
	Client *http.Client
	TLS    *tls.Config
	Hops   []string
}

// Agent gives a new browser.
func (p *Program) Agent() *Agent {
	roots := x509.NewCertPool()
	if p.CA != nil {
		roots.AddCert(p.CA.Certificate())
	}
	return p.AgentWith(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})
}

// AgentWith gives a browser with its own TLS settings.
func (p *Program) AgentWith(t *tls.Config) *Agent {
	jar, _ := cookiejar.New(nil)
	tr := &http.Transport{
		TLSClientConfig: t, ForceAttemptHTTP2: true, DisableCompression: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, p.Main)
		},
	}
	p.idle = append(p.idle, tr.CloseIdleConnections)
	return &Agent{t: p.t, p: p, TLS: t, Client: &http.Client{Transport: tr, Jar: jar, Timeout: limit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}}
}

// Page is an answer with its body read.
type Page struct {
	*http.Response
	Body string
}

// Echo is what the application saw of the request.
func (p *Page) Echo() (Seen, error) {
	var s Seen
	if p.StatusCode != 200 {
		return s, fmt.Errorf("status %d: %.300s", p.StatusCode, p.Body)
	}
	err := json.Unmarshal([]byte(p.Body), &s)
	return s, err
}

// Do sends one request.
func (a *Agent) Do(req *http.Request) (*Page, error) {
	res, err := a.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	a.Hops = append(a.Hops, fmt.Sprintf("%d %s %s", res.StatusCode, req.Method, req.URL))
	return &Page{res, string(b)}, err
}

// Request sends one request with headers, each "Name: value"; Host is one too.
func (a *Agent) Request(method, target string, headers ...string) (*Page, error) {
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ":")
		if v = strings.TrimSpace(v); strings.EqualFold(k, "host") {
			req.Host = v
			continue
		}
		req.Header[k] = append(req.Header[k], v)
	}
	return a.Do(req)
}

// Get asks once, and fails the test if nothing answers.
func (a *Agent) Get(target string, headers ...string) *Page {
	a.t.Helper()
	p, err := a.Request("GET", target, headers...)
	if err != nil {
		a.t.Fatalf("GET %s: %v\n%s", target, err, a.p.Log)
	}
	return p
}

const accept = "text/html,application/xhtml+xml,*/*;q=0.8"

// Visit follows redirects, and fills a sign-in form if there is one and an
// account is given, until something else answers.
func (a *Agent) Visit(target string, who Account) (*Page, error) {
	a.Hops = nil
	req, err := http.NewRequest("GET", target, nil)
	if err != nil {
		return nil, err
	}
	filled := false
	for range 25 {
		if req.Header.Get("Accept") == "" {
			req.Header.Set("Accept", accept)
		}
		p, err := a.Do(req)
		if err != nil {
			return nil, err
		}
		if loc := p.Header.Get("Location"); p.StatusCode/100 == 3 && loc != "" {
			next, err := p.Request.URL.Parse(loc)
			if err != nil {
				return nil, err
			}
			req, _ = http.NewRequest("GET", next.String(), nil)
			continue
		}
		f := FindForm(p.Body)
		if f == nil || f.Password == "" || who.Email == "" || filled {
			return p, nil
		}
		filled = true
		f.Values.Set(f.Email, who.Email)
		f.Values.Set(f.Password, who.Password)
		if req, err = f.Submit(p.Request.URL); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("redirects without end: " + strings.Join(a.Hops, "\n"))
}

// SignIn visits and must arrive with 200.
func (a *Agent) SignIn(target string, who Account) *Page {
	a.t.Helper()
	p, err := a.Visit(target, who)
	if err != nil {
		a.t.Fatalf("%v\n%s", err, a.p.Log)
	}
	if p.StatusCode != 200 {
		a.t.Fatalf("signing in at %s ended with %d at %s\n%s\n%.2000s", target, p.StatusCode, p.Request.URL, strings.Join(a.Hops, "\n"), p.Body)
	}
	return p
}

// Dial opens a TLS connection to the main listener (plain if TLS is nil).
func (a *Agent) Dial(serverName string, protocols ...string) (net.Conn, error) {
	c, err := net.DialTimeout("tcp", a.p.Main, limit)
	if err != nil || a.TLS == nil {
		return c, err
	}
	t := a.TLS.Clone()
	t.ServerName, t.NextProtos = serverName, protocols
	tc := tls.Client(c, t)
	tc.SetDeadline(time.Now().Add(limit))
	if err := tc.Handshake(); err != nil {
		c.Close()
		return nil, err
	}
	return tc, nil
}

// Upgrade asks for a protocol on a connection of its own and gives it back
// after the 101, or the answer that was another.
func (a *Agent) Upgrade(target, protocol string) (net.Conn, *bufio.Reader, *http.Response, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, nil, nil, err
	}
	c, err := a.Dial(u.Hostname(), "http/1.1")
	if err != nil {
		return nil, nil, nil, err
	}
	a.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(limit))
	req, _ := http.NewRequest("GET", target, nil)
	for _, k := range a.Client.Jar.Cookies(u) {
		req.AddCookie(k)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if protocol == "websocket" {
		req.Header.Set("Sec-WebSocket-Version", "13")
		req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	}
	if err := req.Write(c); err != nil {
		return nil, nil, nil, err
	}
	r := bufio.NewReader(c)
	res, err := http.ReadResponse(r, req)
	if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 300))
		return c, r, res, fmt.Errorf("status %d: %s", res.StatusCode, b)
	}
	return c, r, res, err
}

// Form is a form of a page as it would be sent.
type Form struct {
	Action, Method  string
	Values          url.Values
	Email, Password string // names of these fields
}

// FindForm gives the sign-in form of a page, or else its last form, or nil.
func FindForm(body string) *Form {
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		return nil
	}
	var out, cur *Form
	var walk func(*html.Node)
	walk = func(n *html.Node) {
		at := func(k string) string {
			for _, a := range n.Attr {
				if a.Key == k {
					return a.Val
				}
			}
			return ""
		}
		switch {
		case n.Type != html.ElementNode:
		case n.Data == "form":
			if out != nil && out.Password != "" {
				return
			}
			cur = &Form{Action: at("action"), Method: strings.ToUpper(at("method")), Values: url.Values{}}
			out = cur
		case cur == nil || n.Data != "input" && n.Data != "button":
		case at("type") == "password":
			cur.Password = at("name")
		case at("type") == "hidden", n.Data == "button" && at("name") != "":
			cur.Values.Set(at("name"), at("value"))
		case n.Data == "input" && (at("type") == "email" || at("type") == "text"):
			cur.Email = at("name")
		}
		for c := n.FirstChild; c != nil; c = c.NextSibling {
			walk(c)
		}
	}
	walk(doc)
	return out
}

// Submit makes the request that a browser would send from a page at base.
func (f *Form) Submit(base *url.URL) (*http.Request, error) {
	to, err := base.Parse(f.Action)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequest("POST", to.String(), strings.NewReader(f.Values.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Origin", base.Scheme+"://"+base.Host)
	req.Header.Set("Sec-Fetch-Site", "same-origin")
	req.Header.Set("Accept", accept)
	return req, nil
}
