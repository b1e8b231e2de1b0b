package system

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/net/html"
)

// More that an agent can do: forms, cookies, tabs, certificates, streams.
func init() {
	commands["press"] = cmdPress               // press AGENT [FIELD=VALUE...]       post the form of the page that the agent sees
	commands["until"] = cmdUntil               // until AGENT URL REGEXP [HEADER...] ask again until the answer matches
	commands["capture"] = cmdCapture           // capture NAME REGEXP                the first group in the last stdout
	commands["cookies"] = cmdCookies           // cookies AGENT URL NAME             what the agent would send, into NAME
	commands["drops"] = cmdDrops               // drops AGENT REGEXP                 an agent that keeps no cookie of these names
	commands["presents"] = cmdPresents         // presents AGENT CERT KEY            a client certificate
	commands["tabs"] = cmdTabs                 // tabs AGENT N URL EMAIL PASSWORD    N tabs of one browser sign in at once
	commands["websocket"] = cmdWebSocket       // websocket NAME open AGENT URL | say TEXT | gone [REGEXP]
	commands["events"] = cmdEvents             // events AGENT URL UPSTREAM          server-sent events, each before the next is made
	commands["grpc"] = cmdGRPC                 // grpc AGENT URL                     a conversation in frames over HTTP/2, with trailers
	commands["raw"] = cmdRaw                   // raw HOST ADDRESS BYTES...          bytes over TLS (or "plain" as HOST), everything answered to stdout
	commands["upload"] = cmdUpload             // upload AGENT URL MEGABYTES         a body that is longer than memory should hold
	commands["documented"] = cmdDocumented     // documented KEYS PAGE
	commands["codeblock"] = cmdCodeBlock       // codeblock PAGE LANGUAGE FILE
	commands["demo"] = cmdDemo                 // demo start DIRECTORY PORT                accounts become $ADA, $ADA_PASSWORD ...
	commands["certificates"] = cmdCertificates // certificates HOST...               cert.pem and key.pem for the hosts; CA is set
}

// pickyJar keeps no cookies whose name matches.
type pickyJar struct {
	http.CookieJar
	drop *regexp.Regexp
}

func (j pickyJar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	var keep []*http.Cookie
	for _, c := range cookies {
		if !j.drop.MatchString(c.Name) {
			keep = append(keep, c)
		}
	}
	j.CookieJar.SetCookies(u, keep)
}

func cmdDrops(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "drops AGENT REGEXP")
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	a := theAgent(ts, args[0])
	jar, _ := cookiejar.New(nil)
	a.client.Jar = pickyJar{jar, re}
}

func cmdPresents(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "presents AGENT CERT KEY")
	pair, err := tls.LoadX509KeyPair(ts.MkAbs(args[1]), ts.MkAbs(args[2]))
	ts.Check(err)
	tr := theAgent(ts, args[0]).client.Transport.(*http.Transport)
	// Whatever CAs the server names: it is the server that has to judge.
	tr.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
}

func cmdCookies(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "cookies AGENT URL NAME")
	u, err := url.Parse(args[1])
	ts.Check(err)
	var out []string
	for _, c := range theAgent(ts, args[0]).client.Jar.Cookies(u) {
		out = append(out, c.Name+"="+c.Value)
	}
	if len(out) == 0 {
		ts.Fatalf("%s has no cookies for %s", args[0], args[1])
	}
	ts.Setenv(args[2], strings.Join(out, "; "))
}

func cmdCapture(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "capture NAME REGEXP")
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	m := re.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) < 2 {
		ts.Fatalf("stdout holds nothing like %q with a group", args[1])
	}
	ts.Setenv(args[0], html.UnescapeString(m[1]))
}

// cmdPress posts the first form of the page that the agent saw last, with its
// hidden fields and those given, and follows where it leads.
func cmdPress(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "press AGENT [FIELD=VALUE...]")
	a := theAgent(ts, args[0])
	if a.last == nil {
		ts.Fatalf("%s has seen no page", args[0])
	}
	action, method, values, ok := firstForm(a.last.body)
	if !ok {
		ts.Fatalf("the page that %s sees has no form:\n%s", args[0], a.last.body)
	}
	for _, kv := range args[1:] {
		k, v, _ := strings.Cut(kv, "=")
		values.Set(k, v)
	}
	base := a.last.Request.URL
	to, err := base.Parse(action)
	ts.Check(err)
	var req *http.Request
	if method == "POST" {
		req, err = http.NewRequest("POST", to.String(), strings.NewReader(values.Encode()))
		ts.Check(err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", base.Scheme+"://"+base.Host)
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	} else {
		if len(values) > 0 {
			to.RawQuery = values.Encode()
		}
		req, err = http.NewRequest("GET", to.String(), nil)
		ts.Check(err)
	}
	a.hops = nil
	p, err := a.follow(req, "", "")
	ts.Check(err)
	fmt.Fprintf(ts.Stderr(), "%s\n", strings.Join(a.hops, "\n"))
	show(ts.Stdout(), p)
}

