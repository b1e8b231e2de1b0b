package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"postern/internal/server/servertest"
)

// fields are the fields of a request over HTTP/2, body its data frames.
type stream struct {
	name   string
	fields []hpack.HeaderField
	body   string
	fine   bool // it is a request like any other
	// early says that it may be answered before the frame comes that breaks it.
	early bool
}

func streams(host, path string) []stream {
	f := func(pairs ...string) []hpack.HeaderField {
		var out []hpack.HeaderField
		for i := 0; i+1 < len(pairs); i += 2 {
			out = append(out, hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
		}
		return out
	}
	get := []string{":method", "GET", ":scheme", "https", ":authority", host, ":path", path}
	post := append(slices.Clone(get), []string{}...)
	post[1] = "POST"
	with := func(base []string, more ...string) []hpack.HeaderField {
		return f(append(slices.Clone(base), more...)...)
	}
	changed := func(at int, value string) []hpack.HeaderField {
		b := slices.Clone(get)
		b[at] = value
		return f(b...)
	}
	const inner = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
	return []stream{
		{"plain", f(get...), "", true, false},
		{"body with a request", with(post, "content-type", "text/plain"), "0\r\n\r\n" + inner, true, false},
		{"length of the body", with(post, "content-length", "4"), "abcd", true, false},
		{"length too short", with(post, "content-length", "0"), inner, false, true},
		{"length too long", with(post, "content-length", "100"), "abcd", false, true},
		{"two lengths", with(post, "content-length", "4", "content-length", "0"), "abcd", false, false},
		{"length with a sign", with(post, "content-length", "+4"), "abcd", false, false},
		{"transfer-encoding", with(post, "transfer-encoding", "chunked"), "0\r\n\r\n" + inner, false, false},
		{"connection", with(post, "connection", "content-length"), "", false, false},
		{"upgrade", with(get, "upgrade", "h2c"), "", false, false},
		{"te", with(get, "te", "chunked"), "", false, false},
		{"CRLF in a value", with(get, "x", "a\r\nTransfer-Encoding: chunked"), "", false, false},
		{"LF in a value", with(get, "x", "a\ny: b"), "", false, false},
		{"NUL in a value", with(get, "x", "a\x00b"), "", false, false},
		{"CRLF in a name", with(get, "x: y\r\ntransfer-encoding", "chunked"), "", false, false},
		{"colon in a name", with(get, "x:y", "z"), "", false, false},
		{"upper case in a name", with(get, "Transfer-Encoding", "chunked"), "", false, false},
		{"space in a name", with(get, "content-length ", "4"), "", false, false},
		{"CRLF in the path", changed(7, path+" HTTP/1.1\r\nHost: a\r\n\r\n"+inner), "", false, false},
		{"space in the path", changed(7, path+" HTTP/1.1"), "", false, false},
		{"absolute path", changed(7, "https://other.localhost/hidden"), "", false, false},
		{"empty path", changed(7, ""), "", false, false},
		{"request in the method", changed(1, "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\nGET"), "", false, false},
		{"space in the method", changed(1, "GET /hidden"), "", false, false},
		{"CRLF in the authority", changed(5, host+"\r\nX: y"), "", false, false},
		{"user in the authority", changed(5, "a@"+host), "", false, false},
		{"path in the authority", changed(5, host+"/hidden"), "", false, false},
		{"other Host", with(get, "host", "other.localhost"), "", false, false},
		{"same Host", with(get, "host", host), "", true, false},
		{"two paths", with(get, ":path", "/hidden"), "", false, false},
		{"pseudo-field behind", append(f("x", "y"), f(get...)...), "", false, false},
		{"unknown pseudo-field", append(f(":hidden", "y"), f(get...)...), "", false, false},
	}
}

// ask sends one request on a connection of its own and gives the status, "reset" or
// "closed".
func (s stream) ask(c net.Conn) (string, error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, http2.ClientPreface); err != nil {
		return "", err
	}
	framer := http2.NewFramer(c, c)
	if err := framer.WriteSettings(); err != nil {
		return "", err
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range s.fields {
		if err := encoder.WriteField(field); err != nil {
			return "", err
		}
	}
	if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: s.body == ""}); err != nil {
		return "", err
	}
	if s.body != "" {
		_ = framer.WriteData(1, true, []byte(s.body)) // it may be reset already
	}
	status := ""
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			status = f.Value
		}
	})
	for {
		frame, err := framer.ReadFrame()
		if errors.Is(err, io.EOF) || err != nil {
			return "closed", nil
		}
		switch f := frame.(type) {
		case *http2.HeadersFrame:
			if _, err := decoder.Write(f.HeaderBlockFragment()); err != nil {
				return "", err
			}
			if status != "" && !strings.HasPrefix(status, "1") {
				return status, nil
			}
		case *http2.RSTStreamFrame:
			return "reset", nil
		case *http2.GoAwayFrame:
			return "closed", nil
		}
	}
}

// What HTTP/2 can say and HTTP/1.1 cannot does not become another request on
// the way to parsers of HTTP/1.1.
func TestHTTP2IsNotWrittenDownAsTwoRequests(t *testing.T) {
	parsers := []*parser{startNginx(t), startNode(t), startGo(t)}
	var routes strings.Builder
	for _, p := range parsers {
		fmt.Fprintf(&routes, "  - {from: https://%[1]s.localhost, to: http://%[2]s, preserve_host_header: true, allow_public_unauthenticated_access: true}\n", p.name, p.addr)
	}
	agent := servertest.Start(t, "routes:\n"+routes.String()).Agent()
	for i := range streams("", "") {
		var got []string
		name := ""
		for _, p := range parsers {
			host, path := p.name+".localhost", fmt.Sprintf("/v%d", i)
			s := streams(host, path)[i]
			name = s.name
			before := len(p.seen())
			c, err := agent.Dial(host, "h2")
			if err != nil {
				t.Fatal(err)
			}
			answer, err := s.ask(c)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, answer)
			page, err := agent.Request("GET", "https://"+host+"/after"+path)
			if err != nil || strings.TrimSpace(page.Body) != "asked GET /after"+path {
				t.Errorf("%s, %s: the next visitor got %v %q", s.name, p.name, err, bodyOf(page))
			}
			var through []string
			if err := servertest.Eventually(func() error {
				if through = p.seen()[before:]; !slices.Contains(through, "GET /after"+path) {
					return fmt.Errorf("%s does not log", p.name)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			want := 1
			if s.fine || s.early {
				want = 2
			}
			if s.fine {
				if answer != "200" {
					t.Errorf("%s, %s: %s", s.name, p.name, answer)
				}
			} else if answer == "200" && !s.early {
				t.Errorf("%s, %s: answered 200", s.name, p.name)
			}
			if len(through) > want && !(p.name == "nginx" && s.body != "") || strings.Contains(strings.Join(through, "\n"), "hidden") {
				t.Errorf("%s: %s was asked %q", s.name, p.name, through)
			}
		}
		t.Logf("%-24s nginx %s, node %s, go %s", name, got[0], got[1], got[2])
	}
}
