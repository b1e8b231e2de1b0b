package proxy

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"

	"postern/internal/exchange"
)

// Limits on a request head (configuration.md §2.11).
const (
	MaxHeadBytes  = 128 << 10
	MaxHeadFields = 1000
)

// HeadError says why a request head, or the framing of its body, was refused.
type HeadError struct {
	// Status is the answer: 400, or 431 for a limit.
	Status int
	// Reason is a short sentence, safe to send to the client: it never
	// repeats what the client sent.
	Reason string
}

func (e *HeadError) Error() string { return e.Reason }

func badHead(reason string) *HeadError {
	return &HeadError{Status: http.StatusBadRequest, Reason: reason}
}

var (
	errHeadIncomplete = errors.New("request head is incomplete")

	errHeadBytes        = &HeadError{http.StatusRequestHeaderFieldsTooLarge, "request head is larger than 128 KiB"}
	errHeadFields       = &HeadError{http.StatusRequestHeaderFieldsTooLarge, "request has more than 1000 headers"}
	errHeadControl      = badHead("request head holds a control character")
	errHeadBareLF       = badHead("line does not end with CRLF")
	errHeadBareCR       = badHead("carriage return without line feed")
	errHeadRequestLine  = badHead("request line is malformed")
	errHeadMethod       = badHead("method is not a token")
	errHeadVersion      = badHead("only HTTP/1.0 and HTTP/1.1 are spoken here")
	errHeadTarget       = badHead("request target is malformed")
	errHeadFold         = badHead("header line begins with white space")
	errHeadName         = badHead("header name is malformed")
	errHeadValue        = badHead("header value is malformed")
	errHeadNoHost       = badHead("Host header is missing")
	errHeadHosts        = badHead("more than one Host header")
	errHeadHost         = badHead("Host header is malformed")
	errHeadHostMismatch = badHead("request target and Host header name different hosts")
	errHeadLengths      = badHead("more than one Content-Length header")
	errHeadLength       = badHead("Content-Length is not a number")
	errHeadCoding       = badHead("Transfer-Encoding is not exactly chunked")
	errHeadCoding10     = badHead("Transfer-Encoding in an HTTP/1.0 request")
	errHeadBoth         = badHead("both Content-Length and Transfer-Encoding")
	errHeadConnectBody  = badHead("CONNECT request with a body")
	errHeadTrailer      = badHead("Trailer header names a framing header")
	errHeadProtocol     = badHead(":protocol in a request that is no CONNECT")
)

// Head is a parsed HTTP/1 request head. Its slices alias the buffer it was
// parsed from.
type Head struct {
	Method []byte
	Target []byte
	// Minor is the minor version: 0 or 1.
	Minor uint8
	// Host is the value of the Host header, nil without one (HTTP/1.0 only).
	Host []byte
	// Fields are all header fields in the order received.
	Fields []HeadField

	// Length is the Content-Length, -1 without one; Chunked excludes it.
	Length  int64
	Chunked bool
	// Upgrade: the client asks to leave HTTP/1.1 (Connection: upgrade with an
	// Upgrade header, or CONNECT), so what follows may not be HTTP.
	Upgrade bool
}

// HeadField is one header field of a Head.
type HeadField struct{ Name, Value []byte }

// HasBody reports whether body bytes follow the head.
func (h *Head) HasBody() bool { return h.Chunked || h.Length > 0 }