func firstForm(body string) (action, method string, values url.Values, ok bool) {
	doc, err := html.Parse(strings.NewReader(body))
	if err != nil {
		return
	}
	values = url.Values{}
	for n := range doc.Descendants() {
		at := map[string]string{}
		for _, a := range n.Attr {
			at[a.Key] = a.Val
		}
		switch {
		case n.Type != html.ElementNode:
		case n.Data == "form" && ok:
			return
		case n.Data == "form":
			action, method, ok = at["action"], strings.ToUpper(at["method"]), true
		case n.Data == "input" && at["type"] == "hidden":
			values.Set(at["name"], at["value"])
		}
	}
	return
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "until AGENT URL REGEXP [HEADER...]")
	re, err := regexp.Compile(args[2])
	ts.Check(err)
	a := theAgent(ts, args[0])
	var last strings.Builder
	err = eventually(60*time.Second, func() error {
		req, err := http.NewRequest("GET", args[1], nil)
		if err != nil {
			return err
		}
		for _, h := range args[3:] {
			k, v, _ := strings.Cut(h, ":")
			req.Header.Add(k, strings.TrimSpace(v))
		}
		p, err := a.do(req)
		if err != nil {
			return err
		}
		last.Reset()
		show(&last, p)
		if re.MatchString(last.String()) {
			return nil
		}
		return fmt.Errorf("%s gives nothing like %q but\n%s", args[1], args[2], last.String())
	})
	ts.Check(err)
	fmt.Fprint(ts.Stdout(), last.String())
}

// cmdTabs opens n tabs of one browser at the same moment: they share cookies,
// and each runs its own flow through the same form.
func cmdTabs(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 5, "tabs AGENT N URL EMAIL PASSWORD")
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	shared := theAgent(ts, args[0])
	pages := make([]*page, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			tab := &agent{client: shared.client}
			pages[i], errs[i] = tab.visit(fmt.Sprintf("%s?tab=%d", args[2], i), args[3], args[4])
		})
	}
	wg.Wait()
	ts.Check(errors.Join(errs...))
	for i, p := range pages {
		if want := fmt.Sprintf("tab=%d", i); p.StatusCode != 200 || p.Request.URL.RawQuery != want {
			var b strings.Builder
			show(&b, p)
			ts.Fatalf("tab %d ended at %s:\n%s", i, p.Request.URL, b.String())
		}
	}
	fmt.Fprintf(ts.Stdout(), "%d tabs signed in\n", n)
}

// socket is an open WebSocket whose end is noticed.
type socket struct {
	conn *websocket.Conn
	got  chan string
	end  chan error
}

