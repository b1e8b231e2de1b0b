package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The table of *_file pairs (configuration.md §1.4): who wins and how the
// content is read.
func TestFilePairs(t *testing.T) {
	dir := material(t)
	cert, key, other := readFile(t, dir+"/tls.crt"), readFile(t, dir+"/tls.key"), readFile(t, dir+"/other.crt")
	otherSecret := b64("a different secret of 32 bytes!!")
	tests := []struct {
		name, text string
		get        func(c *Config) string
		want       string
	}{
		{"shared_secret, final newline", "shared_secret_file: DIR/secret", sharedSecret, "01234567890123456789012345678901"},
		{"shared_secret, file wins", "shared_secret: " + otherSecret + "\nshared_secret_file: DIR/secret", sharedSecret, "01234567890123456789012345678901"},
		{"shared_secret, inline", "shared_secret: " + otherSecret, sharedSecret, "a different secret of 32 bytes!!"},
		{"shared_secret_previous", "shared_secret_previous_file: DIR/secret", func(c *Config) string { return string(c.Secrets.SharedSecretPrevious) }, "01234567890123456789012345678901"},
		{"cookie_secret, file wins", "cookie_secret: " + otherSecret + "\ncookie_secret_file: DIR/secret", func(c *Config) string { return string(c.Secrets.CookieSecret) }, "01234567890123456789012345678901"},
		{"idp_client_secret, file wins", "idp_client_secret: x\nidp_client_secret_file: DIR/client-secret", func(c *Config) string { return c.Identity.IDPClientSecret }, "client secret"},
		{"signing_key, raw", "signing_key_file: DIR/tls.key", signing, strings.TrimSpace(key)},
		{"signing_key, base64 inline", "signing_key: " + b64(key), signing, key},
		{"signing_key, PEM inline", "signing_key: |\n  " + strings.ReplaceAll(key, "\n", "\n  "), signing, strings.TrimSpace(key)},
		{"connection string, trimmed, wins", "databroker_storage_type: postgres\ndatabroker_storage_connection_string: x\ndatabroker_storage_connection_string_file: DIR/dsn", func(c *Config) string { return c.Store.ConnectionString }, "postgres://db"},
		{"downstream ca", "downstream_mtls: {ca_file: DIR/ca.crt}", func(c *Config) string { return string(c.Certs.DownstreamMTLS.CA) }, cert},
		{"downstream ca inline", "downstream_mtls: {ca: " + b64(cert) + "}", func(c *Config) string { return string(c.Certs.DownstreamMTLS.CA) }, cert},
		{"roots, combined", "certificate_authority: " + b64(other) + "\ncertificate_authority_file: DIR/ca.crt", func(c *Config) string { return string(c.Certs.ExtraRoots) }, other + cert},
		{"roots, inline", "certificate_authority: " + b64(other), func(c *Config) string { return string(c.Certs.ExtraRoots) }, other},
		{"custom ca, inline wins", inRoute("tls_custom_ca: " + b64(other) + "\ntls_custom_ca_file: DIR/ca.crt"), func(c *Config) string { return string(c.Routes[0].Upstream.TLSCustomCA) }, other},
		{"custom ca, file", inRoute("tls_custom_ca_file: DIR/ca.crt"), func(c *Config) string { return string(c.Routes[0].Upstream.TLSCustomCA) }, cert},
		{"client cert, file", inRoute("tls_client_cert_file: DIR/tls.crt\ntls_client_key_file: DIR/tls.key"), func(c *Config) string { return string(c.Routes[0].Upstream.TLSClientCert) }, cert},
		{"downstream client ca, file wins", inRoute("tls_downstream_client_ca: " + b64(other) + "\ntls_downstream_client_ca_file: DIR/ca.crt"), func(c *Config) string { return string(c.Routes[0].Certs.TLSDownstreamClientCA) }, cert},
		{"metrics, inline wins", "metrics_certificate: " + b64(cert) + "\nmetrics_certificate_key: " + b64(key) + "\nmetrics_certificate_file: DIR/nowhere\nmetrics_certificate_key_file: DIR/nowhere", func(c *Config) string { return string(c.Telemetry.MetricsCertificate) }, cert},
		{"metrics, file", "metrics_certificate_file: DIR/tls.crt\nmetrics_certificate_key_file: DIR/tls.key", func(c *Config) string { return string(c.Telemetry.MetricsCertificate) }, cert},
		{"metrics ca", "metrics_client_ca_file: DIR/ca.crt", func(c *Config) string { return string(c.Telemetry.MetricsClientCA) }, cert},
		{"server certificates add up", "certificates: [{cert: DIR/tls.crt, key: DIR/tls.key}]\ncertificate: " + b64(cert) + "\ncertificate_key: " + b64(key) + "\ncertificate_file: DIR/tls.crt\ncertificate_key_file: DIR/tls.key", func(c *Config) string { return strings.Repeat("x", len(c.Certs.Pairs)) }, "xxx"},
	}
	for _, test := range tests {
		cfg, problems := loadText(strings.ReplaceAll(test.text, "DIR", dir) + "\n")
		if cfg == nil {
			t.Errorf("%s: %s", test.name, show(problems))
			continue
		}
		if got := test.get(cfg); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

func sharedSecret(c *Config) string { return string(c.Secrets.SharedSecret) }
func signing(c *Config) string      { return string(c.Authz.SigningKey) }

// A missing file stops the load, or only the start (configuration.md §1.4).
func TestMissingFiles(t *testing.T) {
	for key, lazy := range map[string]bool{
		"shared_secret_file": false, "shared_secret_previous_file": false,
		"cookie_secret_file": true, "idp_client_secret_file": true, "signing_key_file": true, "databroker_storage_connection_string_file": true,
		"certificate_authority_file": false, "metrics_client_ca_file": false, "autocert_trusted_ca_file": false,
	} {
		cfg, problems := loadText(key + ": /nowhere/file\n")
		if (cfg != nil) != lazy || problems[0].Path != key || problems[0].Line != 1 {
			t.Errorf("%s: %s", key, show(problems))
			continue
		}
		if lazy {
			if stops := cfg.StartProblems(); len(stops) != 1 || stops[0].Kind != KindUnreadable || stops[0].Line != 1 {
				t.Errorf("%s does not stop the start: %s", key, show(stops))
			}
		}
	}
	for _, text := range []string{"downstream_mtls: {ca_file: /nowhere/x}", "downstream_mtls: {crl_file: /nowhere/x}", "certificates: [{cert: /nowhere/x, key: /nowhere/y}]", "certificate_file: /nowhere/x\ncertificate_key_file: /nowhere/y"} {
		if cfg, _ := loadText(text + "\n"); cfg != nil {
			t.Errorf("%s loads", text)
		}
	}
	cfg := mustLoad(t, inRoute("kubernetes_service_account_token_file: /nowhere/x"))
	if len(cfg.StartProblems()) != 1 {
		t.Errorf("%s", show(cfg.StartProblems()))
	}
	mustLoad(t, "local_users_file: /nowhere/users.json\n")
}

func TestBadFiles(t *testing.T) {
	dir := material(t)
	write(t, dir, "bad", "not base64 ???")
	write(t, dir, "short", b64("short"))
	write(t, dir, "mixed.key", readFile(t, dir+"/tls.key"))
	_, strange := newCertificate(t, "strange")
	write(t, dir, "strange.key", strange)
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"shared_secret_file: DIR/bad":                                          "base64",
		"shared_secret_file: DIR/short":                                        "holds 5 bytes",
		"shared_secret_file: DIR/folder":                                       "directory",
		"cookie_secret_file: DIR/short":                                        "holds 5 bytes",
		"signing_key_file: DIR/tls.crt":                                        "",
		"certificate_file: DIR/tls.crt\ncertificate_key_file: DIR/strange.key": "does not match",
		"certificate_file: DIR/secret\ncertificate_key_file: DIR/tls.key":      "cannot be used",
		"downstream_mtls: {ca_file: DIR/secret}":                               "no certificate",
		"downstream_mtls: {crl_file: DIR/ca.crt}":                              "revocation",
		"certificate_authority_file: DIR/secret":                               "no certificate",
		"shared_secret_file: /dev/zero":                                        "not a regular file",
	} {
		cfg, problems := loadText(strings.ReplaceAll(text, "DIR", dir) + "\n")
		if cfg != nil || !strings.Contains(fatal(problems)[0].Message, want) {
			t.Errorf("%s: %s", text, show(problems))
		}
	}
}

func TestSSHKeyFilesAreCheckedOnlyWithAnAddress(t *testing.T) {
	dir := material(t)
	open := write(t, dir, "open", "key")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, "ssh_host_key_files: ["+open+"]\n")
	cfg, problems := loadText("ssh_address: ':22'\nssh_host_key_files: [" + open + "]\n")
	if cfg != nil || !strings.Contains(problems[0].Hint, "chmod 600") {
		t.Errorf("%s", show(problems))
	}
	mustLoad(t, "ssh_address: ':22'\nssh_host_key_files: ["+dir+"/tls.key]\n")
}

func TestSecretsNeverAppearInProblems(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, k := range Keys() {
		if !k.Secret {
			continue
		}
		for _, value := range []string{secret, "[" + secret + "]", "{" + secret + ": 1}"} {
			text := k.Name + ": " + value + "\n"
			if rest, ok := strings.CutPrefix(k.Name, "routes[]."); ok && !strings.Contains(rest, ".") {
				text = inRoute(rest + ": " + value)
			} else if strings.ContainsAny(k.Name, "[.") {
				continue
			}
			_, problems := loadText(text)
			if strings.Contains(show(problems), secret) {
				t.Errorf("%s is shown: %s", k.Name, show(problems))
			}
		}
	}
}
