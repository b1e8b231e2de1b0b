package session

import (
	"crypto/hmac"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Query parameters of signed links (wire-contract.md §1.5).
const (
	ParamIssued    = "pomerium_issued"
	ParamExpiry    = "pomerium_expiry"
	ParamSignature = "pomerium_signature"
)

// LinkLife is how long a signed link is good for, and LinkLeeway how far
// clocks may differ.
const (
	LinkLife   = 5 * time.Minute
	LinkLeeway = time.Minute
)

// MaxLinkSize bounds a signed link in bytes.
const MaxLinkSize = 32 << 10

// ErrLink is wrapped by every refusal of VerifyLink; ErrLinkExpired as well if
// the link was good once.
var (
	ErrLink        = errors.New("this link is not valid")
	ErrLinkExpired = errors.New("this link has expired")
)

// SignLink gives u with issue time, expiry and signature added. u is not
// changed. Its query is re-encoded sorted; any such parameters already there
// are replaced.
func SignLink(k *Keys, u *url.URL, now time.Time) *url.URL {
	q := u.Query()
	q.Del(ParamSignature)
	q.Set(ParamIssued, strconv.FormatInt(now.Unix(), 10))
	q.Set(ParamExpiry, strconv.FormatInt(now.Add(LinkLife).Unix(), 10))
	out := *u
	out.Fragment, out.RawFragment, out.ForceQuery = "", "", false
	out.RawQuery = q.Encode()
	mac := linkMAC(k.Current(PurposeSignedURL), &out, q)
	q.Set(ParamSignature, base64.URLEncoding.EncodeToString(mac))
	out.RawQuery = q.Encode()
	return &out
}

// VerifyLink checks a link as received: u must be https with the Host header
// as its host (wire-contract.md §1.5). Each of the three parameters must be
// there exactly once. Errors say what to do and never hold the link.
func VerifyLink(k *Keys, u *url.URL, now time.Time) error {
	if len(u.RawQuery) > MaxLinkSize {
		return fmt.Errorf("%w: it is too long; go back and try again", ErrLink)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("%w: its query is malformed; go back and try again", ErrLink)
	}
	for _, name := range []string{ParamIssued, ParamExpiry, ParamSignature} {
		if len(q[name]) != 1 {
			return fmt.Errorf("%w: %s is missing or doubled; go back and try again", ErrLink, name)
		}
	}
	given, err := base64.URLEncoding.Strict().DecodeString(q.Get(ParamSignature))
	if err != nil {
		return fmt.Errorf("%w: its signature is malformed; go back and try again", ErrLink)
	}
	q.Del(ParamSignature)
	signed := *u
	signed.Scheme = "https"
	signed.User, signed.Fragment, signed.RawFragment, signed.ForceQuery = nil, "", "", false
	signed.RawQuery = q.Encode()
	good := false
	for _, key := range k.All(PurposeSignedURL) {
		if hmac.Equal(given, linkMAC(key, &signed, q)) {
			good = true
		}
	}
	if !good {
		return fmt.Errorf("%w: its signature does not match; go back and try again", ErrLink)
	}
	issued, err1 := unixParam(q.Get(ParamIssued))
	expiry, err2 := unixParam(q.Get(ParamExpiry))
	if err1 != nil || err2 != nil {
		return fmt.Errorf("%w: its times are malformed; go back and try again", ErrLink)
	}
	if now.Add(LinkLeeway).Before(issued) {
		return fmt.Errorf("%w: it comes from the future; check the clocks of the servers", ErrLink)
	}
	if now.Add(-LinkLeeway).After(expiry) {
		return fmt.Errorf("%w: %w; go back and try again", ErrLink, ErrLinkExpired)
	}
	return nil
}

func unixParam(s string) (time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != s || n < 0 || n > 1<<40 {
		return time.Time{}, errors.New("not a time")
	}
	return time.Unix(n, 0), nil
}

// linkMAC is HMAC-SHA-512/256 over "<url><issued> <expiry>": no separator
// before issued, one space after (wire-contract.md §15, trap 10).
func linkMAC(key []byte, u *url.URL, q url.Values) []byte {
	h := hmac.New(sha512.New512_256, key)
	h.Write([]byte(u.String()))
	h.Write([]byte(q.Get(ParamIssued)))
	h.Write([]byte(" "))
	h.Write([]byte(q.Get(ParamExpiry)))
	return h.Sum(nil)
}

// sameHost compares two authorities, names without case.
func sameHost(a, b string) bool { return strings.EqualFold(a, b) }