func cmdWebSocket(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: websocket NAME open AGENT URL | say TEXT | gone [REGEXP]")
	}
	w := theWorld(ts)
	name, what, rest := args[0], args[1], args[2:]
	switch what {
	case "open":
		if len(rest) != 2 {
			ts.Fatalf("usage: websocket NAME open AGENT URL")
		}
		a := theAgent(ts, rest[0])
		tr := a.client.Transport.(*http.Transport).Clone()
		tr.ForceAttemptHTTP2, tr.TLSNextProto = false, map[string]func(string, *tls.Conn) http.RoundTripper{}
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
		client := &http.Client{Transport: tr, Jar: a.client.Jar, CheckRedirect: a.client.CheckRedirect}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		conn, res, err := websocket.Dial(ctx, rest[1], &websocket.DialOptions{HTTPClient: client})
		if neg {
			if err == nil {
				ts.Fatalf("the WebSocket was let through")
			}
			if res != nil {
				fmt.Fprintf(ts.Stdout(), "%s\n", res.Status)
			}
			return
		}
		ts.Check(err)
		s := &socket{conn: conn, got: make(chan string, 16), end: make(chan error, 1)}
		ts.Defer(func() { conn.CloseNow() })
		go func() {
			for {
				_, b, err := conn.Read(context.Background())
				if err != nil {
					s.end <- err
					return
				}
				s.got <- string(b)
			}
		}()
		w.mu.Lock()
		w.sockets[name] = s
		w.mu.Unlock()
	case "say":
		s := w.sockets[name]
		if s == nil || len(rest) != 1 {
			ts.Fatalf("usage: websocket NAME say TEXT, after websocket NAME open")
		}
		ts.Check(s.conn.Write(context.Background(), websocket.MessageText, []byte(rest[0])))
		select {
		case m := <-s.got:
			if m != rest[0] {
				ts.Fatalf("the echo of %q is %q", rest[0], m)
			}
		case err := <-s.end:
			ts.Fatalf("the WebSocket is gone: %v", err)
		case <-time.After(10 * time.Second):
			ts.Fatalf("no echo of %q", rest[0])
		}
	case "gone":
		s := w.sockets[name]
		if s == nil {
			ts.Fatalf("there is no WebSocket %s", name)
		}
		began := time.Now()
		select {
		case err := <-s.end:
			fmt.Fprintf(ts.Stdout(), "%v\n", err)
			ts.Logf("cut after %s: %v", time.Since(began).Round(time.Millisecond), err)
			if len(rest) > 0 && !regexp.MustCompile(rest[0]).MatchString(err.Error()) {
				ts.Fatalf("the WebSocket ended otherwise: %v", err)
			}
		case <-time.After(time.Second):
			ts.Fatalf("the WebSocket is still open after a second")
		}
	}
}

// cmdEvents reads server-sent events: the upstream makes the next one only
// when the last has arrived, so that a proxy that collects answers would hang.
func cmdEvents(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "events AGENT URL UPSTREAM")
	a := theAgent(ts, args[0])
	req, err := http.NewRequest("GET", args[1], nil)
	ts.Check(err)
	req.Header.Set("Accept", "text/event-stream")
	client := *a.client
	client.Timeout = 0
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	res, err := client.Do(req.WithContext(ctx))
	ts.Check(err)
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 5 {
		line, err := lines.ReadString('\n')
		for err == nil && strings.TrimSpace(line) == "" {
			line, err = lines.ReadString('\n')
		}
		ts.Check(err)
		if want := fmt.Sprintf("data: %d\n", i); line != want {
			ts.Fatalf("event %d is %q, status %s", i, line, res.Status)
		}
		next, err := http.Get("http://" + args[2] + "/events/next")
		ts.Check(err)
		next.Body.Close()
	}
	fmt.Fprintf(ts.Stdout(), "%s %s\n", res.Status, res.Header.Get("Content-Type"))
}

// cmdGRPC holds a conversation as a gRPC client does: a message up, its echo
// down before the next one, status in trailers.
func cmdGRPC(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "grpc AGENT URL")
	a := theAgent(ts, args[0])
	body, feed := io.Pipe()
	req, err := http.NewRequest("POST", args[1], body)
	ts.Check(err)
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	client := *a.client
	client.Timeout = 0
	res, err := client.Do(req.WithContext(ctx))
	ts.Check(err)
	defer res.Body.Close()
	if res.ProtoMajor != 2 || res.StatusCode != 200 || res.Header.Get("Grpc-Status") != "" {
		fmt.Fprintf(ts.Stdout(), "%s %s grpc-status %s %s\n", res.Proto, res.Status, res.Header.Get("Grpc-Status"), res.Header.Get("Grpc-Message"))
		return
	}
	for i := range 3 {
		text := fmt.Sprintf("message %d", i)
		frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(text)))
		_, err := feed.Write(append(frame, text...))
		ts.Check(err)
		got := make([]byte, len(frame)+len(text))
		_, err = io.ReadFull(res.Body, got)
		ts.Check(err)
		if string(got[5:]) != text {
			ts.Fatalf("the echo of %q is %q", text, got[5:])
		}
	}
	feed.Close()
	_, err = io.Copy(io.Discard, res.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s %s grpc-status %s\n", res.Proto, res.Status, res.Trailer.Get("Grpc-Status"))
}

