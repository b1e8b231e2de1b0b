package policy

import (
	"net/netip"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
)

var sshCA = &Criterion{
	Name:    "ssh_ca",
	Doc:     "True if the SSH client offers a user certificate signed by a listed key, within its validity, that names the login name as a principal or names none.",
	Value:   "an authorized_keys line of a certificate authority, or a list of them",
	Matcher: keysKind,
	Example: `
policy:
  - allow: {and: [ssh_ca: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB]}
cases:
  - name: a bare key is no certificate
    ssh: {username: ada, public_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB}
    expect: deny
    reasons: [ssh-publickey-unauthorized]
`,
	Compile: compileSSHCA,
}

func compileSSHCA(s *Scope, n *yaml.Node) test {
	authorities := s.authorizedKeys(n)
	if authorities == nil {
		return nil
	}
	return func(in *Input) verdict {
		return pass(goodUserCertificate(in, authorities), ReasonSSHPublicKeyOK.set(), ReasonSSHPublicKeyUnauthorized.set())
	}
}

func goodUserCertificate(in *Input, authorities map[string]struct{}) bool {
	if in.SSH == nil || len(in.SSH.PublicKey) == 0 {
		return false
	}
	return verifyUserCertificate(in.SSH.Username, in.SSH.PublicKey, in.ClientIP, in.Now, authorities)
}

// UserCertificate is the question whether an SSH user certificate is good.
type UserCertificate struct {
	Name        string // login name
	Certificate []byte // wire form
	Authorities [][]byte
	From        netip.Addr // for a certificate that limits its sources
	Now         time.Time
}

// VerifyUserCertificate tells whether a certificate is a user certificate
// signed by one of the authorities, within its validity, that names the login
// name as a principal or names none: the rule of ssh_ca, for custom scripts.
func VerifyUserCertificate(q UserCertificate) bool {
	authorities := make(map[string]struct{}, len(q.Authorities))
	for _, key := range q.Authorities {
		authorities[string(key)] = struct{}{}
	}
	return len(q.Certificate) > 0 && verifyUserCertificate(q.Name, q.Certificate, q.From, q.Now, authorities)
}

func verifyUserCertificate(name string, wire []byte, from netip.Addr, now time.Time, authorities map[string]struct{}) bool {
	key, err := ssh.ParsePublicKey(wire)
	if err != nil {
		return false
	}
	cert, ok := key.(*ssh.Certificate)
	if !ok || cert.CertType != ssh.UserCert || cert.SignatureKey == nil {
		return false
	}
	if _, listed := authorities[string(cert.SignatureKey.Marshal())]; !listed {
		return false
	}
	if sources, limited := cert.CriticalOptions[sourceAddress]; limited && !fromSource(from, sources) {
		return false
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{sourceAddress},
		Clock:                    func() time.Time { return now },
	}
	return checker.CheckCert(name, cert) == nil
}

// sourceAddress is the critical option that limits where a certificate may be
// used from (OpenSSH PROTOCOL.certkeys). Options not known here refuse.
const sourceAddress = "source-address"

func fromSource(ip netip.Addr, sources string) bool {
	if !ip.IsValid() {
		return false
	}
	for source := range strings.SplitSeq(sources, ",") {
		if p, err := parseRange(strings.TrimSpace(source)); err == nil && p.Contains(ip.Unmap()) {
			return true
		}
	}
	return false
}
