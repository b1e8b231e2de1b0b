package config

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/certs"
)

// secret32 is base64 of 32 bytes.
const secret32 = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="

// material makes a directory with a CA, a certificate and its key, and files
// of secrets.
func material(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	cert, key := newCertificate(t, "one.example.com")
	write(t, dir, "tls.crt", cert)
	write(t, dir, "tls.key", key)
	write(t, dir, "ca.crt", cert)
	other, _ := newCertificate(t, "two.example.com")
	write(t, dir, "other.crt", other)
	write(t, dir, "secret", secret32+"\n")
	write(t, dir, "client-secret", "client secret\n")
	write(t, dir, "token", "token")
	write(t, dir, "users.json", "[]")
	ech, err := certs.NewECHKey("cover.example.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ech.PEM()
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, "ech.pem", string(text))
	write(t, dir, "dsn", " postgres://db \n")
	return dir
}

func newCertificate(t testing.TB, name string) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// loadText loads a YAML text and an environment.
func loadText(text string, env ...string) (*Config, []Problem) {
	return Load(context.Background(), Text("config.yaml", YAML, []byte(text)), Environment(env))
}

// mustLoad loads a text that has no fatal problem.
func mustLoad(t testing.TB, text string, env ...string) *Config {
	t.Helper()
	cfg, problems := loadText(text, env...)
	if cfg == nil {
		t.Fatalf("the text does not load:\n%s", show(problems))
	}
	return cfg
}

func show(problems []Problem) string {
	var b strings.Builder
	for _, p := range problems {
		b.WriteString(p.String() + "\n")
	}
	return b.String()
}

// fatal keeps what stops the start.
func fatal(problems []Problem) []Problem { return ofLevel(problems, LevelFatal) }

func ofLevel(problems []Problem, level Level) []Problem {
	var out []Problem
	for _, p := range problems {
		if p.Level == level {
			out = append(out, p)
		}
	}
	return out
}

// app is a route that is in order.
const app = "routes:\n  - from: https://app.example.com\n    to: http://app:80\n"

// inRoute writes lines into a route that is otherwise in order.
func inRoute(lines string) string {
	return app + "    " + strings.ReplaceAll(strings.TrimRight(lines, "\n"), "\n", "\n    ") + "\n"
}