// cmdRaw sends bytes, written with Go's escapes, and shows all that comes back
// until the other side ends the connection or is silent after an answer.
func cmdRaw(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "raw HOST ADDRESS BYTES...")
	raw, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.Join(args[2:], ""), `"`, `\"`) + `"`)
	ts.Check(err)
	var conn net.Conn
	if args[0] == "plain" {
		conn, err = net.Dial("tcp", args[1])
	} else {
		tr := theAgent(ts, "raw").client.Transport.(*http.Transport)
		conn, err = tls.Dial("tcp", args[1], &tls.Config{RootCAs: tr.TLSClientConfig.RootCAs, ServerName: args[0], NextProtos: []string{"http/1.1"}})
	}
	ts.Check(err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	// The other side may refuse before it has read everything.
	_, _ = io.WriteString(conn, raw)
	var got strings.Builder
	b := make([]byte, 64<<10)
	for {
		n, err := conn.Read(b)
		got.Write(b[:n])
		if err != nil {
			if got.Len() == 0 {
				fmt.Fprintf(&got, "no answer: %v", err)
			}
			break
		}
		// An answer has begun: what else there is comes soon.
		conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	}
	fmt.Fprintf(ts.Stdout(), "%s\n", got.String())
}

// cmdUpload sends a body of many megabytes from no memory.
func cmdUpload(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "upload AGENT URL MEGABYTES")
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	req, err := http.NewRequest("PUT", args[1], io.LimitReader(zeros{}, int64(n)<<20))
	ts.Check(err)
	req.ContentLength = int64(n) << 20
	p, err := theAgent(ts, args[0]).do(req)
	ts.Check(err)
	show(ts.Stdout(), p)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func cmdCertificates(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "certificates HOST...")
	names := make([]string, len(args))
	for i, a := range args {
		names[i] = "DNS:" + a
	}
	ts.Check(ts.Exec("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem", "-out", "cert.pem",
		"-days", "2", "-subj", "/CN=postern-test", "-addext", "subjectAltName="+strings.Join(names, ",")))
	ts.Setenv("CA", ts.MkAbs("cert.pem"))
	_, err := os.Stat(ts.MkAbs("key.pem"))
	ts.Check(err)
}

// cmdDocumented checks that each key of a list of keys is named in a page.
func cmdDocumented(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "documented KEYS PAGE")
	var keys []struct{ Name, Type, Doc, Status string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &keys))
	page := ts.ReadFile(args[1])
	acts := 0
	for _, k := range keys {
		switch {
		case k.Status != "acts" && k.Status != "accepted" && k.Status != "ignored":
			ts.Fatalf("the key %s has the status %q", k.Name, k.Status)
		case k.Type == "" || k.Doc == "":
			ts.Fatalf("the key %s has no type or no documentation", k.Name)
		}
		// A route's key stands under its own name in the routes' table.
		if name := k.Name[strings.LastIndex(k.Name, ".")+1:]; !strings.Contains(page, name) {
			ts.Fatalf("%s says nothing about %s", args[1], k.Name)
		}
		if k.Status == "acts" {
			acts++
		}
	}
	if acts < 50 {
		ts.Fatalf("only %d of %d keys act: the list is not the whole one", acts, len(keys))
	}
	ts.Logf("%d keys, %d act", len(keys), acts)
}

// cmdCodeBlock takes the first fenced block of a language out of a page.
func cmdCodeBlock(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "codeblock PAGE LANGUAGE FILE")
	_, rest, ok := strings.Cut(ts.ReadFile(args[0]), "```"+args[1]+"\n")
	block, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		ts.Fatalf("%s has no block of %s", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), []byte(block), 0o644))
}

// cmdDemo starts postern demo and takes accounts and CA from its ready file.
func cmdDemo(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "demo start DIRECTORY PORT")
	w := theWorld(ts)
	ready := ts.MkAbs("ready.json")
	os.Remove(ready)
	cmd := exec.Command(program, "demo", "--data-dir", ts.MkAbs(args[1]), "--listen", "127.0.0.1:"+args[2], "--ready-file", ready)
	p, err := startProcess(cmd)
	ts.Check(err)
	w.mu.Lock()
	w.procs["demo"] = p
	w.mu.Unlock()
	var r struct {
		CAFile   string `json:"ca_file"`
		Accounts []struct{ Email, Password string }
	}
	err = eventually(60*time.Second, func() error {
		select {
		case <-p.done:
			ts.Fatalf("the demo ended: %v\n%s", p.err, p.out.String())
		default:
		}
		b, err := os.ReadFile(ready)
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &r)
	})
	ts.Check(err)
	ts.Setenv("CA", r.CAFile)
	for _, a := range r.Accounts {
		name, _, _ := strings.Cut(strings.ToUpper(a.Email), "@")
		ts.Setenv(name, a.Email)
		ts.Setenv(name+"_PASSWORD", a.Password)
	}
}
