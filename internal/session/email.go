package session

import "strings"

// CanonicalEmail gives the one spelling by which an address is compared: lower
// case, or "" if the address is not well formed. Well formed means: exactly
// one "@", a local part of visible ASCII without quotes or separators, and a
// host name of at least two labels or a single one (intranets), nothing else.
// Addresses that mail servers might accept beyond that ("a@evil"@corp.com)
// are exactly what domain rules must never see (decision 14).
func CanonicalEmail(s string) string {
	if len(s) == 0 || len(s) > 254 {
		return ""
	}
	local, domain, ok := strings.Cut(s, "@")
	if !ok || local == "" || len(local) > 64 || strings.IndexByte(domain, '@') >= 0 {
		return ""
	}
	for i := 0; i < len(local); i++ {
		c := local[i]
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),:;<>[\]`, c) >= 0 {
			return ""
		}
	}
	if local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return ""
	}
	for _, label := range strings.Split(domain, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return ""
		}
		for i := 0; i < len(label); i++ {
			c := label[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
				return ""
			}
		}
	}
	return strings.ToLower(s)
}
