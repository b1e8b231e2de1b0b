package acme

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"

	"postern/internal/certs"
)

// Wanted is what a configuration asks for.
type Wanted struct {
	Config certs.Config
	// Hosts are the names of routes and of the own sign-in host, with or
	// without wildcards, in any case and order, without ports.
	Hosts []string
	// PlainListener is http_redirect_addr; HTTP-01 is answered there.
	PlainListener string
	// Insecure says that the main listener speaks no TLS.
	Insecure bool
	// Configured tells whether a name is served by a configured certificate,
	// which wins. It may be nil.
	Configured func(name string) bool
}

// Plan is a checked Wanted.
type Plan struct {
	on         bool
	key        string // equal keys mean that nothing but the hosts differs
	config     certs.Config
	directory  string
	challenges []string
	roots      *x509.CertPool
	storage    storageURL
	hosts      []string
	skipped    []HostStatus
	notes      []string
}

// Notes are what the operator should look at although everything works.
func (p *Plan) Notes() []string {
	if p == nil {
		return nil
	}
	return p.notes
}

// Prepare checks settings and sorts hosts. It touches neither network nor
// storage. Errors name the key and say what to do.
func Prepare(w Wanted) (*Plan, error) {
	c := w.Config
	p := &Plan{config: c}
	if !c.Autocert {
		return p, nil
	}
	p.directory = cmp.Or(c.AutocertCA, map[bool]string{true: certmagic.LetsEncryptStagingCA, false: certmagic.LetsEncryptProductionCA}[c.AutocertUseStaging])
	if u, err := url.Parse(p.directory); err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && certmagic.SubjectIsInternal(u.Host)) {
		return nil, fmt.Errorf("autocert_ca: %q is not an https URL; give the directory URL of the ACME server", p.directory)
	}
	if len(c.AutocertTrustedCA) > 0 {
		p.roots = x509.NewCertPool()
		if !p.roots.AppendCertsFromPEM(c.AutocertTrustedCA) {
			return nil, errors.New("autocert_trusted_ca: there is no certificate in it; give the PEM CA of the ACME server")
		}
	}
	var err error
	if p.storage, err = parseStorage(c.AutocertDir); err != nil {
		return nil, err
	}
	if err := checkDNS(c); err != nil {
		return nil, err
	}
	if err := p.chooseChallenges(w); err != nil {
		return nil, err
	}
	if w.Insecure {
		p.notes = append(p.notes, "autocert is set, and insecure_server says that clients come without TLS: no certificate is asked for")
		return p, nil
	}
	p.on = true
	p.sortHosts(w)
	p.key, err = settingsKey(c, p.directory, p.challenges)
	return p, err
}

// settingsKey tells two sets of settings apart without keeping a secret.
func settingsKey(c certs.Config, more ...any) (string, error) {
	b, err := json.Marshal(append(more, c.AutocertEmail, c.AutocertEABKeyID, c.AutocertEABMACKey, c.AutocertMustStaple, c.AutocertDir, c.AutocertTrustedCA, c.AutocertProfile,
		c.AutocertDNSProvider, c.AutocertDNSServer, c.AutocertDNSZone, c.AutocertDNSTSIGKey, c.AutocertDNSTSIGSecret, c.AutocertDNSTSIGAlgorithm,
		c.AutocertDNSCommand, c.AutocertDNSWebhook, c.AutocertDNSWebhookSecret, c.AutocertDNSTTL, c.AutocertDNSPropagationDelay, c.AutocertDNSPropagationTimeout, c.AutocertDNSResolvers))
	sum := sha256.Sum256(b)
	return string(sum[:]), err
}

