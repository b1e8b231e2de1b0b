package policy

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
)

var sshPublicKey = &Criterion{
	Name:    "ssh_publickey",
	Doc:     "True if the key that the SSH client offers is listed. Comments are ignored; a certificate is not its key.",
	Value:   "an authorized_keys line, or a list of them",
	Matcher: keysKind,
	Example: `
policy:
  - allow:
      and:
        - ssh_publickey:
            - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB ada
cases:
  - name: the listed key
    ssh: {username: ada, public_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB}
    expect: allow
  - name: another
    ssh: {username: ada, public_key: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC}
    expect: deny
`,
	Compile: compileSSHPublicKey,
}

func compileSSHPublicKey(s *Scope, n *yaml.Node) test {
	keys := s.authorizedKeys(n)
	if keys == nil {
		return nil
	}
	return func(in *Input) verdict {
		listed := false
		if in.SSH != nil && len(in.SSH.PublicKey) > 0 {
			_, listed = keys[string(in.SSH.PublicKey)]
		}
		return pass(listed, ReasonSSHPublicKeyOK.set(), ReasonSSHPublicKeyUnauthorized.set())
	}
}

// authorizedKeys reads one line or a list, as a set of keys in wire form.
// nil: reported.
func (s *Scope) authorizedKeys(n *yaml.Node) map[string]struct{} {
	lines, nodes, ok := s.texts(n, "", s.Criterion.Name)
	keys := make(map[string]struct{}, len(lines))
	for i, line := range lines {
		key, err := parseAuthorizedKey(line)
		if err != nil {
			sub := ""
			if nodes[i] != n {
				sub = fmt.Sprintf("[%d]", indexOf(n, nodes[i]))
			}
			s.Errorf(nodes[i], sub, "%s is not a public key for %s: %v; give one authorized_keys line, such as ssh-ed25519 AAAA... comment",
				quote(line), s.Criterion.Name, err)
			ok = false
			continue
		}
		keys[string(key.Marshal())] = struct{}{}
	}
	if !ok {
		return nil
	}
	if len(lines) == 0 {
		s.Warnf(n, "", "an empty list of keys never matches")
	}
	if s.Action == "deny" {
		s.Warnf(s.Key, "", "%s under deny turns away every key that it does not list; put it under allow", s.Criterion.Name)
	}
	return keys
}

func parseAuthorizedKey(line string) (ssh.PublicKey, error) {
	if strings.ContainsAny(strings.TrimSpace(line), "\r\n") {
		return nil, fmt.Errorf("it has several lines")
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return nil, fmt.Errorf("no key found")
	}
	return key, nil
}
