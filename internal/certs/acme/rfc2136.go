package acme

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// updates writes records by dynamic update (RFC 2136), signed by TSIG (RFC
// 8945).
type updates struct {
	server    string // host:port
	zone      string // "": found by asking for the SOA
	key       string
	secret    string
	algorithm string
	ttl       time.Duration
}

// tsigFudge is how far clocks may be apart.
const tsigFudge = 300 // seconds

func (u *updates) present(ctx context.Context, fqdn, value string) error {
	return u.update(ctx, fqdn, value, true)
}

func (u *updates) cleanup(ctx context.Context, fqdn, value string) error {
	return u.update(ctx, fqdn, value, false)
}

func (u *updates) update(ctx context.Context, fqdn, value string, insert bool) error {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	zone, err := u.zoneOf(ctx, fqdn)
	if err != nil {
		return err
	}
	rr := &dns.TXT{
		Hdr: dns.RR_Header{Name: fqdn, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: uint32(u.ttl / time.Second)},
		Txt: []string{value},
	}
	m := new(dns.Msg)
	m.SetUpdate(zone)
	if insert {
		m.Insert([]dns.RR{rr})
	} else {
		m.Remove([]dns.RR{rr})
	}
	res, err := u.exchange(ctx, m, true)
	if err != nil {
		return fmt.Errorf("the DNS server %s did not take the update of %s: %w", u.server, fqdn, err)
	}
	if res.Rcode != dns.RcodeSuccess {
		return fmt.Errorf("the DNS server %s refused the update of %s: %s; look at what the key %q may change there", u.server, fqdn, dns.RcodeToString[res.Rcode], u.key)
	}
	return nil
}

// zoneOf asks the server itself, which is the one that knows.
func (u *updates) zoneOf(ctx context.Context, fqdn string) (string, error) {
	if u.zone != "" {
		return dns.Fqdn(u.zone), nil
	}
	for name := fqdn; name != "." && name != ""; {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeSOA)
		res, err := u.exchange(ctx, m, false)
		if err != nil {
			return "", fmt.Errorf("the DNS server %s does not answer: %w", u.server, err)
		}
		for _, rr := range append(res.Answer, res.Ns...) {
			if soa, ok := rr.(*dns.SOA); ok && dns.IsSubDomain(soa.Hdr.Name, fqdn) {
				return soa.Hdr.Name, nil
			}
		}
		_, name, _ = strings.Cut(name, ".")
	}
	return "", fmt.Errorf("the DNS server %s has no zone for %s; set autocert_dns_zone, or another autocert_dns_server", u.server, fqdn)
}

func (u *updates) exchange(ctx context.Context, m *dns.Msg, sign bool) (*dns.Msg, error) {
	c := &dns.Client{Net: "tcp", Timeout: 10 * time.Second}
	if sign && u.key != "" {
		key := dns.Fqdn(strings.ToLower(u.key))
		c.TsigSecret = map[string]string{key: u.secret}
		m.SetTsig(key, dns.Fqdn(u.algorithm), tsigFudge, time.Now().Unix())
	}
	res, _, err := c.ExchangeContext(ctx, m, u.server)
	return res, err
}
