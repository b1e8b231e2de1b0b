package server_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// Environment of an upstream process.
const (
	faultyAddr   = "POSTERN_TEST_UPSTREAM"      // where it listens
	faultyDeeds  = "POSTERN_TEST_UPSTREAM_LOG"  // a line for each request that it took
	faultyFaults = "POSTERN_TEST_UPSTREAM_EVIL" // a file; while it exists one request in four is mistreated
)

// TestUpstreamProcess is no test: it is the upstream of TestUpstreamFaults,
// which starts this binary again with the variables above.
func TestUpstreamProcess(t *testing.T) {
	addr := os.Getenv(faultyAddr)
	if addr == "" {
		return
	}
	var ln net.Listener
	for ln == nil { // the one before it may not be gone yet
		ln, _ = net.Listen("tcp", addr)
	}
	deeds, err := os.OpenFile(os.Getenv(faultyDeeds), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go mistreat(c.(*net.TCPConn), deeds)
	}
}

// mistreat answers requests with their nonce and body, and now and then in one
// of the ways in which upstreams die.
func mistreat(c *net.TCPConn, deeds *os.File) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		nonce := req.URL.Query().Get("nonce")
		fmt.Fprintf(deeds, "%s %s\n", req.Method, nonce)
		sent, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		body := answerTo(nonce, string(sent))
		head := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", len(body))
		way := -1
		if _, err := os.Stat(os.Getenv(faultyFaults)); err == nil && req.URL.Path != "/check" {
			way = rand.IntN(40)
		}
		switch way {
		case 0: // reset before an answer
			c.SetLinger(0)
			return
		case 1: // reset in the middle
			io.WriteString(c, head+body[:len(body)/2])
			c.SetLinger(0)
			return
		case 2: // half-closed before an answer
			c.CloseWrite()
			io.Copy(io.Discard, c)
			return
		case 3: // cut short
			io.WriteString(c, head+body[:len(body)-1])
			return
		case 4: // no HTTP at all
			io.WriteString(c, "SSH-2.0-garbage\r\n")
			return
		case 5: // a second answer that nobody asked for, with the nonce of nobody
			io.WriteString(c, head+body+"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsmuggled!")
			continue
		case 6: // more bytes than were announced
			io.WriteString(c, head+body+"and more")
			continue
		case 7: // silence
			time.Sleep(3 * time.Second)
			return
		case 8: // slow
			for _, b := range []byte(head + body[:40]) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(2 * time.Millisecond)
			}
			io.WriteString(c, body[40:])
			continue
		case 9: // closed after a good answer, without a word
			io.WriteString(c, head+body)
			return
		}
		if _, err := io.WriteString(c, head+body); err != nil {
			return
		}
	}
}

func answerTo(nonce, body string) string {
	return strings.Repeat(nonce+" ", 200) + body
}

// upstreamProcess is one upstream and its life.
type upstreamProcess struct {
	addr string
	env  []string
	cmd  *exec.Cmd
}

