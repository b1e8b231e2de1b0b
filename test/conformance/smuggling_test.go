package conformance

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// hidden is the request that no vector may get through. It stands where a
// reader that errs on framing finds a request of its own.
const hidden = "GET /hidden HTTP/1.1\r\nHost: HOST\r\n\r\n"

// vector is what a client sends. HOST is the route's host, /PATH a path of
// this vector alone.
type vector struct{ name, bytes string }

// whole are vectors behind which hidden is a request of its own by any reading
// of the RFC: it is served as such.
var whole = []string{"CL of nothing", `TE "CHUNKED"`, "Connection names TE", `chunks "00\r\n\r\n"`, "two requests"}

func post(name, head, body string) vector {
	return vector{name, "POST /PATH HTTP/1.1\r\nHost: HOST\r\n" + head + "\r\n" + body}
}

// vectors are known ways to make two parsers disagree about where a request
// ends or what it asks for (RFC 9112 §11.2).
func vectors() []vector {
	length := func(s string) string { return strconv.Itoa(len(s)) }
	chunked := "0\r\n\r\n" + hidden
	v := []vector{
		post("CL and TE", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunked),
		post("TE and CL", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", chunked),
		post("CL covers all, TE ends early", "Content-Length: "+length(chunked)+"\r\nTransfer-Encoding: chunked\r\n", chunked),
		post("two CL, first short", "Content-Length: 0\r\nContent-Length: "+length(hidden)+"\r\n", hidden),
		post("two CL, first long", "Content-Length: "+length(hidden)+"\r\nContent-Length: 0\r\n", hidden),
		post("two equal CL", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"+hidden),
		post("CL list", "Content-Length: 0, "+length(hidden)+"\r\n", hidden),
		post("CL list of equals", "Content-Length: 3, 3\r\n", "abc"+hidden),
		post("CL of nothing", "Content-Length: 0\r\n", hidden),
	}
	for _, value := range []string{"+0", "-0", "0x0", "0 1", "0,", ",0", "0;", "٠", "", "0\v", "00000000000000000000000000000000000000", "18446744073709551616", "-1", "1e0", "0_0"} {
		v = append(v, post(fmt.Sprintf("CL %q", value), "Content-Length: "+value+"\r\n", hidden))
	}
	for _, value := range []string{"xchunked", "chunked, identity", "identity, chunked", "chunked, chunked", "chunked,", ",chunked", "chunked;a=b", "\"chunked\"", "CHUNKED", "chunked\v", "\x0bchunked", "cow", "gzip, chunked", "identity", "chunked\x00", "chu\tnked"} {
		v = append(v, post(fmt.Sprintf("TE %q", value), "Transfer-Encoding: "+value+"\r\n", chunked))
	}
	v = append(v,
		post("two TE, last odd", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n", chunked),
		post("two TE, first odd", "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked\r\n", chunked),
		post("space before colon in TE", "Transfer-Encoding : chunked\r\n", chunked),
		post("tab before colon in CL", "Content-Length\t: "+length(hidden)+"\r\n", hidden),
		post("TE with folded value", "Transfer-Encoding:\r\n chunked\r\n", chunked),
		post("folded header hides TE", "X-A: b\r\n Transfer-Encoding: chunked\r\n", chunked),
		post("TE with leading space", " Transfer-Encoding: chunked\r\n", chunked),
		post("underscores in TE", "Transfer_Encoding: chunked\r\n", chunked),
		post("underscores in CL", "Content_Length: "+length(hidden)+"\r\n", hidden),
		post("TE name with NUL", "Transfer-Encoding\x00: chunked\r\n", chunked),
		post("TE behind bare CR", "X-A: b\rTransfer-Encoding: chunked\r\n", chunked),
		post("TE behind bare LF", "X-A: b\nTransfer-Encoding: chunked\r\n", chunked),
		post("head ends at bare LF", "X-A: b\n\n"+hidden, ""),
		post("line without colon", "Transfer-Encoding\r\nContent-Length: 0\r\n", hidden),
		post("empty header name", ": x\r\nContent-Length: 0\r\n", hidden),
		post("Connection names CL", "Connection: Content-Length\r\nContent-Length: "+length(hidden)+"\r\n", hidden),
		post("Connection names TE", "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", chunked),
		post("Connection names Host", "Connection: Host\r\nContent-Length: 0\r\n", ""),
		post("Upgrade with a request behind", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nContent-Length: 0\r\n", hidden),
		post("h2c upgrade", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nContent-Length: 0\r\n", hidden),
		post("Expect", "Expect: 100-continue\r\nContent-Length: 4\r\n", "abcd"),
		post("odd Expect", "Expect: 200-maybe\r\nContent-Length: 0\r\n", hidden),
		post("trailer with CL", "Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: "+length(hidden)+"\r\n\r\n"),
		post("trailer with TE", "Transfer-Encoding: chunked\r\n", "0\r\nTransfer-Encoding: chunked\r\n\r\n"),
	)
	for _, body := range []string{
		"0\n\n", "0\r\n\n", "0;\n\r\n", "0;a\nb\r\n\r\n", "0;a=\"\r\n\"\r\n\r\n", "00\r\n\r\n", "0x0\r\n\r\n", "+0\r\n\r\n", "-0\r\n\r\n", " 0\r\n\r\n", "0 \r\n\r\n", "\t0\r\n\r\n",
		"1\r\na0\r\n\r\n", "1\r\nab\r\n0\r\n\r\n", "1\r\n\r\n0\r\n\r\n", "2\r\nab0\r\n\r\n", "10000000000000000\r\n\r\n", "FFFFFFFFFFFFFFFF\r\n\r\n", "fffffffffffffffff0\r\n\r\n",
		"\r\n0\r\n\r\n", "g\r\n\r\n", "0\r\nX: a\nY: b\r\n\r\n", "0\r\n X: a\r\n\r\n", "0\r\nno colon\r\n\r\n", "1;" + strings.Repeat("a", 70000) + "\r\na\r\n0\r\n\r\n", "0\r\r\n\r\n", "1\r\na\r0\r\n\r\n", "1\na\n0\n\n",
	} {
		name := body
		if len(name) > 40 {
			name = name[:20] + "..."
		}
		v = append(v, post(fmt.Sprintf("chunks %q", name), "Transfer-Encoding: chunked\r\n", body+hidden))
	}
	line := func(name, line, rest string) vector { return vector{name, line + "\r\n" + rest + "\r\n"} }
	const host = "Host: HOST\r\n"
	v = append(v,
		line("HTTP/1.0 with TE", "POST /PATH HTTP/1.0", host+"Transfer-Encoding: chunked\r\n\r\n"+chunked),
		line("HTTP/1.0 keep-alive with TE", "POST /PATH HTTP/1.0", host+"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n"+chunked),
		line("HTTP/1.0 without Host", "GET /PATH HTTP/1.0", ""),
		line("HTTP/0.9", "GET /PATH", ""),
		line("HTTP/1.2", "GET /PATH HTTP/1.2", host),
		line("HTTP/2.0", "GET /PATH HTTP/2.0", host),
		line("HTTP/1.10", "GET /PATH HTTP/1.10", host),
		line("http/1.1", "GET /PATH http/1.1", host),
		line("lower-case method", "get /PATH HTTP/1.1", host),
		line("method with a bracket", "G{T /PATH HTTP/1.1", host),
		line("two spaces", "GET  /PATH HTTP/1.1", host),
		line("tab", "GET\t/PATH HTTP/1.1", host),
		line("trailing space", "GET /PATH HTTP/1.1 ", host),
		line("space in the target", "GET /PATH /hidden HTTP/1.1", host),
		line("request in the target", "GET /PATH HTTP/1.1\nGET /hidden HTTP/1.1", host),
		line("CR in the target", "GET /PATH\rHTTP/1.1", host),
		line("leading line feed", "\nGET /PATH HTTP/1.1", host),
		line("leading space", " GET /PATH HTTP/1.1", host),
		line("two Hosts", "GET /PATH HTTP/1.1", host+"Host: other.localhost\r\n"),
		line("two equal Hosts", "GET /PATH HTTP/1.1", host+host),
		line("no Host", "GET /PATH HTTP/1.1", "X: y\r\n"),
		line("Host list", "GET /PATH HTTP/1.1", "Host: HOST, other.localhost\r\n"),
		line("Host with a path", "GET /PATH HTTP/1.1", "Host: HOST/hidden\r\n"),
		line("Host with a user", "GET /PATH HTTP/1.1", "Host: a@HOST\r\n"),
		line("Host with a tab", "GET /PATH HTTP/1.1", "Host: HOST\tx\r\n"),
		line("absolute form of another host", "GET http://other.localhost/hidden HTTP/1.1", host),
		line("absolute form", "GET http://HOST/PATH HTTP/1.1", host),
		line("absolute form with a user", "GET http://other.localhost@HOST/PATH HTTP/1.1", host),
		line("asterisk", "OPTIONS * HTTP/1.1", host),
		line("authority form", "GET HOST:443 HTTP/1.1", host),
		line("CONNECT", "CONNECT HOST:443 HTTP/1.1", host+"\r\n"+hidden),
		line("fragment", "GET /PATH#/hidden HTTP/1.1", host),
		line("backslash", "GET /PATH\\..\\hidden HTTP/1.1", host),
		line("escaped slash", "GET /PATH%2f..%2fhidden HTTP/1.1", host),
		line("dots", "GET /PATH/../PATH HTTP/1.1", host),
		line("escaped NUL", "GET /PATH%00 HTTP/1.1", host),
		line("NUL in a value", "GET /PATH HTTP/1.1", host+"X: a\x00b\r\n"),
		line("preface of HTTP/2", "PRI * HTTP/2.0", "\r\nSM\r\n"),
		vector{"two requests", "GET /PATH HTTP/1.1\r\nHost: HOST\r\n\r\nGET /PATH HTTP/1.1\r\nHost: HOST\r\n\r\n"},
		vector{"exact body", "POST /PATH HTTP/1.1\r\nHost: HOST\r\nContent-Length: " + length(strings.ReplaceAll(hidden, "HOST", "nginx.localhost")) + "\r\n\r\n" + strings.ReplaceAll(hidden, "HOST", "nginx.localhost")},
	)
	return v
}

func (v vector) at(host, path, hidden string) string {
	return strings.NewReplacer("HOST", host, "/PATH", path, "/hidden", hidden).Replace(v.bytes)
}

// last is sent behind a vector, so that a connection that stays open has an
// end.
func last(host, path string) string {
	return "GET " + path + "/last HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
}

// Whatever bytes come, the three parsers behind the proxy are asked the same
// thing, at most once, never for the hidden request, and the next visitor gets
// their own answer. What the parsers make of the same bytes by themselves is
// compared, too: vectors that all read alike would prove nothing.
func TestSmugglingVectorsReachThreeParsersAlike(t *testing.T) {
	parsers := []*parser{startNginx(t), startNode(t), startGo(t)}
	var routes strings.Builder
	for _, p := range parsers {
		fmt.Fprintf(&routes, "  - {from: https://%[1]s.localhost, to: http://%[2]s, preserve_host_header: true, allow_public_unauthenticated_access: true}\n", p.name, p.addr)
	}
	program := servertest.Start(t, "timeout_read: 1s\nroutes:\n"+routes.String())
	agent := program.Agent()
	apart := 0
	for i, v := range vectors() {
		path := fmt.Sprintf("/v%d", i)
		var got, alone []string
		for _, p := range parsers {
			host := p.name + ".localhost"
			// By itself, on a connection of its own.
			c, err := net.Dial("tcp", p.addr)
			if err != nil {
				t.Fatal(err)
			}
			answers, _ := say(c, v.at(host, "/alone", "/2nd"), true)
			alone = append(alone, fmt.Sprint(answers))

			before := len(p.seen())
			if c, err = agent.Dial(host, "http/1.1"); err != nil {
				t.Fatal(err)
			}
			answers, err = say(c, v.at(host, path, "/hidden")+last(host, path), false)
			if err != nil {
				t.Errorf("%s, %s: %v", v.name, p.name, err)
			}
			got = append(got, fmt.Sprint(answers))
			// A visitor on the same upstream connection gets their own answer.
			page, err := agent.Request("GET", "https://"+host+"/after"+path)
			if err != nil || strings.TrimSpace(page.Body) != "asked GET /after"+path {
				t.Errorf("%s, %s: the next visitor got %v %q", v.name, p.name, err, bodyOf(page))
			}
			var through []string
			if err := servertest.Eventually(func() error { // logs are written a little later
				through = p.seen()[before:]
				if !slices.Contains(through, "GET /after"+path) {
					return fmt.Errorf("%s does not log", p.name)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			once, most := 0, 1
			if slices.Contains(whole, v.name) {
				most = 2
			}
			for _, request := range through {
				switch {
				case strings.HasSuffix(request, " "+path):
					once++
				case strings.Contains(request, "hidden") && most == 1:
					t.Errorf("%s: %s was asked %q", v.name, p.name, request)
				}
			}
			if once > most {
				t.Errorf("%s: %s was asked %d times: %q", v.name, p.name, once, through)
			}
		}
		// A parser that answers before it has read the body leaves no room for a
		// 400 to a broken one: the connection is cut instead, before or behind
		// that answer, or the 400 comes behind it.
		early := func(s string) bool {
			return s == "[]" || s == "[200 POST "+path+"]" || s == "[200 POST "+path+" 400]"
		}
		said := slices.DeleteFunc(slices.Clone(got), early)
		same := len(slices.Compact(slices.Clone(said))) <= 1 && (len(said) == len(got) || len(said) == 0 || said[0] == "[400]")
		if !same && v.name != "lower-case method" { // a method that nginx and Node do not know
			t.Errorf("%s: answers differ by the parser behind: nginx %s, node %s, go %s", v.name, got[0], got[1], got[2])
		}
		differ := alone[0] != alone[1] || alone[1] != alone[2]
		if differ {
			apart++
		}
		t.Logf("%-32s through the proxy %-24s directly: nginx %s, node %s, go %s", v.name, got[2], alone[0], alone[1], alone[2])
	}
	t.Logf("%d vectors, of which the parsers by themselves read %d differently", len(vectors()), apart)
	if apart < 20 {
		t.Errorf("the parsers by themselves disagree about %d vectors alone: these prove little", apart)
	}
}

func bodyOf(p *servertest.Page) string {
	if p == nil {
		return ""
	}
	return p.Body
}
