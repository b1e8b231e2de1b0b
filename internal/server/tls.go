package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"

	"postern/internal/certs"
	"postern/internal/proxy"
)

// echKeys are the keys of Encrypted Client Hello of the generation of the
// moment, for the outermost settings of a listener: a hello is opened before
// the generation sees it.
func (s *Server) echKeys(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
	if g := s.current.Load(); g != nil {
		return g.certs.ECHKeys(), nil
	}
	return []tls.EncryptedClientHelloKey{}, nil
}

// internalTransport carries calls to identity providers: as usual, trusting the
// roots of certificate_authority (PEM) besides the system's. They were read
// before. Nil is as usual.
func internalTransport(roots []byte) http.RoundTripper {
	if len(roots) == 0 {
		return nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pool.AppendCertsFromPEM(roots)
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t
}

// connectionFailed logs a connection that ended before its first request.
// Strangers cause any number of them, so they are details, except where the
// client certificate decides on the connection (configuration.md §2.10).
func (s *Server) connectionFailed(info *proxy.ConnInfo, serverName string, err error) {
	level := slog.LevelDebug
	if g := s.current.Load(); g != nil && g.cfg.Certs.DownstreamMTLS.Enforcement == certs.EnforceRejectConnection && g.proxy.ClientCertificate != nil {
		level = slog.LevelInfo
	}
	args := []any{"ip", info.Direct.Addr().String(), "tls-sni-hostname", serverName, "downstream-transport-failure-reason", err.Error()}
	if info.TLS != nil && len(info.TLS.PeerCertificates) > 0 {
		args = append(args, certificateFields(info.TLS.PeerCertificates[0]))
	}
	s.log.Log(context.Background(), level, "listener connection failure", args...)
}

// certificateFields says who a client certificate names, as the access log
// does.
func certificateFields(c *x509.Certificate) slog.Attr {
	var names []string
	for _, n := range c.DNSNames {
		names = append(names, "DNS:"+n)
	}
	for _, n := range c.EmailAddresses {
		names = append(names, "email:"+n)
	}
	for _, n := range c.IPAddresses {
		names = append(names, "IP Address:"+n.String())
	}
	for _, n := range c.URIs {
		names = append(names, "URI:"+n.String())
	}
	return slog.Group("client-certificate", "issuer", c.Issuer.String(), "subject", c.Subject.String(), "subjectAltName", names)
}
