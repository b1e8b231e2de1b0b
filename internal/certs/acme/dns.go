package acme

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/libdns/libdns"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"postern/internal/certs"
)

// checkDNS checks the settings of autocert_dns_provider.
func checkDNS(c certs.Config) error {
	switch c.AutocertDNSProvider {
	case "":
	case "rfc2136":
		if _, _, err := net.SplitHostPort(c.AutocertDNSServer); err != nil {
			return fmt.Errorf("autocert_dns_server: %q is not host:port; name the server that takes DNS updates", c.AutocertDNSServer)
		}
		if (c.AutocertDNSTSIGKey == "") != (c.AutocertDNSTSIGSecret == "") {
			return errors.New("autocert_dns_tsig_key and autocert_dns_tsig_secret belong together; set both, or none for a server that trusts this address")
		}
		if _, err := base64.StdEncoding.DecodeString(c.AutocertDNSTSIGSecret); err != nil {
			return errors.New("autocert_dns_tsig_secret: it is not base64; copy it from the key file that tsig-keygen made")
		}
	case "exec":
		if !filepath.IsAbs(c.AutocertDNSCommand) {
			return fmt.Errorf("autocert_dns_command: %q is not an absolute path; name the program that writes DNS records", c.AutocertDNSCommand)
		}
	case "webhook":
		u, err := url.Parse(c.AutocertDNSWebhook)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return errors.New("autocert_dns_webhook: it is not an http or https URL; name the service that writes DNS records")
		}
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return errors.New("autocert_dns_webhook: whoever reads the requests could get certificates for these names; use https off this machine")
		}
	default:
		return fmt.Errorf("autocert_dns_provider: %q is not known; write rfc2136, exec or webhook", c.AutocertDNSProvider)
	}
	for _, r := range c.AutocertDNSResolvers {
		if _, _, err := net.SplitHostPort(r); err != nil && net.ParseIP(r) == nil {
			return fmt.Errorf("autocert_dns_resolvers: %q is not host:port of a name server", r)
		}
	}
	if c.AutocertDNSTTL < 0 || c.AutocertDNSPropagationDelay < 0 || c.AutocertDNSPropagationTimeout < 0 {
		return errors.New("autocert_dns_ttl, _propagation_delay and _propagation_timeout cannot be negative")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// newDNS gives the solver of dns-01 challenges; nil: nobody writes records.
func newDNS(c certs.Config, log *slog.Logger) acmez.Solver {
	var write recordWriter
	switch c.AutocertDNSProvider {
	case "rfc2136":
		write = &updates{server: c.AutocertDNSServer, zone: c.AutocertDNSZone, key: c.AutocertDNSTSIGKey, secret: c.AutocertDNSTSIGSecret, algorithm: c.AutocertDNSTSIGAlgorithm, ttl: c.AutocertDNSTTL}
		if c.AutocertDNSPropagationTimeout == 0 {
			return &plainSolver{write}
		}
	case "exec":
		write = command(c.AutocertDNSCommand)
	case "webhook":
		write = &webhook{url: c.AutocertDNSWebhook, secret: c.AutocertDNSWebhookSecret, client: &http.Client{
			Timeout:       dnsTimeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
	default:
		return nil
	}
	if c.AutocertDNSPropagationTimeout == 0 {
		return &plainSolver{write}
	}
	return &certmagic.DNS01Solver{DNSManager: certmagic.DNSManager{
		DNSProvider: zoneless{write}, TTL: c.AutocertDNSTTL, Resolvers: c.AutocertDNSResolvers,
		PropagationDelay: c.AutocertDNSPropagationDelay, PropagationTimeout: c.AutocertDNSPropagationTimeout,
		Logger: quiet(log),
	}}
}

// recordWriter puts up and takes down one TXT record. fqdn ends with a dot.
type recordWriter interface {
	present(ctx context.Context, fqdn, value string) error
	cleanup(ctx context.Context, fqdn, value string) error
}

// dnsTimeout bounds one call of a program, service or name server.
const dnsTimeout = time.Minute

// plainSolver writes records and does not look whether they are seen.
type plainSolver struct{ write recordWriter }

func (s *plainSolver) Present(ctx context.Context, c acme.Challenge) error {
	return s.write.present(ctx, c.DNS01TXTRecordName()+".", c.DNS01KeyAuthorization())
}

func (s *plainSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	return s.write.cleanup(context.WithoutCancel(ctx), c.DNS01TXTRecordName()+".", c.DNS01KeyAuthorization())
}

// zoneless lets certmagic, which finds the zone to look whether its name
// servers show the record, write by full names.
type zoneless struct{ write recordWriter }

func (z zoneless) AppendRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	for _, r := range recs {
		rr := r.RR()
		if err := z.write.present(ctx, fqdn(rr.Name, zone), rr.Data); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

func (z zoneless) DeleteRecords(ctx context.Context, zone string, recs []libdns.Record) ([]libdns.Record, error) {
	for _, r := range recs {
		rr := r.RR()
		if err := z.write.cleanup(ctx, fqdn(rr.Name, zone), rr.Data); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

func fqdn(name, zone string) string {
	return strings.TrimSuffix(libdns.AbsoluteName(name, zone), ".") + "."
}

// command is a program that writes records: PROGRAM present|cleanup NAME VALUE.
type command string

func (c command) run(ctx context.Context, action, fqdn, value string) error {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, string(c), action, fqdn, value)
	// It gets no secret of ours that stands in the environment.
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("autocert_dns_command %s %s failed: %w: %.200s", c, action, err, bytes.TrimSpace(out))
	}
	return nil
}

func (c command) present(ctx context.Context, fqdn, value string) error {
	return c.run(ctx, "present", fqdn, value)
}

func (c command) cleanup(ctx context.Context, fqdn, value string) error {
	return c.run(ctx, "cleanup", fqdn, value)
}

// webhook is a service that writes records.
type webhook struct {
	url    string
	secret string
	client *http.Client
}

func (w *webhook) call(ctx context.Context, action, fqdn, value string) error {
	b, err := json.Marshal(map[string]string{"action": action, "fqdn": fqdn, "value": value})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", w.url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if w.secret != "" {
		req.Header.Set("Authorization", "Bearer "+w.secret)
	}
	res, err := w.client.Do(req)
	if err != nil {
		var whole *url.Error
		if errors.As(err, &whole) {
			err = whole.Err // without the URL, which may hold a secret
		}
		return fmt.Errorf("autocert_dns_webhook does not answer: %w", err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("autocert_dns_webhook answers %s to %s: %s", res.Status, action, bytes.TrimSpace(text))
	}
	return nil
}

func (w *webhook) present(ctx context.Context, fqdn, value string) error {
	return w.call(ctx, "present", fqdn, value)
}

func (w *webhook) cleanup(ctx context.Context, fqdn, value string) error {
	return w.call(ctx, "cleanup", fqdn, value)
}
