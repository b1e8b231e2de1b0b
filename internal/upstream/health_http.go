package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"postern/internal/upstream/http1"
)

// httpCheck asks for a page and looks at the status and, if wanted, the body.
type httpCheck struct {
	host, path, method, codec string
	send                      []byte
	receive                   [][]byte
	buffer                    uint64 // bytes of the body that are looked at; 0 is no limit
	expected, retriable       []StatusRange
	remove                    []string
	add                       []headerOption
}

// maxChecked bounds the body that a check without limit looks at.
const maxChecked = 16 << 20

// checkAgent is the User-Agent of health checks.
const checkAgent = "Postern/HealthCheck"

type httpProber struct {
	c         *httpCheck
	transport roundTripCloser
	scheme    string
	addr      string
	host      string
}

// roundTripCloser is how a check speaks HTTP, of whatever version.
type roundTripCloser interface {
	http.RoundTripper
	CloseIdleConnections()
}

func newHTTPProber(t *Target, h *host, c *healthCheck) *httpProber {
	codec := c.http.codec
	if codec == "" {
		// What the endpoint itself is spoken to with, where that is certain.
		switch {
		case h.endpoint.scheme == "h3":
			codec = "HTTP3"
		case h.endpoint.cleartxt:
			codec = "HTTP2"
		}
	}
	p := &httpProber{c: c.http, scheme: h.endpoint.urlScheme(), addr: h.endpoint.addr, host: c.http.host}
	if p.host == "" {
		p.host = t.checkHost(h)
	}
	p.transport = t.checkTransport(h, c, codec)
	return p
}

// checkTransport makes the connection of a check to one host.
func (t *Target) checkTransport(h *host, c *healthCheck, codec string) roundTripCloser {
	if codec == "HTTP3" {
		return &h3Link{t: t, h: h, port: c.altPort, once: !c.reuse, free: true}
	}
	var protocols http.Protocols
	alpn := []string{"http/1.1"}
	switch {
	case codec != "HTTP2":
		protocols.SetHTTP1(true)
	case h.endpoint.scheme == "https":
		protocols.SetHTTP2(true)
		alpn = []string{"h2"}
	default:
		protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return t.dialPort(ctx, h, c.altPort)
		},
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := t.dialCheckTLS(ctx, h, c.altPort, alpn)
			if err == nil && codec == "HTTP2" && conn.ConnectionState().NegotiatedProtocol != "h2" {
				conn.Close()
				return nil, errors.New("the upstream does not speak HTTP/2")
			}
			if err != nil {
				return nil, err
			}
			return conn, nil
		},
		DisableCompression:     true,
		DisableKeepAlives:      !c.reuse,
		MaxResponseHeaderBytes: http1.MaxHeadBytes,
	}
}

// dialCheckTLS connects with the route's TLS settings.
func (t *Target) dialCheckTLS(ctx context.Context, h *host, port uint16, alpn []string) (*tls.Conn, error) {
	raw, err := t.dialPort(ctx, h, port)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, t.tlsConfigFor(h, alpn))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &connectError{&tlsError{err}}
	}
	return c, nil
}

// checkHost is the Host of checks that name none (configuration.md §3.8): the
// name of the route's cluster.
func (t *Target) checkHost(h *host) string {
	if t.cluster != "" {
		return t.cluster
	}
	return h.endpoint.host
}

// urlScheme is the scheme of requests.
func (e *endpoint) urlScheme() string {
	if e.scheme == "h3" {
		return "https"
	}
	return e.scheme
}

func (p *httpProber) request(ctx context.Context) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, p.c.method, p.scheme+"://"+p.addr, nil)
	if err != nil {
		return nil, err
	}
	path, query, hasQuery := strings.Cut(p.c.path, "?")
	req.URL = &url.URL{Scheme: p.scheme, Host: p.addr}
	if err := checkTarget(p.c.method, path, query); err != nil {
		return nil, err
	}
	if err := setTarget(req.URL, path, query, hasQuery); err != nil {
		return nil, err
	}
	req.Host = p.host
	req.Header.Set("User-Agent", checkAgent)
	if p.c.send != nil {
		req.Body = io.NopCloser(bytes.NewReader(p.c.send))
		req.ContentLength = int64(len(p.c.send))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p.c.send)), nil }
	}
	for _, o := range p.c.add {
		o.apply(req.Header)
	}
	for _, name := range p.c.remove {
		req.Header.Del(name)
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = nil // else the transport says its own
	}
	return req, nil
}

func (p *httpProber) probe(ctx context.Context) verdict {
	req, err := p.request(ctx)
	if err != nil {
		return verdict{reason: err.Error()}
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return verdict{reason: explain(err)}
	}
	defer resp.Body.Close()
	status := int64(resp.StatusCode)
	switch {
	case within(status, p.c.expected):
	case within(status, p.c.retriable):
		return verdict{reason: fmt.Sprintf("status %d", status)}
	default:
		return verdict{reason: fmt.Sprintf("unexpected status %d", status), atOnce: true}
	}
	limit := p.c.buffer
	if limit == 0 || limit > maxChecked {
		limit = maxChecked
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, int64(limit)))
	if err != nil {
		return verdict{reason: "the answer broke off: " + err.Error()}
	}
	if len(p.c.receive) > 0 && !matches(body, p.c.receive) {
		return verdict{reason: "the answer does not hold what receive names"}
	}
	return verdict{ok: true}
}

func (p *httpProber) close() { p.transport.CloseIdleConnections() }

func within(status int64, ranges []StatusRange) bool {
	for _, r := range ranges {
		if status >= r.Start && status < r.End {
			return true
		}
	}
	return false
}

// matches reports whether the parts occur one behind the other, other bytes
// between them or not.
func matches(b []byte, parts [][]byte) bool {
	for _, part := range parts {
		i := bytes.Index(b, part)
		if i < 0 {
			return false
		}
		b = b[i+len(part):]
	}
	return true
}
