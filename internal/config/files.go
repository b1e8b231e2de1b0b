package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"postern/internal/authz"
	"postern/internal/certs"
)

// fileReader reads a whole file.
type fileReader func(path string) ([]byte, error)

// openRegular opens a regular file, so that a path that names a pipe or a
// device cannot hang or fill the process.
func openRegular(path string) (*os.File, os.FileInfo, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if info.IsDir() {
		return nil, nil, errors.New("it is a directory")
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	return f, info, err
}

// diskReader reads a regular file of bounded size.
func diskReader(path string) ([]byte, error) {
	f, info, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := bytes.NewBuffer(make([]byte, 0, min(info.Size(), maxDocument)+bytes.MinRead))
	if _, err := b.ReadFrom(io.LimitReader(f, maxDocument+1)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// diskHash is the SHA-256 of what diskReader gives, zero if it gives nothing.
func diskHash(path string) (sum [sha256.Size]byte) {
	f, _, err := openRegular(path)
	if err != nil {
		return sum
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxDocument+1)); err == nil {
		h.Sum(sum[:0])
	}
	return sum
}

// WatchedFile is a file that a configuration was read from.
type WatchedFile struct {
	Path string
	// Hash is the SHA-256 of the content, zero where it could not be read.
	Hash [sha256.Size]byte
}

// fileSet reads files once and remembers what they held.
type fileSet struct {
	open    fileReader
	order   []string
	content map[string]*fileContent
	// unwatched files are read but their change means no reload.
	unwatched map[string]bool
}

type fileContent struct {
	data []byte
	err  error
	hash *[sha256.Size]byte // once asked
}

func (c *fileContent) sum() (sum [sha256.Size]byte) {
	if c == nil || c.err != nil {
		return sum
	}
	if c.hash == nil {
		sum = sha256.Sum256(c.data)
		c.hash = &sum
	}
	return *c.hash
}

func newFileSet(open fileReader) *fileSet {
	return &fileSet{open: open, content: map[string]*fileContent{}, unwatched: map[string]bool{}}
}

func (s *fileSet) read(path string) ([]byte, error) {
	c, ok := s.content[path]
	if !ok {
		c = &fileContent{}
		c.data, c.err = s.open(path)
		s.content[path] = c
		s.order = append(s.order, path)
	}
	return c.data, c.err
}

// hash is the SHA-256 of what a file holds, zero if it cannot be read.
func (s *fileSet) hash(path string) (sum [sha256.Size]byte) {
	_, _ = s.read(path)
	return s.content[path].sum()
}

func (s *fileSet) list() []WatchedFile {
	out := make([]WatchedFile, 0, len(s.order))
	for _, path := range s.order {
		if s.unwatched[path] {
			continue
		}
		out = append(out, WatchedFile{path, s.content[path].sum()})
	}
	return out
}

// fileAt reads the file that the setting at path names. If it cannot be read
// that is fatal, or with lazily set stops only the start.
func (d *decoder) fileAt(files *fileSet, path, name string, lazily bool) ([]byte, bool) {
	b, err := files.read(name)
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has %d bytes, more than %d", len(b), maxFile)
	}
	if err == nil {
		return b, true
	}
	message := fmt.Sprintf("the file %s cannot be read: %s", shorten(name), reason(err))
	const hint = "check the path and who may read it"
	if lazily {
		d.startProblem(KindUnreadable, path, message, hint)
		d.problem(LevelWarning, KindUnreadable, path, message, "the start will fail; "+hint)
		return nil, false
	}
	if looksInline(name) {
		d.bad(path, "the value is not the path of a file", "give a path; a value in base64 goes into the key without _file")
		return nil, false
	}
	d.bad(path, message, hint)
	return nil, false
}

// looksInline recognises a certificate or key written where a path belongs.
func looksInline(s string) bool {
	return strings.Contains(s, "-----BEGIN") || len(s) > 255 || strings.HasPrefix(s, "LS0tLS1CRUdJTi")
}

// startProblem notes what stops the start but not the load.
func (d *decoder) startProblem(kind Kind, path, message, hint string) {
	at := d.at(path)
	d.cfg.start = append(d.cfg.start, Problem{File: at.file, Line: at.line, Column: at.column, Path: path, Message: message, Hint: hint, Kind: kind})
}

// resolveFiles applies the table of *_file pairs (configuration.md §1.4): it
// reads the files and leaves one value where there were two keys.
func (d *decoder) resolveFiles(files *fileSet) {
	c := d.cfg
	d.secretFile(files, "shared_secret", &c.Secrets.SharedSecret, c.Secrets.SharedSecretFile, false)
	d.secretFile(files, "shared_secret_previous", &c.Secrets.SharedSecretPrevious, c.Secrets.SharedSecretPreviousFile, false)
	for i, name := range c.Control.PolicyTests {
		if b, ok := d.fileAt(files, indexed("policy_tests", i), name, false); ok {
			c.Control.PolicyTestTexts = append(c.Control.PolicyTestTexts, TestText{name, b})
		}
	}
	d.secretFile(files, "cookie_secret", &c.Secrets.CookieSecret, c.Secrets.CookieSecretFile, true)

	if name := c.Identity.IDPClientSecretFile; name != "" {
		if b, ok := d.fileAt(files, "idp_client_secret_file", name, true); ok {
			// Used as it is, but for the final line end that editors add.
			c.Identity.IDPClientSecret = strings.TrimRight(string(b), "\r\n")
		}
	}
	if name := c.Store.ConnectionStringFile; name != "" {
		if b, ok := d.fileAt(files, "databroker_storage_connection_string_file", name, true); ok {
			c.Store.ConnectionString = strings.TrimSpace(string(b))
		}
	}
	d.signingKey(files)
	if name := c.Identity.LocalUsersFile; name != "" {
		// Read by sign-in itself; named here so that its change reloads. It
		// may come later: postern users makes it.
		_, _ = files.read(name)
	}

	d.pemPair(files, "certificate_authority", &c.Certs.CertificateAuthority, c.Certs.CertificateAuthorityFile, pairAdded)
	d.pemPair(files, "metrics_client_ca", &c.Telemetry.MetricsClientCA, c.Telemetry.MetricsClientCAFile, pairInline)
	d.metricsPair(files)
	d.textFile(files, "autocert_dns_tsig_secret", &c.Certs.AutocertDNSTSIGSecret, c.Certs.AutocertDNSTSIGSecretFile)
	d.textFile(files, "autocert_dns_webhook_secret", &c.Certs.AutocertDNSWebhookSecret, c.Certs.AutocertDNSWebhookSecretFile)
	if c.Certs.AutocertTrustedCAFile != "" {
		files.unwatched[c.Certs.AutocertTrustedCAFile] = true
	}
	d.pemPair(files, "autocert_trusted_ca", &c.Certs.AutocertTrustedCA, c.Certs.AutocertTrustedCAFile, pairExclusive)
	d.pemPair(files, "downstream_mtls.ca", &c.Certs.DownstreamMTLS.CA, c.Certs.DownstreamMTLS.CAFile, pairExclusive)
	d.pemPair(files, "downstream_mtls.crl", &c.Certs.DownstreamMTLS.CRL, c.Certs.DownstreamMTLS.CRLFile, pairExclusive)
	d.serverCertificates(files)
	d.pemPair(files, "ech_keys", &c.Certs.ECHKeys, c.Certs.ECHKeysFile, pairExclusive)
	if len(c.Certs.ECHKeys) > 0 {
		if _, err := certs.ParseECHKeys(c.Certs.ECHKeys); err != nil {
			path := "ech_keys"
			if c.Certs.ECHKeysFile != "" {
				path += "_file"
			}
			message, hint, _ := strings.Cut(err.Error(), "; ")
			d.bad(path, message, hint)
		}
	}
	d.sshFiles(files)
}

// resolveRouteFiles does the same for one route.
func (d *decoder) resolveRouteFiles(r *Route, files *fileSet) {
	p := r.Path() + "."
	d.pemPair(files, p+"tls_custom_ca", &r.Upstream.TLSCustomCA, r.Upstream.TLSCustomCAFile, pairInline)
	d.pemPair(files, p+"tls_client_cert", &r.Upstream.TLSClientCert, r.Upstream.TLSClientCertFile, pairInline)
	d.pemPair(files, p+"tls_client_key", &r.Upstream.TLSClientKey, r.Upstream.TLSClientKeyFile, pairInline)
	d.pemPair(files, p+"tls_downstream_client_ca", &r.Certs.TLSDownstreamClientCA, r.Certs.TLSDownstreamClientCAFile, pairFile)
	if name := r.Extra.KubernetesTokenFile; name != "" {
		if r.Extra.KubernetesToken != "" {
			d.bad(p+"kubernetes_service_account_token_file", "kubernetes_service_account_token is set, too", "keep one of them")
		}
		// Watched, so that a rotated token counts within moments.
		if b, ok := d.fileAt(files, p+"kubernetes_service_account_token_file", name, true); ok {
			r.Extra.KubernetesToken = strings.TrimRight(string(b), "\r\n")
		}
	}
}

// textFile reads a secret of one line; it and the inline key exclude each other.
func (d *decoder) textFile(files *fileSet, key string, value *string, name string) {
	if name == "" {
		return
	}
	if *value != "" {
		d.bad(key+"_file", key+" is set, too", "keep one of them")
		return
	}
	if b, ok := d.fileAt(files, key+"_file", name, false); ok {
		*value = strings.TrimSpace(string(b))
	}
}

// secretFile reads a file of 32 bytes in base64; it wins over the inline key.
// Line ends and blanks around are the editor's, not the secret's.
func (d *decoder) secretFile(files *fileSet, key string, value *[]byte, name string, lazily bool) {
	if name == "" {
		return
	}
	path := key + "_file"
	b, ok := d.fileAt(files, path, name, lazily)
	if !ok {
		return
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		d.bad(path, "the file does not hold standard base64 with padding", "make one with: head -c32 /dev/urandom | base64")
		return
	}
	if len(raw) != 32 {
		d.bad(path, fmt.Sprintf("the file holds %d bytes, not 32", len(raw)), "make one with: head -c32 /dev/urandom | base64")
		return
	}
	*value = raw
}

// Who wins where key and file are both set.
type pairRule uint8

const (
	pairInline    pairRule = iota // the inline key
	pairFile                      // the file
	pairExclusive                 // setting both is fatal
	pairAdded                     // both count
)

// pemPair reads the file variant of a key that holds PEM.
func (d *decoder) pemPair(files *fileSet, key string, value *[]byte, name string, rule pairRule) {
	if name == "" {
		return
	}
	path := key + "_file"
	inline := d.isSet(key) && len(*value) > 0
	if inline && rule == pairExclusive {
		d.bad(path, key+" is set, too", "keep one of them")
		return
	}
	b, ok := d.fileAt(files, path, name, false)
	if !ok {
		return
	}
	if len(strings.TrimSpace(string(b))) == 0 {
		// Taken for unset, an empty client CA would let everybody in.
		d.bad(path, "the file "+shorten(name)+" is empty", "put PEM into it, or leave the setting out")
		return
	}
	switch {
	case rule == pairAdded:
		d.cfg.Certs.ExtraRoots = joinPEM(*value, b)
	case inline && rule == pairInline:
	default:
		*value = b
	}
}

func joinPEM(a, b []byte) []byte {
	out := append([]byte{}, a...)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(out, b...)
}

// signingKey reads signing_key: PEM, or base64 of it, inline or in a file,
// which wins.
func (d *decoder) signingKey(files *fileSet) {
	c := &d.cfg.Authz
	text, path := string(c.SigningKey), "signing_key"
	if c.SigningKeyFile != "" {
		b, ok := d.fileAt(files, "signing_key_file", c.SigningKeyFile, true)
		if !ok {
			return
		}
		text, path = string(b), "signing_key_file"
	}
	text = strings.TrimSpace(text)
	c.SigningKey = nil
	if text == "" {
		return
	}
	raw := []byte(text)
	if block, _ := pem.Decode(raw); block == nil {
		b, err := fromBase64(text)
		if err != nil {
			d.bad(path, "the value is neither PEM nor standard base64 of it", "make one with: openssl ecparam -genkey -name prime256v1 -noout")
			return
		}
		raw = b
	}
	if _, err := authz.ParseSigningKeys(raw); err != nil {
		d.bad(path, err.Error(), "use an EC P-256 or RSA private key; make one with: openssl ecparam -genkey -name prime256v1 -noout")
		return
	}
	c.SigningKey = raw
}

// metricsPair reads the certificate of the metrics listener; the inline pair
// wins over the files, and half a pair counts as none.
func (d *decoder) metricsPair(files *fileSet) {
	t := &d.cfg.Telemetry
	if len(t.MetricsCertificate) > 0 && len(t.MetricsCertificateKey) > 0 {
		d.keyPair(certs.KeyPair{Source: "metrics_certificate", CertPEM: t.MetricsCertificate, KeyPEM: t.MetricsCertificateKey}, "metrics_certificate")
		return
	}
	t.MetricsCertificate, t.MetricsCertificateKey = nil, nil
	if t.MetricsCertificateFile == "" || t.MetricsCertificateKeyFile == "" {
		return
	}
	cert, ok1 := d.fileAt(files, "metrics_certificate_file", t.MetricsCertificateFile, false)
	key, ok2 := d.fileAt(files, "metrics_certificate_key_file", t.MetricsCertificateKeyFile, false)
	if ok1 && ok2 {
		t.MetricsCertificate, t.MetricsCertificateKey = cert, key
		d.keyPair(certs.KeyPair{Source: t.MetricsCertificateFile, CertPEM: cert, KeyPEM: key}, "metrics_certificate_file")
	}
}

// serverCertificates gathers the server certificates of all keys.
func (d *decoder) serverCertificates(files *fileSet) {
	c := &d.cfg.Certs
	for i, pair := range c.Certificates {
		at := indexed("certificates", i)
		if d.failed(at) {
			continue
		}
		if pair.Cert == "" || pair.Key == "" {
			d.bad(at, "cert and key belong together, and one is missing", "give the paths of both files")
			continue
		}
		cert, ok1 := d.fileAt(files, at+".cert", pair.Cert, false)
		key, ok2 := d.fileAt(files, at+".key", pair.Key, false)
		if ok1 && ok2 {
			source := pair.Cert
			if pair.ID != "" {
				source = pair.ID + " (" + pair.Cert + ")"
			}
			d.serverPair(certs.KeyPair{Source: source, CertPEM: cert, KeyPEM: key}, at+".cert")
		}
	}
	if d.half(d.isSet("certificate"), d.isSet("certificate_key"), "certificate", "certificate_key") && len(c.Certificate) > 0 && len(c.CertificateKey) > 0 {
		d.serverPair(certs.KeyPair{Source: "certificate", CertPEM: c.Certificate, KeyPEM: c.CertificateKey}, "certificate")
	}
	if d.half(c.CertificateFile != "", c.CertificateKeyFile != "", "certificate_file", "certificate_key_file") {
		cert, ok1 := d.fileAt(files, "certificate_file", c.CertificateFile, false)
		key, ok2 := d.fileAt(files, "certificate_key_file", c.CertificateKeyFile, false)
		if ok1 && ok2 {
			d.serverPair(certs.KeyPair{Source: c.CertificateFile, CertPEM: cert, KeyPEM: key}, "certificate_file")
		}
	}
	if len(c.ExtraRoots) == 0 {
		c.ExtraRoots = c.CertificateAuthority
	}
}

// half reports whether both of two keys are set, and complains if one is.
func (d *decoder) half(a, b bool, nameA, nameB string) bool {
	if a && !b {
		d.bad(nameA, nameB+" is missing", "set both or neither")
	}
	if b && !a {
		d.bad(nameB, nameA+" is missing", "set both or neither")
	}
	return a && b
}

func (d *decoder) serverPair(p certs.KeyPair, path string) {
	if err := p.Check(); err != nil {
		message, hint, _ := strings.Cut(err.Error(), "; ")
		d.bad(path, message, hint)
		return
	}
	d.cfg.Certs.Pairs = append(d.cfg.Certs.Pairs, p)
}

// sshFiles checks the SSH key files, only where the SSH door is on.
func (d *decoder) sshFiles(files *fileSet) {
	f := &d.cfg.Features
	names := append([]string{}, f.SSHHostKeyFiles...)
	if f.SSHUserCAKeyFile != "" {
		names = append(names, f.SSHUserCAKeyFile)
	}
	if f.SSHAddress == "" {
		return
	}
	for i, name := range names {
		path := indexed("ssh_host_key_files", i)
		if i == len(f.SSHHostKeyFiles) {
			path = "ssh_user_ca_key_file"
		}
		files.unwatched[name] = true
		b, ok := d.fileAt(files, path, name, false)
		if !ok {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o077 != 0 {
			d.bad(path, fmt.Sprintf("the file %s may be read by others (mode %04o)", shorten(name), info.Mode().Perm()), "chmod 600 it")
		}
		if path == "ssh_user_ca_key_file" {
			f.SSHUserCAKey = string(b)
		}
	}
}