// ParseHead parses the request head at the start of buf into h, whose Fields
// are reused, and returns the length of the head including its blank line.
// The error is errHeadIncomplete (n = 0) if buf does not hold all of it, else
// a *HeadError. It accepts less than RFC 9112 asks servers to tolerate and
// never more than net/http, which FuzzHead holds it to. It does not allocate
// once h.Fields has grown.
func ParseHead(buf []byte, h *Head) (n int, err error) {
	*h = Head{Fields: h.Fields[:0], Length: -1}
	line, n, err := headLine(buf, 0)
	if err != nil {
		return 0, err
	}
	if err := h.parseRequestLine(line); err != nil {
		return 0, err
	}
	var connectionUpgrade, hasUpgrade, hasHost, hasCoding bool
	for {
		line, next, err := headLine(buf, n)
		if err != nil {
			return 0, err
		}
		n = next
		if n > MaxHeadBytes {
			return 0, errHeadBytes
		}
		if len(line) == 0 {
			break
		}
		if len(h.Fields) == MaxHeadFields {
			return 0, errHeadFields
		}
		name, value, err := exchange.ParseFieldLine(line)
		if err != nil {
			switch err {
			case exchange.ErrFieldFold:
				return 0, errHeadFold
			case exchange.ErrFieldValue:
				return 0, errHeadValue
			}
			return 0, errHeadName
		}
		h.Fields = append(h.Fields, HeadField{name, value})

		// The few fields that decide on framing. Lengths first: cheap and
		// almost always enough to tell that it is none of them.
		switch len(name) {
		case 4:
			if equalFold(name, "host") {
				if hasHost {
					return 0, errHeadHosts
				}
				hasHost = true
				if !validAuthority(value) {
					return 0, errHeadHost
				}
				h.Host = value
			}
		case 7:
			if equalFold(name, "upgrade") {
				hasUpgrade = true
			} else if equalFold(name, "trailer") && namesFraming(value) {
				return 0, errHeadTrailer
			}
		case 10:
			if equalFold(name, "connection") && hasListToken(value, "upgrade") {
				connectionUpgrade = true
			}
		case 14:
			if equalFold(name, "content-length") {
				if h.Length >= 0 {
					return 0, errHeadLengths
				}
				if h.Length = parseLength(value); h.Length < 0 {
					return 0, errHeadLength
				}
			}
		case 17:
			if equalFold(name, "transfer-encoding") {
				if hasCoding || !equalFold(value, "chunked") {
					return 0, errHeadCoding
				}
				hasCoding = true
			}
		}
	}
	if hasCoding {
		if h.Minor == 0 {
			return 0, errHeadCoding10
		}
		if h.Length >= 0 {
			return 0, errHeadBoth
		}
		h.Chunked = true
	}
	if !hasHost && h.Minor == 1 {
		return 0, errHeadNoHost
	}
	if err := h.checkTarget(hasHost); err != nil {
		return 0, err
	}
	connect := string(h.Method) == "CONNECT"
	if connect && (h.Chunked || h.Length >= 0) {
		return 0, errHeadConnectBody
	}
	h.Upgrade = connect || (connectionUpgrade && hasUpgrade && h.Minor == 1)
	return n, nil
}

// headLine gives the line that begins at from, without CRLF, and where the
// next one begins.
func headLine(buf []byte, from int) (line []byte, next int, err error) {
	i := bytes.IndexByte(buf[from:], '\n')
	if i < 0 {
		if len(buf)-from > MaxHeadBytes {
			return nil, 0, errHeadBytes
		}
		return nil, 0, errHeadIncomplete
	}
	if i == 0 || buf[from+i-1] != '\r' {
		return nil, 0, errHeadBareLF
	}
	return buf[from : from+i-1], from + i + 1, nil
}

func (h *Head) parseRequestLine(line []byte) error {
	i := bytes.IndexByte(line, ' ')
	if i < 0 {
		return errHeadRequestLine
	}
	if h.Method = line[:i]; !exchange.IsToken(h.Method) {
		return errHeadMethod
	}
	rest := line[i+1:]
	if i = bytes.IndexByte(rest, ' '); i < 0 {
		return errHeadVersion // HTTP/0.9
	}
	h.Target = rest[:i]
	switch string(rest[i+1:]) {
	case "HTTP/1.1":
		h.Minor = 1
	case "HTTP/1.0":
		h.Minor = 0
	default:
		return errHeadVersion
	}
	if len(h.Target) == 0 {
		return errHeadTarget
	}
	for _, c := range h.Target {
		if c <= ' ' || c == 0x7F || c == '#' {
			return errHeadTarget
		}
	}
	return nil
}

