package acme

import (
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/certs"
)

func prepared(t *testing.T, w Wanted) *Plan {
	t.Helper()
	w.Config.Autocert = true
	p, err := Prepare(w)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestWhichHosts(t *testing.T) {
	hosts := []string{"App.Example.com", "app.example.com", "manual.example.com", "*.example.com", "a-*.example.com", "localhost", "x.localhost",
		"10.0.0.1", "[::1]", "box.internal", "intranet", "a.test", "printer.local", "sub_domain.example.com", strings.Repeat("a", 64) + ".example.com"}
	names := func(c certs.Config) (out []string) {
		w := Wanted{Config: c, Hosts: hosts, Configured: func(n string) bool { return n == "manual.example.com" }}
		p := prepared(t, w)
		if len(p.hosts)+len(p.skipped) != len(hosts)-1 {
			t.Errorf("%d and %d of %d", len(p.hosts), len(p.skipped), len(hosts))
		}
		for _, s := range p.skipped {
			if s.State == StateSkipped && s.Error == "" {
				t.Errorf("%s is left out without a reason", s.Name)
			}
		}
		return p.hosts
	}
	if got := names(certs.Config{}); !slices.Equal(got, []string{"app.example.com", "sub_domain.example.com"}) {
		t.Errorf("%q", got)
	}
	if got := names(certs.Config{AutocertUseStaging: true, AutocertDNSProvider: "exec", AutocertDNSCommand: "/x"}); !slices.Contains(got, "*.example.com") || slices.Contains(got, "a-*.example.com") {
		t.Errorf("%q", got)
	}
	if got := names(certs.Config{AutocertCA: "https://ca.corp.example/dir"}); !slices.Contains(got, "box.internal") || !slices.Contains(got, "intranet") || !slices.Contains(got, "a.test") || slices.Contains(got, "x.localhost") {
		t.Errorf("%q", got)
	}
}

func TestDirectoryAndChallenges(t *testing.T) {
	for _, c := range []struct {
		w          Wanted
		directory  string
		challenges string
	}{
		{Wanted{}, "https://acme-v02.api.letsencrypt.org/directory", "tls-alpn-01"},
		{Wanted{Config: certs.Config{AutocertUseStaging: true}, PlainListener: ":80"}, "https://acme-staging-v02.api.letsencrypt.org/directory", "tls-alpn-01 http-01"},
		{Wanted{Config: certs.Config{AutocertUseStaging: true, AutocertCA: "https://ca/dir"}, PlainListener: "127.0.0.1:8080"}, "https://ca/dir", "tls-alpn-01"},
		{Wanted{Config: certs.Config{AutocertChallenges: []string{"HTTP-01"}}, PlainListener: "127.0.0.1:8080"}, "", "http-01"},
		{Wanted{Config: certs.Config{AutocertDNSProvider: "exec", AutocertDNSCommand: "/x"}, PlainListener: ":80"}, "", "dns-01"},
	} {
		p := prepared(t, c.w)
		if c.directory != "" && p.directory != c.directory || strings.Join(p.challenges, " ") != c.challenges {
			t.Errorf("%s %q", p.directory, p.challenges)
		}
	}
}

func TestRefusedSettings(t *testing.T) {
	for want, w := range map[string]Wanted{
		"autocert_ca":               {Config: certs.Config{AutocertCA: "http://ca.example.com/dir"}},
		"no bucket":                 {Config: certs.Config{AutocertDir: "s3://host"}},
		"the scheme":                {Config: certs.Config{AutocertDir: "ftp://host/x"}},
		"set http_redirect_addr":    {Config: certs.Config{AutocertChallenges: []string{"http-01"}}},
		"set autocert_dns_provider": {Config: certs.Config{AutocertChallenges: []string{"dns-01"}}},
		"is no challenge":           {Config: certs.Config{AutocertChallenges: []string{"dns"}}},
		"autocert_dns_server":       {Config: certs.Config{AutocertDNSProvider: "rfc2136"}},
		"belong together":           {Config: certs.Config{AutocertDNSProvider: "rfc2136", AutocertDNSServer: "a:53", AutocertDNSTSIGKey: "k"}},
		"is not base64":             {Config: certs.Config{AutocertDNSProvider: "rfc2136", AutocertDNSServer: "a:53", AutocertDNSTSIGKey: "k", AutocertDNSTSIGSecret: "%"}},
		"absolute path":             {Config: certs.Config{AutocertDNSProvider: "exec", AutocertDNSCommand: "dns"}},
		"http or https URL":         {Config: certs.Config{AutocertDNSProvider: "webhook", AutocertDNSWebhook: "x"}},
		"use https off":             {Config: certs.Config{AutocertDNSProvider: "webhook", AutocertDNSWebhook: "http://dns.example/"}},
		"is not known":              {Config: certs.Config{AutocertDNSProvider: "route53"}},
		"autocert_dns_resolvers":    {Config: certs.Config{AutocertDNSResolvers: []string{"x"}}},
		"there is no certificate":   {Config: certs.Config{AutocertTrustedCA: []byte("x")}},
		"can be read":               {Config: certs.Config{AutocertDir: "s3://us er:hunter2@host/b"}},
	} {
		w.Config.Autocert = true
		if _, err := Prepare(w); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", want, err)
		}
		w.Config.Autocert = false
		if _, err := Prepare(w); err != nil {
			t.Errorf("it is off, and %v", err)
		}
	}
}

