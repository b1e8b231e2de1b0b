package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"postern/internal/certs"
)

// checkCA says what is wrong with PEM text that should hold certificates.
func checkCA(text []byte) error {
	found := false
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("a certificate in it is malformed: %w", err)
		}
		found = true
	}
	if !found {
		return errors.New("it holds no certificate in PEM")
	}
	return nil
}

// checkCRL says what is wrong with revocation lists, PEM or DER.
func checkCRL(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	found := false
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "X509 CRL" {
			continue
		}
		if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
			return fmt.Errorf("a revocation list in it is malformed: %w", err)
		}
		found = true
	}
	if found {
		return nil
	}
	if _, err := x509.ParseRevocationList(text); err != nil {
		return errors.New("it holds no certificate revocation list")
	}
	return nil
}

// keyPair checks that a certificate and its key are readable and belong
// together.
func (d *decoder) keyPair(p certs.KeyPair, path string) bool {
	_, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM)
	if err == nil {
		return true
	}
	message := strings.TrimPrefix(err.Error(), "tls: ")
	if strings.Contains(message, "does not match") {
		d.bad(path, "the certificate does not match its key", "give the key that the certificate was made for")
		return false
	}
	d.bad(path, "certificate and key cannot be used: "+message, "give a PEM chain, leaf first, and its PEM key")
	return false
}
