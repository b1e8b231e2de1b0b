package telemetry

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var at = time.Date(2026, 3, 2, 10, 0, 0, 123000000, time.UTC)

func entry() *AccessEntry {
	return &AccessEntry{
		Time: at, UpstreamCluster: "route-6f431f0be965b608", ClusterStatName: "app", Method: "GET", Authority: "app.example.com",
		Path: "/a?never=1", Query: "x=1&pomerium_session=SECRET&b", UserAgent: "curl/8", Referer: "https://x.test/p?token=SECRET#f",
		ForwardedFor: "192.0.2.1", RequestID: "r1", IP: netip.MustParseAddr("192.0.2.1"), Duration: 224_860 * time.Microsecond,
		Size: 12, ResponseCode: 200, ResponseCodeDetails: "via_upstream",
		Certificate: &x509.Certificate{Issuer: pkix.Name{CommonName: "CA"}, Subject: pkix.Name{CommonName: "laptop"}, DNSNames: []string{"a.test"}},
		Header: func(n string) string {
			return map[string]string{"X-Tenant": "t1", "Authorization": "Bearer SECRET", "Cookie": "SECRET"}[n]
		},
	}
}

func TestAccessLogGolden(t *testing.T) {
	tests := []struct {
		name   string
		fields []string
		want   string
	}{
		{"defaults", nil, `{"level":"info","service":"envoy","upstream-cluster":"route-6f431f0be965b608","method":"GET","authority":"app.example.com",` +
			`"path":"/a","user-agent":"curl/8","referer":"https://x.test/p","forwarded-for":"192.0.2.1","request-id":"r1","duration":224.86,` +
			`"size":12,"response-code":200,"response-code-details":"via_upstream","time":"2026-03-02T10:00:00.123Z","message":"http-request"}`},
		{"none", []string{}, `{"level":"info","service":"envoy","time":"2026-03-02T10:00:00.123Z","message":"http-request"}`},
		{"chosen, in their order", []string{"size", "ip", "query", "cluster-stat-name", "headers.X-Tenant", "client-certificate", "headers.Authorization", "headers.X-None", "made-up"},
			`{"level":"info","service":"envoy","size":12,"ip":"192.0.2.1","query":"x=1&pomerium_session=[redacted]&b","cluster-stat-name":"app",` +
				`"headers":{"x-tenant":"t1","authorization":"[redacted]"},` +
				`"client-certificate":{"issuer":"CN=CA","subject":"CN=laptop","subjectAltName":["DNS:a.test"]},` +
				`"time":"2026-03-02T10:00:00.123Z","message":"http-request"}`},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		NewAccessLog(&out, slog.LevelInfo, tt.fields).Write(entry())
		if got := strings.TrimSuffix(out.String(), "\n"); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
		if strings.Contains(out.String(), "SECRET") {
			t.Errorf("%s: a secret is logged", tt.name)
		}
	}
}

func TestAccessLogLevels(t *testing.T) {
	for _, tt := range []struct {
		level string
		path  string
		want  bool
	}{
		{"info", "/a", true}, {"debug", "/a", true}, {"warn", "/a", false}, {"disabled", "/a", false},
		{"info", "/ping", false}, {"info", "/healthz", false}, {"debug", "/ping", true}, {"trace", "/healthz", true},
	} {
		level, err := ParseLevel(tt.level)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		e := entry()
		e.Path = tt.path
		a := NewAccessLog(&out, level, nil)
		a.Write(e)
		if got := out.Len() > 0; got != tt.want || a.Enabled(tt.path) != tt.want {
			t.Errorf("%s at %s: written %v, want %v", tt.path, tt.level, got, tt.want)
		}
	}
	var none *AccessLog
	none.Write(entry()) // no log, no crash
}

