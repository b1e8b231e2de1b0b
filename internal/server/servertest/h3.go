package servertest

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/cookiejar"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// AgentOverHTTP3 gives a browser that speaks HTTP/3 to the address of the main
// listener (codec_type: http3).
func (p *Program) AgentOverHTTP3(certificates ...tls.Certificate) *Agent {
	a := p.Agent()
	a.TLS.Certificates = certificates
	tr := &http3.Transport{TLSClientConfig: a.TLS, DisableCompression: true,
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, p.Main, c, q)
		}}
	p.t.Cleanup(func() { tr.Close() })
	jar, _ := cookiejar.New(nil)
	a.Client = &http.Client{Transport: tr, Jar: jar, Timeout: limit,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return a
}