// checkTarget checks the form of the target (RFC 9112 §3.2): origin-form,
// absolute-form naming the same host as Host, authority-form for CONNECT only
// and asterisk-form for OPTIONS only.
func (h *Head) checkTarget(hasHost bool) error {
	t := h.Target
	switch {
	case string(h.Method) == "CONNECT":
		i := bytes.LastIndexByte(t, ':')
		if i < 0 || !validAuthority(t) || bytes.IndexByte(t[i:], ']') >= 0 {
			return errHeadTarget
		}
		if hasHost && !equalFoldBytes(t, h.Host) {
			return errHeadHostMismatch
		}
		return nil
	case t[0] == '/':
		return checkEscapes(t)
	case len(t) == 1 && t[0] == '*':
		if string(h.Method) != "OPTIONS" {
			return errHeadTarget
		}
		return nil
	}
	var rest []byte
	switch {
	case len(t) > 7 && equalFold(t[:7], "http://"):
		rest = t[7:]
	case len(t) > 8 && equalFold(t[:8], "https://"):
		rest = t[8:]
	default:
		return errHeadTarget
	}
	authority := rest
	if i := bytes.IndexAny(rest, "/?"); i >= 0 {
		authority = rest[:i]
	}
	if !validAuthority(authority) {
		return errHeadTarget
	}
	if hasHost && !equalFoldBytes(authority, h.Host) {
		return errHeadHostMismatch
	}
	return checkEscapes(rest[len(authority):])
}

// checkEscapes refuses broken percent escapes in the path part.
func checkEscapes(t []byte) error {
	for i := 0; i < len(t) && t[i] != '?'; i++ {
		if t[i] == '%' {
			if i+2 >= len(t) || !isHex(t[i+1]) || !isHex(t[i+2]) {
				return errHeadTarget
			}
			i += 2
		}
	}
	return nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// validAuthority reports whether a is host[:port]: a name of letters, digits,
// "-", "." and "_", or an address in brackets. User information, escapes and
// zones have no business in a Host header.
func validAuthority(a []byte) bool {
	i := 0
	if len(a) > 0 && a[0] == '[' {
		end := bytes.IndexByte(a, ']')
		if end < 0 {
			return false
		}
		ip, err := netip.ParseAddr(string(a[1:end]))
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return false
		}
		i = end + 1
	} else {
		for i < len(a) && a[i] != ':' {
			c := a[i]
			if c != '-' && c != '.' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(a) {
		return true
	}
	if a[i] != ':' || len(a)-i < 2 || len(a)-i > 6 {
		return false
	}
	for _, c := range a[i+1:] {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// parseLength reads a Content-Length: digits only, at most 18 of them, or -1.
func parseLength(v []byte) int64 {
	if len(v) == 0 || len(v) > 18 {
		return -1
	}
	var n int64
	for _, c := range v {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// namesFraming reports whether a Trailer header announces a field on which
// framing depends.
func namesFraming(v []byte) bool {
	return hasListToken(v, "content-length") || hasListToken(v, "transfer-encoding") || hasListToken(v, "trailer")
}

// hasListToken reports whether the comma-separated list v holds token (given
// in lower case), ignoring case.
func hasListToken(v []byte, token string) bool {
	for len(v) > 0 {
		item := v
		if i := bytes.IndexByte(v, ','); i >= 0 {
			item, v = v[:i], v[i+1:]
		} else {
			v = nil
		}
		if equalFold(bytes.Trim(item, " \t"), token) {
			return true
		}
	}
	return false
}

// equalFold compares b with the lower-case ASCII string s, ignoring ASCII case.
func equalFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != s[i] {
			return false
		}
	}
	return true
}

func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if 'A' <= x && x <= 'Z' {
			x |= 0x20
		}
		if 'A' <= y && y <= 'Z' {
			y |= 0x20
		}
		if x != y {
			return false
		}
	}
	return true
}

// scanHeadEnd looks for the end of a head in buf, of which the first from
// bytes were scanned before, and refuses at once what can never become a
// head, so that a client does not keep us waiting for a line end that never
// comes. It returns the length of the head, or 0.
func scanHeadEnd(buf []byte, from int) (int, error) {
	for i := from; i < len(buf); i++ {
		c := buf[i]
		switch {
		case c >= ' ' && c != 0x7F || c == '\t':
			if i > 0 && buf[i-1] == '\r' {
				return 0, errHeadBareCR
			}
		case c == '\n':
			if i == 0 || buf[i-1] != '\r' {
				return 0, errHeadBareLF
			}
			if i >= 3 && buf[i-2] == '\n' {
				return i + 1, nil
			}
			if i == 1 {
				return 0, errHeadRequestLine // a blank line first
			}
		case c == '\r':
			if i > 0 && buf[i-1] == '\r' {
				return 0, errHeadBareCR
			}
		default:
			return 0, errHeadControl
		}
	}
	if len(buf) > MaxHeadBytes {
		return 0, errHeadBytes
	}
	return 0, nil
}
