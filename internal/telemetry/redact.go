package telemetry

import (
	"strings"
	"unicode/utf8"
)

// Bounds of one log line: bytes of one text, entries of one list.
const (
	maxText  = 4096
	maxItems = 256
)

const redacted = "[redacted]"

// bounded cuts a text at maxText bytes, at a rune boundary, and marks the cut.
func bounded(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// secretKey reports whether an attribute of that name would hold a secret. It
// is the second net: types of secrets redact themselves.
func secretKey(key string) bool {
	k := strings.ToLower(key)
	for _, w := range []string{"secret", "password", "passwd", "private-key", "private_key", "signing-key", "signing_key", "cookie"} {
		if strings.Contains(k, w) {
			return true
		}
	}
	switch k {
	case "authorization", "proxy-authorization", "token", "access-token", "access_token",
		"refresh-token", "refresh_token", "id_token", "jwt", "code", "code_verifier", "credential":
		return true
	}
	return false
}

// redactText takes signed tokens out of free text. Compact JWTs are recognised
// by their first bytes: every JSON object that begins {" is "eyJ" in base64url.
func redactText(s string) string {
	for from := 0; ; {
		i := strings.Index(s[from:], "eyJ")
		if i < 0 {
			return s
		}
		i += from
		j, dots := i, 0
		for j < len(s) && tokenByte(s[j]) {
			if s[j] == '.' {
				dots++
			}
			j++
		}
		if dots < 2 || j-i < 20 {
			from = i + 3
			continue
		}
		s = s[:i] + redacted + s[j:]
		from = i + len(redacted)
	}
}

func tokenByte(c byte) bool {
	return c == '.' || c == '-' || c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// secretHeader reports whether a request header carries a credential and is
// logged as redacted even if the operator asked for it by name.
func secretHeader(name string) bool {
	switch strings.ToLower(name) {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "x-pomerium-authorization",
		"x-pomerium-jwt-assertion", "x-pomerium-jwt-assertion-for", "x-serverless-authorization",
		"sec-websocket-key", "sec-websocket-protocol":
		return true
	}
	return secretKey(name)
}

// secretParams are query parameters that carry credentials or codes.
var secretParams = map[string]bool{
	"pomerium_session": true, "pomerium_session_encrypted": true, "pomerium_jwt": true,
	"pomerium_signature": true, "pomerium_enrollment_token": true,
	"code": true, "state": true, "access_token": true, "id_token": true, "refresh_token": true,
	"token": true, "jwt": true, "client_secret": true, "password": true, "user_code": true,
}

// RedactQuery replaces the values of query parameters that carry credentials
// or codes. It does not decode: a parameter whose name is percent-encoded is
// compared decoded, and everything else stays as it was sent.
func RedactQuery(q string) string {
	if q == "" {
		return ""
	}
	var b strings.Builder
	for first := true; ; first = false {
		part, rest, more := strings.Cut(q, "&")
		if !first {
			b.WriteByte('&')
		}
		name, _, hasValue := strings.Cut(part, "=")
		if hasValue && secretParams[strings.ToLower(unescape(name))] {
			b.WriteString(name)
			b.WriteString("=" + redacted)
		} else {
			b.WriteString(part)
		}
		if !more {
			return redactText(b.String())
		}
		q = rest
	}
}

// unescape decodes %XX where it can, and keeps the rest.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if hi, lo := unhex(s[i+1]), unhex(s[i+2]); hi >= 0 && lo >= 0 {
				out = append(out, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		out = append(out, s[i])
	}
	return string(out)
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// Secret is a string that never shows itself: printed, logged or encoded, it
// is "[redacted]". Reveal gives the text to the one place that needs it.
type Secret string

// Reveal gives the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String hides the secret.
func (Secret) String() string { return redacted }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return redacted }

// MarshalText hides the secret from encoders.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
