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
	key, err := ssh.ParsePublicKey(in.SSH.PublicKey)
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
	if sources, limited := cert.CriticalOptions[sourceAddress]; limited && !fromSource(in.ClientIP, sources) {
		return false
	}
	checker := ssh.CertChecker{
		SupportedCriticalOptions: []string{sourceAddress},
		Clock:                    func() time.Time { return in.Now },
	}
	return checker.CheckCert(in.SSH.Username, cert) == nil
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
