package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
)

// headCases are request heads and what becomes of each; status 0 is accepted.
var headCases = []struct {
	name   string
	head   string
	status int
}{
	{"plain", "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 0},
	{"port", "GET / HTTP/1.1\r\nHost: a.example:8443\r\n\r\n", 0},
	{"IPv6 host", "GET / HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n", 0},
	{"underscore host", "GET / HTTP/1.1\r\nHost: a_b.example\r\n\r\n", 0},
	{"no value", "GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n", 0},
	{"obs-text", "GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xa9\r\n\r\n", 0},
	{"odd method", "BREW!# /pot HTTP/1.1\r\nHost: a\r\n\r\n", 0},
	{"query", "GET /a%20b?x=%zz&y={\"}| HTTP/1.1\r\nHost: a\r\n\r\n", 0},
	{"absolute form", "GET http://A.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n", 0},
	{"absolute form, https, no path", "GET HTTPS://a.example HTTP/1.1\r\nHost: a.example\r\n\r\n", 0},
	{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 0},
	{"connect", "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", 0},
	{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 0},
	{"HTTP/1.0 with length", "POST / HTTP/1.0\r\nContent-Length: 1\r\n\r\n", 0},
	{"length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 0},
	{"chunked", "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n", 0},
	{"trailer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n", 0},

	{"length and coding", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
	{"coding and length", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400},
	{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400},
	{"two equal lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n", 400},
	{"length list", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400},
	{"signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400},
	{"negative length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400},
	{"hex length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\n", 400},
	{"no length value", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400},
	{"huge length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n", 400},
	{"other coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 400},
	{"coding list", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 400},
	{"chunked identity", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", 400},
	{"two codings", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
	{"hidden coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", 400},
	{"quoted coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", 400},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
	{"framing trailer", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X, Content-Length\r\n\r\n", 400},
	{"connect with body", "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 0\r\n\r\n", 400},

	{"bare LF in request line", "GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
	{"bare LF in header", "GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n", 400},
	{"bare LF at the end", "GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
	{"bare CR", "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400},
	{"CR CR LF", "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400},
	{"fold", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400},
	{"fold at once", "GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400},
	{"NUL", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", 400},
	{"control byte", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x08b\r\n\r\n", 400},
	{"DEL", "GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", 400},
	{"space before colon", "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400},
	{"space in name", "GET / HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n", 400},
	{"no name", "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n", 400},
	{"no colon", "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400},
	{"name not a token", "GET / HTTP/1.1\r\nHost: a\r\nX(y): 1\r\n\r\n", 400},
	{"high name", "GET / HTTP/1.1\r\nHost: a\r\nX\xe9: 1\r\n\r\n", 400},
	{"blank line first", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400},

	{"no Host", "GET / HTTP/1.1\r\nX: 1\r\n\r\n", 400},
	{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
	{"two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400},
	{"two Hosts, HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n", 400},
	{"Host with user", "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400},
	{"Host list", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400},
	{"Host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
	{"Host with escape", "GET / HTTP/1.1\r\nHost: a%2eb\r\n\r\n", 400},
	{"Host with zone", "GET / HTTP/1.1\r\nHost: [fe80::1%25en0]\r\n\r\n", 400},
	{"Host port not a number", "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400},
	{"Host, two ports", "GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400},
	{"absolute form, other host", "GET http://b/x HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"absolute form with user", "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"absolute form, other scheme", "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"connect, other host", "CONNECT b:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400},
	{"connect without port", "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"connect with path", "CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n", 400},

	{"HTTP/0.9", "GET /\r\n\r\n", 400},
	{"HTTP/1.2", "GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400},
	{"HTTP/2.0", "GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400},
	{"lower-case version", "GET / http/1.1\r\nHost: a\r\n\r\n", 400},
	{"two spaces", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"space in target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"tab in target", "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"fragment", "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"fragment in query", "GET /a?x#b HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"broken escape", "GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"cut escape", "GET /%2 HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"no slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"asterisk for GET", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"method not a token", "G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400},
	{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400},

	{"1000 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: 1\r\n", 999) + "\r\n", 0},
	{"1001 headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: 1\r\n", 1000) + "\r\n", 431},
	{"large head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 120<<10) + "\r\n\r\n", 0},
	{"too large a head", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("y", 130<<10) + "\r\n\r\n", 431},
	{"endless request line", "GET /" + strings.Repeat("y", 132<<10), 431},
}

func parseWhole(head string) (*Head, error) {
	h := new(Head)
	end, err := scanHeadEnd([]byte(head), 0)
	if err == nil && end == 0 {
		err = errHeadIncomplete
	}
	if err == nil {
		_, err = ParseHead([]byte(head)[:end], h)
	}
	return h, err
}

func TestParseHead(t *testing.T) {
	for _, tc := range headCases {
		_, err := parseWhole(tc.head)
		status := 0
		if err != nil {
			var bad *HeadError
			if !errors.As(err, &bad) {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			status = bad.Status
		}
		if status != tc.status {
			t.Errorf("%s: status %d (%v), want %d", tc.name, status, err, tc.status)
		}
	}
}

func TestParseHeadFields(t *testing.T) {
	h, err := parseWhole("POST /p?q HTTP/1.1\r\nhOST: A:1\r\nX-a:  1 \r\nx-A: 2\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nContent-Length: 42\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	if string(h.Method) != "POST" || string(h.Target) != "/p?q" || string(h.Host) != "A:1" || h.Length != 42 || h.Chunked || !h.Upgrade || h.Minor != 1 {
		t.Errorf("head: %+v", h)
	}
	if got := string(h.Fields[0].Name) + "|" + string(h.Fields[1].Value) + "|" + string(h.Fields[2].Name); got != "hOST|1|x-A" {
		t.Errorf("fields: %s", got)
	}
}

func TestParseHeadDoesNotAllocate(t *testing.T) {
	head := []byte("GET /api/v1/items?page=2 HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: x\r\nAccept: */*\r\nCookie: a=b\r\nConnection: keep-alive\r\n\r\n")
	var h Head
	ParseHead(head, &h)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := ParseHead(head, &h); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzHead: what the guard accepts, net/http accepts, and reads the same
// method, target, version, headers and body length out of it.
func FuzzHead(f *testing.F) {
	for _, tc := range headCases {
		if len(tc.head) < 1000 {
			f.Add([]byte(tc.head))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		end, scanErr := scanHeadEnd(in, 0)
		var h Head
		n, err := ParseHead(in, &h)
		if scanErr == nil && end == 0 && err == nil {
			t.Fatalf("accepted %q, whose end is not found", in)
		}
		if err != nil || scanErr != nil {
			return
		}
		if n != end {
			t.Fatalf("head of %d bytes, but the end is at %d: %q", n, end, in)
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in[:n])))
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", in[:n], err)
		}
		if req.Method != string(h.Method) || req.RequestURI != string(h.Target) || req.ProtoMinor != int(h.Minor) || req.ProtoMajor != 1 {
			t.Fatalf("net/http reads %s %s %s from %q", req.Method, req.RequestURI, req.Proto, in[:n])
		}
		if h.Host != nil && !strings.EqualFold(req.Host, string(h.Host)) {
			t.Fatalf("net/http reads host %q from %q", req.Host, in[:n])
		}
		length := h.Length
		if h.Chunked {
			length = -1
		} else if length < 0 {
			length = 0
		}
		if req.ContentLength != length {
			t.Fatalf("net/http reads length %d, we %d, from %q", req.ContentLength, length, in[:n])
		}
		if (len(req.TransferEncoding) == 1) != h.Chunked {
			t.Fatalf("net/http reads codings %q from %q", req.TransferEncoding, in[:n])
		}
		want := http.Header{}
		for _, f := range h.Fields {
			switch k := textproto.CanonicalMIMEHeaderKey(string(f.Name)); k {
			case "Host", "Transfer-Encoding":
			case "Trailer":
				if !h.Chunked {
					want[k] = append(want[k], string(f.Value))
				}
			default:
				want[k] = append(want[k], string(f.Value))
			}
		}
		delete(req.Header, "Host")
		if want.Get("Pragma") == "no-cache" && want["Cache-Control"] == nil {
			delete(req.Header, "Cache-Control") // net/http adds it
		}
		if len(want) != len(req.Header) {
			t.Fatalf("net/http reads %q, we %q", req.Header, want)
		}
		for k, v := range want {
			if strings.Join(v, "\x00") != strings.Join(req.Header[k], "\x00") {
				t.Fatalf("%s: net/http reads %q, we %q", k, req.Header[k], v)
			}
		}
	})
}

func BenchmarkParseHead(b *testing.B) {
	head := []byte("GET /api/v1/items?page=2 HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html,application/xhtml+xml\r\nAccept-Language: en\r\nAccept-Encoding: gzip, br\r\nCookie: session=0123456789abcdef0123456789abcdef\r\nConnection: keep-alive\r\nSec-Fetch-Mode: navigate\r\n\r\n")
	var h Head
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseHead(head, &h); err != nil {
			b.Fatal(err)
		}
	}
}
