package acme

import (
	"encoding/base64"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/miekg/dns"

	"postern/internal/certs"
)

// The settings reach who obeys them.
func TestDNSSettings(t *testing.T) {
	c := certs.Config{AutocertDNSProvider: "webhook", AutocertDNSWebhook: "https://a/", AutocertDNSWebhookSecret: "s", AutocertDNSTTL: 7 * time.Second,
		AutocertDNSPropagationDelay: 3 * time.Second, AutocertDNSPropagationTimeout: time.Minute, AutocertDNSResolvers: []string{"127.0.0.1:53"}}
	s, ok := newDNS(c, quietLog).(*certmagic.DNS01Solver)
	if !ok || s.TTL != c.AutocertDNSTTL || s.PropagationDelay != c.AutocertDNSPropagationDelay || s.PropagationTimeout != time.Minute || s.Resolvers[0] != "127.0.0.1:53" {
		t.Fatalf("%+v", s)
	}
	if w := s.DNSProvider.(zoneless).write.(*webhook); w.url != "https://a/" || w.secret != "s" {
		t.Errorf("%+v", w)
	}
	if newDNS(certs.Config{}, quietLog) != nil {
		t.Error("somebody writes records unasked")
	}
}

// An update is what RFC 2136 says: signed, with the time to live, and taken
// back by value.
func TestUpdates(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString([]byte("0123456789"))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	server := &dns.Server{Listener: ln, TsigSecret: map[string]string{"k.": secret}, MsgAcceptFunc: func(dns.Header) dns.MsgAcceptAction { return dns.MsgAccept },
		Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg)
			m.SetReply(r)
			switch {
			case r.Opcode == dns.OpcodeUpdate && (r.IsTsig() == nil || w.TsigStatus() != nil):
				m.Rcode = dns.RcodeNotAuth
			case r.Opcode == dns.OpcodeUpdate:
				for _, rr := range r.Ns {
					seen = append(seen, r.Question[0].Name+" "+strings.ReplaceAll(rr.String(), "\t", " "))
				}
			case r.Question[0].Name == "zone.test." && r.Question[0].Qtype == dns.TypeSOA:
				m.Answer = append(m.Answer, &dns.SOA{Hdr: dns.RR_Header{Name: "zone.test.", Rrtype: dns.TypeSOA, Class: dns.ClassINET}, Ns: "ns.zone.test.", Mbox: "m.zone.test."})
			default:
				m.Rcode = dns.RcodeNameError
			}
			if r.IsTsig() != nil && w.TsigStatus() == nil {
				m.SetTsig("k.", dns.HmacSHA256, tsigFudge, time.Now().Unix())
			}
			_ = w.WriteMsg(m)
		})}
	go func() { _ = server.ActivateAndServe() }()
	defer func() { _ = server.Shutdown() }()
	c := certs.Config{AutocertDNSServer: ln.Addr().String(), AutocertDNSTTL: 42 * time.Second}
	u := &updates{server: c.AutocertDNSServer, key: "k", secret: secret, algorithm: "hmac-sha256", ttl: c.AutocertDNSTTL}
	if err := u.present(t.Context(), "_acme-challenge.a.zone.test.", "value"); err != nil {
		t.Fatal(err)
	}
	if err := u.cleanup(t.Context(), "_acme-challenge.a.zone.test.", "value"); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0] != `zone.test. _acme-challenge.a.zone.test. 42 IN TXT "value"` || seen[1] != `zone.test. _acme-challenge.a.zone.test. 0 NONE TXT "value"` {
		t.Errorf("%q", seen)
	}
	u.key = ""
	if err := u.present(t.Context(), "_acme-challenge.a.zone.test.", "value"); err == nil || !strings.Contains(err.Error(), "NOTAUTH") {
		t.Error(err)
	}
	if err := u.present(t.Context(), "_acme-challenge.elsewhere.test.", "value"); err == nil || !strings.Contains(err.Error(), "autocert_dns_zone") {
		t.Error(err)
	}
}

// The URL of a webhook often holds its key; what goes wrong does not tell it.
func TestWebhookErrorsTellNoSecret(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // nobody is there
	s := newDNS(certs.Config{AutocertDNSProvider: "webhook", AutocertDNSWebhook: "http://" + ln.Addr().String() + "/hook?key=open-sesame"}, quietLog).(*plainSolver)
	err = s.write.present(t.Context(), "_acme-challenge.a.test.", "v")
	if err == nil || strings.Contains(err.Error(), "sesame") || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}
