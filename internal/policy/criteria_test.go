package policy

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func makeCertificate(t *testing.T, template *x509.Certificate) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	template.Subject = pkix.Name{CommonName: "test"}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestClientCertificate(t *testing.T) {
	uri, _ := url.Parse("spiffe://shore.test/laptop/7")
	named := makeCertificate(t, &x509.Certificate{DNSNames: []string{"one.shore.test", "two.pier.test"}, EmailAddresses: []string{"ann@shore.test"}, URIs: []*url.URL{uri}})
	plain := makeCertificate(t, &x509.Certificate{})
	sum := sha256.Sum256(named.Raw)
	short := hex.EncodeToString(sum[:])
	var pairs []string
	for _, b := range sum {
		pairs = append(pairs, strings.ToUpper(hex.EncodeToString([]byte{b})))
	}
	long := strings.Join(pairs, ":")
	key := sha256.Sum256(named.RawSubjectPublicKeyInfo)
	spki := base64.StdEncoding.EncodeToString(key[:])
	other := strings.Repeat("0", 64)

	for matcher, want := range map[string][3]bool{ // named, plain, none
		"{}":                             {true, true, false},
		"{fingerprint: '" + short + "'}": {true, false, false},
		"{fingerprint: ['" + other + "', '" + long + "']}": {true, false, false},
		"{fingerprint: []}":                                   {false, false, false},
		"{spki_hash: '" + spki + "'}":                         {true, false, false},
		"{san_dns: one.shore.test}":                           {true, false, false},
		"{san_dns: {starts_with: one, ends_with: pier.test}}": {true, false, false}, // two names
		"{san_dns: {not: one.shore.test}}":                    {true, false, false},
		"{san_email: {not: ann@shore.test}}":                  {false, false, false},
		"{san_dns: {not_in: [three]}}":                        {true, true, false},
		"{san_dns: {not_in: [two.pier.test]}}":                {false, true, false},
		"{san_dns: {in: [two.pier.test, x]}}":                 {true, false, false},
		"{san_uri: {ends_with: /7}}":                          {true, false, false},
		"{san_email: ann@shore.test, san_dns: x}":             {false, false, false},
	} {
		p := mustParse(t, "allow: {and: [{client_certificate: "+matcher+"}]}")
		for i, cert := range []*x509.Certificate{named, plain, nil} {
			if got := outcomeOf(p, &Input{Certificate: cert}); (got == Allow) != want[i] {
				t.Errorf("%s, certificate %d: %v", matcher, i, got)
			}
		}
	}
	for _, bad := range []string{strings.ToUpper(short), short[1:], short + "0", long + ":00", strings.ToLower(long), strings.ReplaceAll(long, ":", "-"), strings.Repeat("g", 64), " " + short} {
		if _, _, err := Parse("p.yaml", []byte("allow: {or: [{client_certificate: {fingerprint: '"+bad+"'}}]}"), Options{}); err == nil || !strings.Contains(err.Error(), "fingerprint") {
			t.Errorf("fingerprint %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", spki[1:], spki + "A", strings.TrimRight(spki, "="), hex.EncodeToString(key[:])} {
		if _, _, err := Parse("p.yaml", []byte("allow: {or: [{client_certificate: {spki_hash: '"+bad+"'}}]}"), Options{}); err == nil || !strings.Contains(err.Error(), "spki_hash") || !strings.Contains(err.Error(), "SHA-256") {
			t.Errorf("spki_hash %q: %v", bad, err)
		}
	}
}

func TestSSHKeys(t *testing.T) {
	newKey := func() (ssh.PublicKey, ssh.Signer) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.NewSignerFromKey(private)
		if err != nil {
			t.Fatal(err)
		}
		return signer.PublicKey(), signer
	}
	line := func(k ssh.PublicKey) string { return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(k))) }
	mine, _ := newKey()
	others, _ := newKey()
	caKey, ca := newKey()
	_, rogue := newKey()
	now := time.Unix(1_800_000_000, 0)
	certificate := func(signer ssh.Signer, change func(*ssh.Certificate)) []byte {
		c := &ssh.Certificate{Key: mine, CertType: ssh.UserCert, ValidPrincipals: []string{"ann"}, ValidBefore: ssh.CertTimeInfinity}
		if change != nil {
			change(c)
		}
		if err := c.SignCert(rand.Reader, signer); err != nil {
			t.Fatal(err)
		}
		return c.Marshal()
	}
	keys := mustParse(t, "allow: {or: [{ssh_publickey: ['"+line(mine)+" a comment']}]}")
	authority := mustParse(t, "allow: {or: [{ssh_ca: '"+line(caKey)+"'}]}")
	for name, c := range map[string]struct {
		p    *Policy
		user string
		key  []byte
		want bool
	}{
		"listed key":                   {keys, "ann", mine.Marshal(), true},
		"another key":                  {keys, "ann", others.Marshal(), false},
		"no key":                       {keys, "ann", nil, false},
		"its certificate is not a key": {keys, "ann", certificate(ca, nil), false},
		"certificate":                  {authority, "ann", certificate(ca, nil), true},
		"another login":                {authority, "bob", certificate(ca, nil), false},
		"no principals":                {authority, "bob", certificate(ca, func(c *ssh.Certificate) { c.ValidPrincipals = nil }), true},
		"host certificate":             {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }), false},
		"another authority":            {authority, "ann", certificate(rogue, nil), false},
		"expired":                      {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.ValidBefore = 1_800_000_000 }), false},
		"last second":                  {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.ValidBefore = 1_800_000_001 }), true},
		"not yet":                      {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.ValidAfter = 1_800_000_001 }), false},
		"bare key":                     {authority, "ann", mine.Marshal(), false},
		"the authority's own key":      {authority, "ann", caKey.Marshal(), false},
		"garbage":                      {authority, "ann", []byte("garbage"), false},
		"from here":                    {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "192.0.2.0/24"} }), true},
		"from elsewhere":               {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "10.0.0.0/8"} }), false},
		"an option not understood":     {authority, "ann", certificate(ca, func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "ls"} }), false},
	} {
		in := &Input{Now: now, ClientIP: netip.MustParseAddr("192.0.2.9"), SSH: &SSHInput{Username: c.user, PublicKey: c.key}}
		var res Result
		c.p.Evaluate(in, &res)
		if got := ChooseSSH(&res, false).Outcome; (got == Allow) != c.want {
			t.Errorf("%s: %v", name, got)
		}
		if res.Allow.Reasons.Has(ReasonSSHPublicKeyUnauthorized) == c.want {
			t.Errorf("%s: reasons %v", name, res.Allow.Reasons.Names())
		}
		forged := append([]byte(nil), c.key...)
		if c.want && len(forged) > 0 {
			forged[len(forged)-1] ^= 1
			in.SSH.PublicKey = forged
			c.p.Evaluate(in, &res)
			if res.Allow.Value {
				t.Errorf("%s: a flipped bit is not noticed", name)
			}
		}
	}
	for _, bad := range []string{"", "ssh-ed25519", "ssh-ed25519 AAAA", "# " + line(mine), line(mine) + "\\n" + line(others)} {
		if _, _, err := Parse("p.yaml", []byte(`allow: {or: [{ssh_publickey: "`+bad+`"}]}`), Options{}); err == nil || !strings.Contains(err.Error(), "ssh_publickey") {
			t.Errorf("key %q: %v", bad, err)
		}
	}
}