func (p *Plan) chooseChallenges(w Wanted) error {
	c := w.Config
	for _, name := range c.AutocertChallenges {
		switch name = strings.ToLower(strings.TrimSpace(name)); name {
		case acme.ChallengeTypeHTTP01:
			if w.PlainListener == "" {
				return errors.New("autocert_challenges: http-01 is answered on the plain listener, and there is none; set http_redirect_addr, or leave http-01 out")
			}
		case acme.ChallengeTypeDNS01:
			if c.AutocertDNSProvider == "" {
				return errors.New("autocert_challenges: dns-01 needs somebody to write DNS records; set autocert_dns_provider, or leave dns-01 out")
			}
		case acme.ChallengeTypeTLSALPN01:
		default:
			return fmt.Errorf("autocert_challenges: %q is no challenge; write http-01, tls-alpn-01 or dns-01", name)
		}
		p.challenges = append(p.challenges, name)
	}
	if len(p.challenges) > 0 {
		return nil
	}
	if c.AutocertDNSProvider != "" {
		p.challenges = []string{acme.ChallengeTypeDNS01}
		return nil
	}
	p.challenges = []string{acme.ChallengeTypeTLSALPN01}
	if _, port, err := net.SplitHostPort(w.PlainListener); err == nil && (port == "80" || port == "http") {
		p.challenges = append(p.challenges, acme.ChallengeTypeHTTP01)
	}
	return nil
}

// sortHosts says which hosts get a certificate, and why others do not.
func (p *Plan) sortHosts(w Wanted) {
	seen := map[string]bool{}
	for _, name := range w.Hosts {
		name = canonicalName(name)
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		if w.Configured != nil && w.Configured(name) {
			p.skipped = append(p.skipped, HostStatus{Name: name, State: StateConfigured})
			continue
		}
		if why := p.cannot(name); why != "" {
			p.skipped = append(p.skipped, HostStatus{Name: name, State: StateSkipped, Error: why})
			continue
		}
		p.hosts = append(p.hosts, name)
	}
	slices.Sort(p.hosts)
	slices.SortFunc(p.skipped, func(a, b HostStatus) int { return strings.Compare(a.Name, b.Name) })
}

// cannot says why a name can have no certificate from this server, or "".
func (p *Plan) cannot(name string) string {
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return "it is an IP address, which needs a certificate of its own: set certificates"
	}
	if certs.LocalName(name) {
		return "no ACME server vouches for localhost"
	}
	bare := name
	if strings.Contains(name, "*") {
		var ok bool
		if bare, ok = strings.CutPrefix(name, "*."); !ok || strings.Contains(bare, "*") {
			return "a certificate may have a wildcard as its whole first label only: set certificates"
		}
		if p.config.AutocertDNSProvider == "" {
			return "a wildcard needs the dns-01 challenge: set autocert_dns_provider, or certificates"
		}
	}
	if len(bare) > 253 || !hostName(bare) {
		return "it is not a host name that a certificate can hold"
	}
	if p.publicCA() && (!certmagic.SubjectQualifiesForPublicCert(name) || reserved(bare)) {
		return "no public certificate authority vouches for such a name: set certificates, or autocert_ca to one of your own"
	}
	return ""
}

func hostName(s string) bool {
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for i := range len(label) {
			if c := label[i]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return true
}

// reserved names exist in no public DNS (RFC 6761, RFC 7686), nor do those of
// one label.
func reserved(name string) bool {
	last := strings.LastIndexByte(name, '.')
	return last < 0 || slices.Contains([]string{"test", "example", "invalid", "onion", "localhost", "local", "internal", "alt"}, name[last+1:])
}

// publicCAs vouch for public names only.
var publicCAs = []string{"letsencrypt.org", "zerossl.com", "pki.goog", "buypass.com", "ssl.com"}

func (p *Plan) publicCA() bool {
	u, err := url.Parse(p.directory)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(publicCAs, func(domain string) bool {
		return u.Hostname() == domain || strings.HasSuffix(u.Hostname(), "."+domain)
	})
}

// DefaultDir is autocert_dir where it is not set (configuration.md §2.3).
func DefaultDir() string {
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "pomerium", "autocert")
	}
	if home, err := os.UserHomeDir(); err == nil && home != "" {
		return filepath.Join(home, ".local", "share", "pomerium", "autocert")
	}
	return "/var/tmp/pomerium/data/autocert"
}
