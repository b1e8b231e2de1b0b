package certs

import (
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Encrypted Client Hello (RFC 9849): the name of the application travels under
// a key that is published in DNS (RFC 9848), and in the clear stands a public
// name that all applications share. The PEM form is the one that other servers
// use (draft-farrell-tls-pemesni): a PRIVATE KEY and the ECHCONFIG it is for.

const (
	echVersion  = 0xfe0d
	kemX25519   = 0x0020 // DHKEM(X25519, HKDF-SHA256), RFC 9180
	kdfSHA256   = 0x0001
	aeadAES128  = 0x0001
	aeadAES256  = 0x0002
	aeadChaCha  = 0x0003
	maxECHKeys  = 8 // a hello that none fits costs a try with each
	echPaddedTo = 64
)

// ECHKey is one key with what is published of it.
type ECHKey struct {
	PublicName string
	// Config is the ECHConfig, and List the ECHConfigList that holds it alone:
	// the value of ech= in an HTTPS record, before base64.
	Config, List []byte

	id  uint8
	key *ecdh.PrivateKey
}

// NewECHKey makes a key. publicName is the name that strangers see; others are
// the keys that are in use beside it, whose ids it avoids.
func NewECHKey(publicName string, others []ECHKey) (*ECHKey, error) {
	publicName = serverName(publicName)
	if err := checkPublicName(publicName); err != nil {
		return nil, err
	}
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 1)
	for rand.Read(id); slices.ContainsFunc(others, func(o ECHKey) bool { return o.id == id[0] }); {
		id[0]++
	}
	pub := key.PublicKey().Bytes()
	body := append([]byte{id[0]}, binary.BigEndian.AppendUint16(nil, kemX25519)...)
	body = binary.BigEndian.AppendUint16(body, uint16(len(pub)))
	body = append(body, pub...)
	suites := []uint16{kdfSHA256, aeadAES128, kdfSHA256, aeadAES256, kdfSHA256, aeadChaCha}
	body = binary.BigEndian.AppendUint16(body, uint16(2*len(suites)))
	for _, x := range suites {
		body = binary.BigEndian.AppendUint16(body, x)
	}
	body = append(body, echPaddedTo, byte(len(publicName)))
	body = append(body, publicName...)
	body = append(body, 0, 0) // no extensions
	config := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, echVersion), uint16(len(body)))
	config = append(config, body...)
	k := &ECHKey{PublicName: publicName, Config: config, id: id[0], key: key}
	k.List = append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
	return k, nil
}

// PEM is the key as ech_keys takes it. It is a secret.
func (k *ECHKey) PEM() ([]byte, error) {
	raw, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, err
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "ECHCONFIG", Bytes: k.List})...), nil
}

// Record is the HTTPS record (RFC 9460) that each host is given in DNS.
func (k *ECHKey) Record(host string) string {
	return fmt.Sprintf("%s. IN HTTPS 1 . ech=%s", strings.TrimSuffix(host, "."), base64.StdEncoding.EncodeToString(k.List))
}

// ParseECHKeys reads ech_keys: pairs of PRIVATE KEY and ECHCONFIG.
func ParseECHKeys(text []byte) ([]ECHKey, error) {
	const hint = "make the keys with: postern ech-key"
	var out []ECHKey
	var key *ecdh.PrivateKey
	for rest := text; ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch b.Type {
		case "PRIVATE KEY":
			if key != nil {
				return nil, errors.New("a PRIVATE KEY is not followed by its ECHCONFIG; " + hint)
			}
			k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
			if err != nil {
				return nil, errors.New("a PRIVATE KEY cannot be read; " + hint)
			}
			x, ok := k.(*ecdh.PrivateKey)
			if !ok || x.Curve() != ecdh.X25519() {
				return nil, errors.New("a PRIVATE KEY is not of the kind X25519; " + hint)
			}
			key = x
		case "ECHCONFIG":
			if key == nil {
				return nil, errors.New("an ECHCONFIG does not follow its PRIVATE KEY; " + hint)
			}
			list, err := parseECHConfigs(b.Bytes, key)
			if err != nil {
				return nil, fmt.Errorf("an ECHCONFIG %w; %s", err, hint)
			}
			out, key = append(out, list...), nil
		default:
			return nil, fmt.Errorf("a PEM block %q does not belong here; %s", b.Type, hint)
		}
	}
	switch {
	case key != nil:
		return nil, errors.New("a PRIVATE KEY is not followed by its ECHCONFIG; " + hint)
	case len(out) == 0:
		return nil, errors.New("it holds no key; " + hint)
	case len(out) > maxECHKeys:
		return nil, fmt.Errorf("it holds %d keys, and %d are the most: a hello that none fits costs a try with each; drop the oldest", len(out), maxECHKeys)
	}
	return out, nil
}