func TestChooseSSH(t *testing.T) {
	for text, want := range map[string][2]Outcome{ // first, later
		"allow: {or: [{accept: 1}]}":                                  {Allow, Allow},
		"allow: {or: [{user: ann}]}":                                  {Login, Deny},
		"allow: {or: [{accept: 1}]}\ndeny: {or: [{user: ann}]}":       {Login, Allow},
		"allow: {or: [{accept: 1}]}\ndeny: {or: [{ssh_ca: []}]}":      {Deny, Allow},
		"allow: {and: [{ssh_ca: []}, {user: ann}]}":                   {Deny, Deny},
		"allow: {or: [{accept: 1}]}\ndeny: {or: [{ssh_username: r}]}": {Deny, Deny},
	} {
		var res Result
		mustParse(t, text).Evaluate(&Input{SSH: &SSHInput{Username: "r"}}, &res)
		if got := [2]Outcome{ChooseSSH(&res, false).Outcome, ChooseSSH(&res, true).Outcome}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

func TestAcceptsHTML(t *testing.T) {
	for accept, want := range map[string]bool{
		"": true, "*/*": true, "text/html": true, "text/*": true, "image/png": true, "image/*, */*;q=0.1": true,
		"text/html, application/json": true, "application/json, text/html": true, "application/json;q=0.9, text/html;q=0.9": true,
		"application/json": false, "text/plain": false, "application/*": false, "application/grpc-web-text": false,
		"application/json, text/html;q=0.9": false, "text/html;q=0, */*": false, "text/*, text/html;q=0.1": false,
		"APPLICATION/JSON": false, "application/json; charset=utf-8": false, " application/json ,": false,
		"json": true, "application/json;q=x": true, "application/json;q=7": true, "*/json": true, "application/json;q=0": true,
		"application/json;q=nan": true, strings.Repeat("application/json,", 100): true,
	} {
		if got := AcceptsHTML(accept); got != want {
			t.Errorf("Accept %q: %v", accept, got)
		}
	}
	for kind, want := range map[string]bool{
		"": true, "application/json": true, "application/grpc": false, "application/grpc+proto": false, "Application/GRPC; x=y": false,
		"application/grpc-web": false, "application/grpc-web+proto": false, "application/grpc-web-text": false, "application/grpcx": true,
	} {
		if got := Follows(kind, "", false); got != want {
			t.Errorf("Content-Type %q: %v", kind, got)
		}
	}
	if Follows("", "text/html", true) {
		t.Error("a program with a token is redirected")
	}
}

func TestInternalPath(t *testing.T) {
	for path, want := range map[string][2]bool{
		"/.pomerium": {true, false}, "/.pomerium/": {true, false}, "/.pomerium/jwt": {true, true}, "/.pomerium/jwt/": {true, false},
		"/.pomerium/api/v1/routes": {true, true}, "/.pomerium/mcp/routes": {true, true}, "/.well-known/pomerium": {true, false},
		"/.well-known/pomerium/jwks.json": {true, false}, "/ping": {true, false}, "/healthz": {true, false},
		"/.pomeriums": {}, "/.well-known/pomerium-x": {}, "/ping/": {}, "/healthz/x": {}, "/x/.pomerium/": {}, "": {}, "/": {},
		"/.pomerium%2Fjwt": {}, "/.Pomerium/": {},
	} {
		internal, session := InternalPath(path)
		if got := [2]bool{internal, session}; got != want {
			t.Errorf("%q: %v", path, got)
		}
	}
}

func TestDecodePath(t *testing.T) {
	for target, want := range map[string]string{
		"/a": "/a", "/a?b": "/a", "/a?b?c": "/a", "/a%2Fb": "/a/b", "/a%3Fb": "/a?b", "/%2561": "/%61", "/a+b": "/a+b", "/a;b": "/a;b",
		"/a//b/./../c/": "/a//b/./../c/", "/%C3%AB": "/ë", "/%zz": "", "/%": "", "/%4": "", "": "", "?x": "", "*": "*",
	} {
		if got := DecodePath(target); got != want {
			t.Errorf("%q: got %q, want %q", target, got, want)
		}
	}
}
