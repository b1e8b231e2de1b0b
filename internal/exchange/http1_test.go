package exchange

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestChunkScanner(t *testing.T) {
	big := strings.Repeat("x", 70000)
	for _, tc := range []struct {
		name, in string
		rest     string
		err      error
		open     bool // neither done nor broken
	}{
		{name: "one chunk", in: "5\r\nhello\r\n0\r\n\r\nGET", rest: "GET"},
		{name: "empty", in: "0\r\n\r\n"},
		{name: "extension", in: "1;a=\"b\";c\r\nx\r\n0;z\r\n\r\n"},
		{name: "trailer", in: "0\r\nX-Sum: 1\r\nY:\r\n\r\nrest", rest: "rest"},
		{name: "large", in: "11170\r\n" + big + "\r\n0\r\n\r\n"},
		{name: "not yet", in: "5\r\nhel", open: true},
		{name: "bare LF after size", in: "5\nhello\r\n0\r\n\r\n", err: ErrChunkSize},
		{name: "bare LF after data", in: "5\r\nhello\n0\r\n\r\n", err: ErrChunkEnd},
		{name: "no end after data", in: "5\r\nhelloX0\r\n\r\n", err: ErrChunkEnd},
		{name: "too short a chunk", in: "6\r\nhello\r\n0\r\n\r\n", err: ErrChunkEnd},
		{name: "space before size", in: " 5\r\nhello\r\n", err: ErrChunkSize},
		{name: "space after size", in: "5 \r\nhello\r\n", err: ErrChunkSize},
		{name: "sign", in: "+5\r\nhello\r\n", err: ErrChunkSize},
		{name: "hex prefix", in: "0x5\r\nhello\r\n", err: ErrChunkSize},
		{name: "no size", in: "\r\nhello\r\n", err: ErrChunkSize},
		{name: "overflow", in: "10000000000000005\r\nhello\r\n", err: ErrChunkSize},
		{name: "LF in extension", in: "5;a\nhello\r\n", err: ErrChunkExtension},
		{name: "long extension", in: "5;" + strings.Repeat("a", 2000) + "\r\n", err: ErrChunkExtension},
		{name: "CR in trailer", in: "0\r\nX: a\rb\r\n\r\n", err: ErrTrailer},
		{name: "folded trailer", in: "0\r\nX: a\r\n b\r\n\r\n", err: ErrTrailer},
		{name: "trailer without colon", in: "0\r\nX\r\n\r\n", err: ErrTrailer},
		{name: "endless trailer", in: "0\r\n" + strings.Repeat("X: 1\r\n", 2000), err: ErrTrailer},
	} {
		for _, step := range []int{1, 3, 1 << 20} { // framing must not depend on packets
			var s ChunkScanner
			n, done, err := scanIn(&s, []byte(tc.in), step)
			if err != tc.err {
				t.Errorf("%s, step %d: error %v, want %v", tc.name, step, err, tc.err)
			}
			if err == nil && done == tc.open {
				t.Errorf("%s, step %d: done = %v", tc.name, step, done)
			}
			if done && tc.in[n:] != tc.rest {
				t.Errorf("%s, step %d: rest %q, want %q", tc.name, step, tc.in[n:], tc.rest)
			}
		}
	}
}

func scanIn(s *ChunkScanner, p []byte, step int) (total int, done bool, err error) {
	for len(p) > 0 && !done && err == nil {
		var n int
		n, done, err = s.Scan(p[:min(step, len(p))])
		total += n
		p = p[n:]
	}
	return total, done, err
}

func TestParseFieldLine(t *testing.T) {
	for _, tc := range []struct {
		in, name, value string
		err             error
	}{
		{"A: b", "A", "b", nil},
		{"A:b", "A", "b", nil},
		{"A: \t b c \t", "A", "b c", nil},
		{"A:", "A", "", nil},
		{"A: \x80\xff", "A", "\x80\xff", nil},
		{"A : b", "", "", ErrFieldName},
		{" A: b", "", "", ErrFieldFold},
		{"\tb", "", "", ErrFieldFold},
		{"A", "", "", ErrFieldName},
		{": b", "", "", ErrFieldName},
		{"", "", "", ErrFieldName},
		{"A(: b", "", "", ErrFieldName},
		{"A\x80: b", "", "", ErrFieldName},
		{"A: a\x00b", "", "", ErrFieldValue},
		{"A: a\rb", "", "", ErrFieldValue},
		{"A: a\x7fb", "", "", ErrFieldValue},
	} {
		name, value, err := ParseFieldLine([]byte(tc.in))
		if string(name) != tc.name || string(value) != tc.value || err != tc.err {
			t.Errorf("%q: %q %q %v", tc.in, name, value, err)
		}
	}
}

// FuzzChunked: where the scanner sees a whole body, net/http sees the same
// one, and stops reading at the same byte.
func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n"), 1)
	f.Add([]byte("a;x=\"y\"\r\n0123456789\r\n0\r\nT: v\r\n\r\n"), 7)
	f.Add([]byte("0\r\n\r\n"), 2)
	f.Add([]byte("5\nhello\n0\n\n"), 1)
	f.Fuzz(func(t *testing.T, in []byte, step int) {
		if step < 1 {
			step = 1
		}
		var s, again ChunkScanner
		n, done, err := scanIn(&s, in, step)
		m, done2, err2 := again.Scan(in)
		if n != m || done != done2 || err != err2 {
			t.Fatalf("step %d: %d %v %v; at once: %d %v %v", step, n, done, err, m, done2, err2)
		}
		if !done {
			return
		}
		head := "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
		br := bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(in)))
		req, err := http.ReadRequest(br)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			if strings.Contains(err.Error(), "too much non-data") || strings.Contains(err.Error(), "suspiciously long trailer") ||
				errors.Is(err, http.ErrBodyReadAfterClose) {
				return // net/http may be stricter
			}
			t.Fatalf("net/http refuses %q: %v", in[:n], err)
		}
		rest, _ := io.ReadAll(br)
		if string(rest) != string(in[n:]) {
			t.Fatalf("net/http leaves %q, we leave %q", rest, in[n:])
		}
	})
}