// TestNoLogInjection: whatever a client says stays inside one line and one
// string, and every line is JSON.
func TestNoLogInjection(t *testing.T) {
	nasty := []string{
		"a\nb", "a\r\n{\"level\":\"info\"}", `","allow":true,"x":"`, "\x00\x1b[31m\x7f", "\u2028\u2029\u0085", "\xff\xfe bad utf8", `\`, strings.Repeat("é", 5000),
	}
	for _, s := range nasty {
		var out bytes.Buffer
		e := entry()
		e.Path, e.UserAgent, e.Authority, e.Method, e.Query, e.ForwardedFor = s, s, s, s, s, s
		e.Header = func(string) string { return s }
		NewAccessLog(&out, slog.LevelInfo, append(AccessFieldNames(), "headers.X-"+"A")).Write(e)
		NewAuthorizeLog(&out, slog.LevelInfo, append(AuthorizeFieldNames(), "headers.X-A")).Write(&AuthorizeEntry{
			Time: at, Method: s, Path: s, Host: s, User: s, Email: s, HasSession: true, SessionID: s, AllowReasons: []string{s},
			Headers:       func(yield func(string, string) bool) { yield(s, s) },
			IDTokenClaims: func() map[string]any { return map[string]any{s: s} },
		})
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != 2 {
			t.Fatalf("%q makes %d lines", s, len(lines))
		}
		for _, l := range lines {
			var m map[string]any
			if err := json.Unmarshal([]byte(l), &m); err != nil {
				t.Errorf("%q: %v in %s", s, err, l)
			}
			if m["allow"] == true || len(l) > 60*maxText {
				t.Errorf("%q: allow %v, %d bytes", s, m["allow"], len(l))
			}
			for _, c := range []byte(l) {
				if c < 0x20 || c == 0x7f {
					t.Errorf("%q: control byte %x", s, c)
				}
			}
		}
	}
}

func TestAuthorizeLogGolden(t *testing.T) {
	header := func(yield func(string, string) bool) {
		_ = yield("x-one", "1") && yield("X-One", "2") && yield("Cookie", "SECRET") && yield("authorization", "SECRET")
	}
	e := &AuthorizeEntry{
		Time: at, RequestID: "r1", CheckRequestID: "r1", Method: "GET", Host: "app.example.com", Path: "/a", Query: "code=SECRET&a=1",
		IP: netip.MustParseAddr("192.0.2.7"), RouteID: "6f43", RouteChecksum: 42, HasSession: true, SessionID: "s1",
		User: "u1", Email: "a@example.com", Allow: true, AllowReasons: []string{"email-ok"},
		Headers: iter.Seq2[string, string](header), Header: func(n string) string { return "h" },
		IDTokenClaims: func() map[string]any { return map[string]any{"name": []any{"A"}, "access_token": "SECRET"} },
	}
	const result = `"allow":true,"allow-why-true":["email-ok"],"deny":false,"deny-why-false":[],"time":"2026-03-02T10:00:00.123Z","message":"authorize check"}`
	for _, tt := range []struct {
		name   string
		fields []string
		change func(e *AuthorizeEntry)
		want   string
	}{
		{"defaults", nil, nil, `{"level":"info","service":"authorize","request-id":"r1","check-request-id":"r1","method":"GET","path":"/a","host":"app.example.com",` +
			`"ip":"192.0.2.7","session-id":"s1","user":"u1","email":"a@example.com","envoy-route-checksum":42,"envoy-route-id":"6f43","route-checksum":42,"route-id":"6f43",` + result},
		{"impersonating, groups removed", []string{"session-id", "impersonate-session-id", "impersonate-user-id", "impersonate-email", "removed-groups-count", "service-account-id"},
			func(e *AuthorizeEntry) {
				e.Impersonated, e.ImpersonateSessionID, e.ImpersonateUserID, e.ImpersonateEmail, e.RemovedGroups = true, "s2", "u2", "b@x", 3
			}, `{"level":"info","service":"authorize","session-id":"s1","impersonate-session-id":"s2","impersonate-user-id":"u2","impersonate-email":"b@x","removed-groups-count":3,` + result},
		{"service account", []string{"session-id", "service-account-id", "user"}, func(e *AuthorizeEntry) {
			e.HasSession, e.HasServiceAccount, e.ServiceAccountID = false, true, "sa1"
		}, `{"level":"info","service":"authorize","service-account-id":"sa1","user":"u1",` + result},
		{"none", []string{}, nil, `{"level":"info","service":"authorize",` + result},
		{"secrets", []string{"headers", "query", "id-token", "id-token-claims"}, nil,
			`{"level":"info","service":"authorize","headers":{"X-One":"1","Cookie":"[redacted]","Authorization":"[redacted]"},"query":"code=[redacted]&a=1",` +
				`"id-token":"[redacted]","id-token-claims":{"access_token":"[redacted]","name":["A"]},` + result},
		{"one header", []string{"headers.x-tenant", "user"}, nil, `{"level":"info","service":"authorize","headers":{"X-Tenant":"h"},"user":"u1",` + result},
	} {
		var out bytes.Buffer
		c := *e
		if tt.change != nil {
			tt.change(&c)
		}
		NewAuthorizeLog(&out, slog.LevelInfo, tt.fields).Write(&c)
		if got := strings.TrimSuffix(out.String(), "\n"); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
	var out bytes.Buffer
	NewAuthorizeLog(&out, slog.LevelWarn, nil).Write(e)
	(*AuthorizeLog)(nil).Write(e)
	if out.Len() > 0 {
		t.Error("written above info")
	}
}

func TestCheckFields(t *testing.T) {
	for name, want := range map[string]bool{"path": true, "headers.X": true, "headers.": false, "headers": false, "Path": false, "user": false} {
		if (CheckAccessField(name) == nil) != want {
			t.Errorf("access field %q", name)
		}
	}
	for name, want := range map[string]bool{"user": true, "headers": true, "headers.X": true, "body": true, "size": false} {
		if (CheckAuthorizeField(name) == nil) != want {
			t.Errorf("authorize field %q", name)
		}
	}
	if len(AccessFieldNames()) != 16 || len(AuthorizeFieldNames()) != 28 {
		t.Errorf("%d access fields, %d authorize fields", len(AccessFieldNames()), len(AuthorizeFieldNames()))
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	var level slog.LevelVar
	log := NewLogger(&out, &level)
	jwt := "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
	log.Info("hello", "user", "u1", "password", "SECRET", "authorization", "SECRET", "note", "a "+jwt+" b", "key", []byte("SECRET"),
		"error", errors.New("bad "+jwt), "typed", Secret("SECRET"), "list", []string{jwt}, slog.Group("g", "client_secret", "SECRET", "ok", 1))
	var m map[string]any
	if err := json.Unmarshal(out.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if m["level"] != "info" || m["message"] != "hello" || m["user"] != "u1" || m["note"] != "a [redacted] b" || m["g"].(map[string]any)["ok"] != 1.0 {
		t.Errorf("line %s", &out)
	}
	if _, err := time.Parse(time.RFC3339, m["time"].(string)); err != nil {
		t.Error(err)
	}
	for _, never := range []string{"SECRET", "eyJ"} {
		if strings.Contains(out.String(), never) {
			t.Errorf("%s is logged: %s", never, &out)
		}
	}
	out.Reset()
	log.Debug("quiet")
	level.Set(LevelTrace)
	log.Log(t.Context(), LevelTrace, strings.Repeat("m", 2*maxText))
	if s := out.String(); strings.Contains(s, "quiet") || !strings.Contains(s, `"level":"trace"`) || len(s) > maxText+200 {
		t.Errorf("%d bytes", len(s))
	}
	if s := fmt.Sprintf("%v %+v %#v %s", Secret("SECRET"), Secret("SECRET"), Secret("SECRET"), Secret("SECRET")); strings.Contains(s, "SECRET") {
		t.Error(s)
	}
}

func TestParseLevel(t *testing.T) {
	for name, want := range map[string]slog.Level{"": slog.LevelInfo, "trace": LevelTrace, "debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError, "critical": LevelCritical, "fatal": LevelCritical,
		"panic": LevelCritical, "off": LevelOff, "none": LevelOff, "disabled": LevelOff} {
		if got, err := ParseLevel(name); err != nil || got != want {
			t.Errorf("%q: %v %v", name, got, err)
		}
	}
	for _, name := range []string{"INFO", "verbose", " info"} {
		if _, err := ParseLevel(name); err == nil || !strings.Contains(err.Error(), "disabled") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestRedactQuery(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "a=1&b": "a=1&b", "code=x": "code=[redacted]", "CODE=x&State=y": "CODE=[redacted]&State=[redacted]",
		"pomerium%5Fsession=x": "pomerium%5Fsession=[redacted]", "codes=x": "codes=x", "%zz=1&&": "%zz=1&&", "token": "token",
		"next=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1MSJ9.c2ln": "next=[redacted]",
	} {
		if got := RedactQuery(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out syncBuffer
		s := NewSink(&out, 50*time.Millisecond)
		_, _ = s.Write([]byte("a\n"))
		if out.String() != "" {
			t.Error("written at once")
		}
		time.Sleep(60 * time.Millisecond)
		synctest.Wait()
		if out.String() != "a\n" {
			t.Errorf("after the interval: %q", out.String())
		}
		NewLogger(s, slog.LevelInfo).Error("now")
		if !strings.Contains(out.String(), `"message":"now"`) {
			t.Error("an error waits in the buffer")
		}
		_, _ = s.Write(bytes.Repeat([]byte("x"), sinkSize))
		if len(out.String()) < sinkSize {
			t.Error("a full buffer waits")
		}
		_, _ = s.Write([]byte("last\n"))
		_ = s.Close()
		_, _ = s.Write([]byte("later\n"))
		if !strings.HasSuffix(out.String(), "last\nlater\n") {
			t.Error("lines are lost at the end")
		}
		time.Sleep(time.Second)
	})
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}
func (s *syncBuffer) String() string { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

func TestAccessLogAllocations(t *testing.T) {
	a, e := NewAccessLog(nowhere{}, slog.LevelInfo, nil), entry()
	a.Write(e)
	if n := testing.AllocsPerRun(100, func() { a.Write(e) }); n > 1 {
		t.Errorf("%.0f allocations for a line, promised at most 1", n)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	a, e := NewAccessLog(nowhere{}, slog.LevelInfo, nil), entry()
	b.ReportAllocs()
	for range b.N {
		a.Write(e)
	}
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\n\"\\\x00\u2028\xff")
	f.Fuzz(func(t *testing.T, s string) {
		b := appendString(nil, s)
		var back string
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if want := strings.ToValidUTF8(bounded(s), "\ufffd"); strings.ToValidUTF8(back, "") == "" && want != "" {
			t.Fatalf("%q became %q", s, back)
		}
	})
}