func TestStorageURLs(t *testing.T) {
	for text, want := range map[string]storageURL{
		"/var/lib/x":              {kind: "dir", dir: "/var/lib/x"},
		"records://":              {kind: "records"},
		"records://a/b/":          {kind: "records", prefix: "a/b"},
		"gs://bucket/some/prefix": {kind: "gs", bucket: "bucket", prefix: "some/prefix"},
		"s3://my.bucket.s3.eu-west-1.amazonaws.com/p/": {kind: "s3", host: "s3.eu-west-1.amazonaws.com", secure: true, region: "eu-west-1", bucket: "my.bucket", prefix: "p"},
		"s3://u:p%2F@minio.example:9000/bucket/a/b":    {kind: "s3", host: "minio.example:9000", secure: true, user: "u", pass: "p/", bucket: "bucket", prefix: "a/b"},
		"s3://u:p@127.0.0.1:9000/bucket":               {kind: "s3", host: "127.0.0.1:9000", user: "u", pass: "p", bucket: "bucket"},
		"s3://minio.example/bucket?region=x":           {kind: "s3", host: "minio.example", secure: true, region: "x", bucket: "bucket"},
	} {
		if got, err := parseStorage(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	t.Setenv("XDG_DATA_HOME", "/data")
	if got, _ := parseStorage(""); got.dir != "/data/pomerium/autocert" {
		t.Error(got.dir)
	}
	t.Setenv("XDG_DATA_HOME", "")
	t.Setenv("HOME", "/home/a")
	if got := DefaultDir(); got != filepath.Join("/home/a", ".local/share/pomerium/autocert") {
		t.Error(got)
	}
	t.Setenv("HOME", "")
	if got := DefaultDir(); got != "/var/tmp/pomerium/data/autocert" {
		t.Error(got)
	}
}

func TestSettingsKey(t *testing.T) {
	base := prepared(t, Wanted{Hosts: []string{"a.example"}})
	if same := prepared(t, Wanted{Hosts: []string{"b.example"}}); same.key != base.key {
		t.Error("other hosts are other settings")
	}
	for _, c := range []certs.Config{{AutocertCA: "https://x/dir"}, {AutocertEmail: "a@b.c"}, {AutocertUseStaging: true}, {AutocertMustStaple: true}, {AutocertProfile: "p"},
		{AutocertDir: "/x"}, {AutocertEABKeyID: "a", AutocertEABMACKey: "b"}, {AutocertDNSProvider: "exec", AutocertDNSCommand: "/x"}} {
		if p := prepared(t, Wanted{Config: c}); p.key == base.key {
			t.Errorf("%+v are the same settings", c)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"30": 30 * time.Second, "99999999": longestWait, now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.AddDate(1, 0, 0).Format(http.TimeFormat): longestWait,
	} {
		if got, ok := retryAfter(value, now); !ok || got.Sub(now) != want {
			t.Errorf("%s: %s", value, got)
		}
	}
	for _, value := range []string{"", "soon", "-1"} {
		if _, ok := retryAfter(value, now); ok {
			t.Errorf("%q is a time", value)
		}
	}
}