// parseECHConfigs reads an ECHConfigList (RFC 9849 §4). Configurations of
// other versions are passed over; one that is not for key is an error.
func parseECHConfigs(list []byte, key *ecdh.PrivateKey) ([]ECHKey, error) {
	malformed := errors.New("is malformed")
	all := reader{b: list}
	r := reader{b: all.vector16()}
	if all.bad || len(all.b) > 0 {
		return nil, malformed
	}
	var out []ECHKey
	for len(r.b) > 0 && !r.bad {
		whole := r.b
		version, body := r.uint16(), r.vector16()
		if r.bad {
			return nil, malformed
		}
		if version != echVersion {
			continue
		}
		config := whole[:4+len(body)]
		c := reader{b: body}
		id, kem, pub, suites := c.uint8(), c.uint16(), c.vector16(), c.vector16()
		c.uint8() // maximum_name_length
		name := string(c.vector8())
		extensions := reader{b: c.vector16()}
		if c.bad || len(c.b) > 0 || len(suites) == 0 || len(suites)%4 != 0 {
			return nil, malformed
		}
		for len(extensions.b) > 0 && !extensions.bad {
			kind := extensions.uint16()
			extensions.vector16()
			if kind&0x8000 != 0 {
				return nil, fmt.Errorf("has the mandatory extension %#x, which is unknown", kind)
			}
		}
		if extensions.bad {
			return nil, malformed
		}
		for i := 0; i < len(suites); i += 4 {
			kdf, aead := binary.BigEndian.Uint16(suites[i:]), binary.BigEndian.Uint16(suites[i+2:])
			if kdf < 1 || kdf > 3 || aead < 1 || aead > 3 {
				return nil, fmt.Errorf("offers the cipher suite %d/%d, which is unknown", kdf, aead)
			}
		}
		if kem != kemX25519 || string(pub) != string(key.PublicKey().Bytes()) {
			return nil, errors.New("is not for the PRIVATE KEY before it")
		}
		if err := checkPublicName(name); err != nil {
			return nil, err
		}
		alone := append(binary.BigEndian.AppendUint16(nil, uint16(len(config))), config...)
		out = append(out, ECHKey{PublicName: name, Config: config, List: alone, id: id, key: key})
	}
	if r.bad || len(out) == 0 {
		return nil, malformed
	}
	return out, nil
}

// checkPublicName says what is wrong with a public name: clients ignore a
// configuration whose name is no host name, or looks like an address.
func checkPublicName(name string) error {
	bad := fmt.Errorf("has the public name %q, which is no host name that a certificate can be for: give a name of yours, such as cover.example.com", name)
	if name == "" || len(name) > 253 || strings.HasSuffix(name, ".") {
		return bad
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || strings.Trim(l, "-") != l || strings.Trim(l, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return bad
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return bad
	}
	return nil
}

// reader takes TLS presentation language apart.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if len(r.b) < n {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) vector8() []byte  { return r.take(int(r.uint8())) }
func (r *reader) vector16() []byte { return r.take(int(r.uint16())) }

// loadECH takes over ech_keys. The first key is the one that clients with an
// outdated one are given to try again with.
func (s *Set) loadECH(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	keys, err := ParseECHKeys(text)
	if err != nil {
		return fmt.Errorf("ech_keys: %w", err)
	}
	for i, k := range keys {
		s.ech = append(s.ech, tls.EncryptedClientHelloKey{Config: k.Config, PrivateKey: k.key.Bytes(), SendAsRetry: i == 0})
		if s.derived == nil && s.local == nil && s.managed == nil && !s.Has(k.PublicName) {
			s.notes = append(s.notes, fmt.Sprintf("ech_keys: no certificate is for the public name %s, so that clients with an outdated key cannot recover; configure one for it", k.PublicName))
		}
	}
	return nil
}

func (s *Set) echKeys(*tls.ClientHelloInfo) ([]tls.EncryptedClientHelloKey, error) {
	return s.ECHKeys(), nil
}

// ECHKeys are the keys of Encrypted Client Hello, never nil. A listener whose
// outermost tls.Config is not from TLSConfig needs them there, too: the hello
// is decrypted before GetConfigForClient sees it.
func (s *Set) ECHKeys() []tls.EncryptedClientHelloKey {
	if s.ech == nil {
		return []tls.EncryptedClientHelloKey{}
	}
	return s.ech
}
