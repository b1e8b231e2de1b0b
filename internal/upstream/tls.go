package upstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"time"
)

// tlsSettings makes client configurations; what is equal for all endpoints
// of a target is made once.
type tlsSettings struct {
	key, rootsKey string // of parts

	base     *tls.Config
	override string         // server name without "*"
	pattern  *regexp.Regexp // server name with "*"
}

func (s *TLS) clientConfig(shared *parts) (*tlsSettings, error) {
	out := &tlsSettings{base: &tls.Config{
		MinVersion:         tls.VersionTLS12,
		CipherSuites:       upstreamSuites(),
		InsecureSkipVerify: s.SkipVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}}
	var err error
	if out.base.RootCAs, out.rootsKey, err = shared.rootPool(s.CustomCA, s.ExtraRoots); err != nil {
		return nil, err
	}
	switch haveCert, haveKey := len(s.ClientCert) > 0, len(s.ClientKey) > 0; {
	case haveCert && haveKey:
		pair, err := tls.X509KeyPair(s.ClientCert, s.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("tls_client_cert and tls_client_key: %w", keyPairError(err))
		}
		// Shown whenever asked for: the upstream's list of acceptable CAs is
		// often incomplete, and refusing is its business.
		out.base.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	case haveCert:
		return nil, errors.New("tls_client_cert is set without tls_client_key; give both")
	case haveKey:
		return nil, errors.New("tls_client_key is set without tls_client_cert; give both")
	}
	if s.AllowRenegotiation {
		out.base.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	if strings.Contains(s.ServerName, "*") {
		// "*" does not cross dots: as in certificates.
		quoted := strings.ReplaceAll(regexp.QuoteMeta(strings.ToLower(s.ServerName)), `\*`, `[^.]*`)
		out.pattern = regexp.MustCompile(`^` + quoted + `$`)
	} else {
		out.override = s.ServerName
	}
	return out, nil
}

// config is the configuration for one connection to the host of an endpoint.
func (s *tlsSettings) config(host string, alpn []string) *tls.Config {
	c := s.base.Clone()
	c.NextProtos = alpn
	c.ServerName = host
	if s.override != "" {
		c.ServerName = s.override
	}
	if s.pattern != nil && !c.InsecureSkipVerify {
		// The chain is checked by hand, since the name is a pattern.
		c.InsecureSkipVerify = true
		c.VerifyConnection = func(state tls.ConnectionState) error {
			leaf := state.PeerCertificates[0]
			o := x509.VerifyOptions{Roots: s.base.RootCAs, Intermediates: x509.NewCertPool()}
			for _, cert := range state.PeerCertificates[1:] {
				o.Intermediates.AddCert(cert)
			}
			if _, err := leaf.Verify(o); err != nil {
				return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
			}
			for _, name := range leaf.DNSNames {
				if s.pattern.MatchString(strings.ToLower(name)) {
					return nil
				}
			}
			return x509.HostnameError{Certificate: leaf, Host: s.pattern.String()}
		}
	}
	return c
}

// upstreamSuites are the TLS 1.2 suites for upstreams: unlike for clients,
// CBC and RSA key exchange too (configuration.md §2.2), for old servers.
func upstreamSuites() []uint16 {
	var ids []uint16
	for _, s := range tls.CipherSuites() {
		ids = append(ids, s.ID)
	}
	return append(ids,
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA)
}

func keyPairError(err error) error {
	if strings.Contains(err.Error(), "private key does not match") {
		return errors.New("the key does not match the certificate; give the key it was issued for")
	}
	return err
}

// explain says in the operator's words why an upstream could not be reached.
func explain(err error) string {
	var (
		invalid   x509.CertificateInvalidError
		hostname  x509.HostnameError
		unknown   x509.UnknownAuthorityError
		alert     tls.AlertError
		record    tls.RecordHeaderError
		dns       *net.DNSError
		handshake *tlsError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		c := invalid.Cert
		if time.Now().Before(c.NotBefore) {
			return fmt.Sprintf("the certificate of the upstream (%s) is not valid before %s; check both clocks", subject(c), c.NotBefore.UTC().Format(time.RFC3339))
		}
		return fmt.Sprintf("the certificate of the upstream (%s) expired on %s; renew it", subject(c), c.NotAfter.UTC().Format(time.RFC3339))
	case errors.As(err, &invalid):
		return fmt.Sprintf("the certificate of the upstream (%s) cannot be used: %v", subject(invalid.Cert), err)
	case errors.As(err, &hostname):
		return fmt.Sprintf("the certificate of the upstream is for %s, not for %s; set tls_upstream_server_name or correct the certificate", names(hostname.Certificate), hostname.Host)
	case errors.As(err, &unknown):
		issuer := "unknown"
		if unknown.Cert != nil {
			issuer = unknown.Cert.Issuer.String()
		}
		return fmt.Sprintf("the certificate of the upstream is signed by an unknown CA (%s); set tls_custom_ca or certificate_authority", issuer)
	case errors.As(err, &alert):
		return fmt.Sprintf("the upstream ended the TLS handshake (%v); it may ask for a client certificate (tls_client_cert) or another server name (tls_upstream_server_name)", alert)
	case errors.As(err, &record):
		return "the upstream does not speak TLS on this port; use http:// in to, or another port"
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %s does not resolve: %s", dns.Name, dns.Err)
	case errors.As(err, &handshake):
		return "TLS handshake with the upstream failed: " + err.Error()
	}
	return err.Error()
}

func subject(c *x509.Certificate) string {
	if c == nil {
		return "unknown"
	}
	return names(c)
}

func names(c *x509.Certificate) string {
	if c == nil {
		return "nobody"
	}
	list := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	if len(list) == 0 {
		return c.Subject.String()
	}
	if len(list) > 5 {
		list = append(list[:5], "...")
	}
	return strings.Join(list, ", ")
}