func (u *upstreamProcess) start(t *testing.T) {
	u.cmd = exec.Command(os.Args[0], "-test.run=^TestUpstreamProcess$")
	u.cmd.Env = append(os.Environ(), u.env...)
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

func (u *upstreamProcess) kill() {
	u.cmd.Process.Kill()
	u.cmd.Wait()
}

// TestUpstreamFaults mistreats three upstream processes under load: they are
// killed, stopped and continued, and answer with resets, silence, half-closed
// connections and garbage. No request hangs, no answer is another's, nothing
// but a GET is taken twice; and once they are well, all serve again.
func TestUpstreamFaults(t *testing.T) {
	dir := t.TempDir()
	evil := filepath.Join(dir, "evil")
	if err := os.WriteFile(evil, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var ups []*upstreamProcess
	var to []string
	for i := range 3 {
		port, err := servertest.Port()
		if err != nil {
			t.Fatal(err)
		}
		u := &upstreamProcess{addr: "127.0.0.1:" + port}
		u.env = []string{faultyAddr + "=" + u.addr, faultyDeeds + "=" + filepath.Join(dir, fmt.Sprint("deeds", i)), faultyFaults + "=" + evil}
		u.start(t)
		t.Cleanup(u.kill)
		ups = append(ups, u)
		to = append(to, "'http://"+u.addr+"'")
	}
	p := servertest.Start(t, `
routes:
  - from: https://app.localhost
    to: [`+strings.Join(to, ", ")+`]
    allow_public_unauthenticated_access: true
    timeout: 2s
    outlier_detection: {interval: 0.1s, base_ejection_time: 0.2s, max_ejection_time: 0.4s, max_ejection_percent: 40, consecutive_5xx: 3}
    health_checks:
      - {timeout: 0.3s, interval: 0.1s, unhealthy_interval: 0.1s, no_traffic_interval: 0.1s, healthy_threshold: 1, unhealthy_threshold: 2, http_health_check: {path: /check}}
`)
	begin := make(chan struct{})
	over := make(chan struct{})
	var good, refused, broken atomic.Int64
	var problems sync.Map
	problem := func(format string, args ...any) { problems.Store(fmt.Sprintf(format, args...), true) }
	var clients sync.WaitGroup
	for i := range 24 {
		agent := p.Agent()
		if i%2 == 0 {
			tr := agent.Client.Transport.(*http.Transport)
			tr.ForceAttemptHTTP2, tr.TLSClientConfig.NextProtos = false, []string{"http/1.1"}
		}
		agent.Client.Timeout = 15 * time.Second
		clients.Go(func() {
			<-begin
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				nonce := fmt.Sprintf("n%dx%d", i, n)
				method, sent := "GET", ""
				if n%3 == 0 {
					method, sent = "POST", strings.Repeat("body of "+nonce+" ", 1+n%50)
				}
				req, err := http.NewRequest(method, "https://app.localhost/?nonce="+nonce, strings.NewReader(sent))
				if err != nil {
					problem("%v", err)
					return
				}
				began := time.Now()
				res, err := agent.Client.Do(req)
				var got []byte
				status := 0
				if err == nil {
					status = res.StatusCode
					got, err = io.ReadAll(res.Body)
					res.Body.Close()
				}
				if took := time.Since(began); took > 10*time.Second {
					problem("a request took %v (%d %v)", took.Round(time.Second), status, err)
				}
				want := answerTo(nonce, sent)
				switch {
				case status == 0 || status == 200 && err != nil:
					broken.Add(1)
					if !strings.HasPrefix(want, string(got)) {
						problem("a broken answer to %s holds %.60q", nonce, got)
					}
				case status == 200:
					good.Add(1)
					if string(got) != want {
						problem("the answer to %s is %.60q", nonce, got)
					}
				case status >= 502 && status <= 504:
					refused.Add(1)
				default:
					problem("status %d: %.80q", status, got)
				}
			}
		})
	}
	close(begin)
	for end := time.Now().Add(faultsFor); time.Now().Before(end); {
		u := ups[rand.IntN(len(ups))]
		if rand.IntN(2) == 0 {
			u.kill()
			time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			u.start(t)
		} else {
			u.cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(rand.IntN(600)) * time.Millisecond)
			u.cmd.Process.Signal(syscall.SIGCONT)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
	}
	close(over)
	clients.Wait()
	problems.Range(func(what, _ any) bool { t.Error(what); return true })
	t.Logf("%d good, %d refused, %d broken off", good.Load(), refused.Load(), broken.Load())
	if good.Load() < refused.Load()+broken.Load() {
		t.Errorf("only %d of %d were served", good.Load(), good.Load()+refused.Load()+broken.Load())
	}
	for _, word := range []string{"upstream host is ejected", "upstream host is unhealthy"} {
		if !strings.Contains(p.Log.String(), word) {
			t.Errorf("the log never says %q", word)
		}
	}

	// Well again: after a while, all three serve and nothing fails.
	if err := os.Remove(evil); err != nil {
		t.Fatal(err)
	}
	taken := func() (all [3]int) {
		for i := range ups {
			b, _ := os.ReadFile(filepath.Join(dir, fmt.Sprint("deeds", i)))
			all[i] = bytes.Count(b, []byte("GET well"))
		}
		return all
	}
	n := 0
	if err := servertest.Eventually(func() error {
		before := taken()
		for range 12 {
			n++
			page, err := p.Agent().Request("GET", fmt.Sprintf("https://app.localhost/?nonce=well%d", n))
			if err != nil || page.StatusCode != 200 {
				return fmt.Errorf("%v, %v", page, err)
			}
		}
		for i, now := range taken() {
			if now == before[i] {
				return fmt.Errorf("upstream %d has not come back", i)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	times := map[string]int{}
	for i := range ups {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("deeds", i)))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(b), "\n") {
			if times[line]++; times[line] > 1 && strings.HasPrefix(line, "POST") {
				t.Errorf("taken twice: %s", line)
			}
		}
	}
}

// TestFullUpstream: what a full or dead upstream gives the client is a clear
// 503 in the client's own words, with the reason in the access log.
func TestFullUpstream(t *testing.T) {
	p := servertest.Start(t, `
routes:
  - from: https://full.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    circuit_breaker_thresholds: {max_requests: 0}
  - from: https://sick.localhost
    to: @APP@
    allow_public_unauthenticated_access: true
    healthy_panic_threshold: 0
    health_checks: [{timeout: 1s, interval: 60s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: '/?status=500'}}]
`)
	for host, details := range map[string]string{"full": "upstream_reset_before_response_started{overflow}", "sick": "no_healthy_upstream"} {
		for _, tc := range []struct{ kind, header, contentType, holds string }{
			{"page", "Accept: text/html", "text/html", "<html"},
			{"json", "Accept: application/json", "application/json", `"status":503`},
			{"grpc", "Content-Type: application/grpc", "application/grpc", ""},
		} {
			method := "GET"
			if tc.kind == "grpc" {
				method = "POST"
			}
			page, err := p.Agent().Request(method, "https://"+host+".localhost/", tc.header)
			if err != nil {
				t.Fatal(err)
			}
			compact := strings.ReplaceAll(page.Body, " ", "")
			if page.StatusCode != 503 && tc.kind != "grpc" || !strings.HasPrefix(page.Header.Get("Content-Type"), tc.contentType) || !strings.Contains(compact, tc.holds) {
				t.Errorf("%s, %s: %d %s %.200s", host, tc.kind, page.StatusCode, page.Header.Get("Content-Type"), page.Body)
			}
			if tc.kind == "grpc" && page.Header.Get("Grpc-Status") != "14" && page.Trailer.Get("Grpc-Status") != "14" {
				t.Errorf("%s: gRPC status %q", host, page.Header.Get("Grpc-Status"))
			}
		}
		if err := p.WaitLog(`"response-code-details":"` + strings.NewReplacer("{", `\{`, "}", `\}`).Replace(details) + `"`); err != nil {
			t.Error(err)
		}
	}
	if n := p.App.Requests.Load(); n == 0 {
		t.Error("the health check never came")
	}
}
