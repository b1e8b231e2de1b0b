package keys

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/config"
	"postern/internal/server/servertest"
)

// A pair shows a key of a block that judges upstreams. Two routes of one
// program differ in that key alone; each has hosts of its own, and what comes
// of the two must be what the pair says.
type pair struct {
	key           string
	both          settings // what both routes set
	with, without settings // what one of them sets
	hosts         []kind   // of each route; one that speaks HTTP if unset
	traffic       string   // path of requests that are sent all the time; "" for none
	more          settings // further settings of both routes
	see           func(o *observed) string
	want          [2]string // of the route with, and without
}

type settings map[string]any

// merged puts settings over others; nil is as if unset.
func (s settings) merged(over settings) settings {
	out := maps.Clone(s)
	if out == nil {
		out = settings{}
	}
	for k, v := range over {
		below, isBlock := v.(settings)
		have, _ := out[k].(settings)
		switch {
		case isBlock:
			out[k] = have.merged(below)
		default:
			out[k] = v
		}
	}
	return out
}

// observed is what is seen of one route.
type observed struct {
	hosts  []*patient
	states map[string]string // of hosts out of use, by address: state and reason
	log    string
}

// kind makes a host.
type kind func(t *testing.T, p *patient) (to string, stop func())

// patient is a host that is judged: it counts and keeps what it is asked.
type patient struct {
	addr   string
	mu     sync.Mutex
	conns  int
	checks int    // requests other than /app
	last   string // the last of them
	answer func(n int, w http.ResponseWriter, r *http.Request)
}

func (p *patient) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/app" {
		var status int
		fmt.Sscan(r.URL.RawQuery, &status)
		w.WriteHeader(max(status, 200))
		return
	}
	b, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	p.checks++
	n := p.checks
	p.last = fmt.Sprintf("%s %s %s %s %q a=%s agent=%s", r.Proto, r.Method, r.Host, r.URL.Path, b, r.Header.Get("X-A"), r.UserAgent())
	p.mu.Unlock()
	if p.answer != nil {
		p.answer(n, w, r)
	}
}

func (p *patient) seen() (checks, conns int, last string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.checks, p.conns, p.last
}

func (p *patient) serve(change func(s *httptest.Server)) (string, func()) {
	s := httptest.NewUnstartedServer(p)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.mu.Lock()
			p.conns++
			p.mu.Unlock()
		}
	}
	change(s)
	if s.URL == "" {
		s.Start()
	}
	return s.URL, func() { s.CloseClientConnections(); s.Close() }
}

// answers is a host that speaks HTTP/1.1 and answers checks by a function.
func answers(f func(n int, w http.ResponseWriter, r *http.Request)) kind {
	return func(t *testing.T, p *patient) (string, func()) {
		p.answer = f
		return p.serve(func(*httptest.Server) {})
	}
}

// statuses is a host that answers checks with these in turn; the last stays,
// or, after a 0, they begin anew.
func statuses(list ...int) kind {
	return answers(func(n int, w http.ResponseWriter, r *http.Request) {
		if last := len(list) - 1; list[last] == 0 {
			w.WriteHeader(list[(n-1)%last])
		} else {
			w.WriteHeader(list[min(n-1, last)])
		}
	})
}

// fails answers everything with a status, the application too.
func fails(status int) kind {
	return func(t *testing.T, p *patient) (string, func()) {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(status) }))
		return s.URL, s.Close
	}
}

// closed is a port that nobody listens on.
func closed(t *testing.T, p *patient) (string, func()) {
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	return "http://127.0.0.1:" + port, func() {}
}

// secure speaks TLS, HTTP/2 or HTTP/1.1.
func secure(t *testing.T, p *patient) (string, func()) {
	return p.serve(func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate("server")}}
		s.StartTLS()
	})
}

// rpc speaks HTTP/2 in the clear, and serves a gRPC health service that knows
// the service app, and no other.
func rpc(t *testing.T, p *patient) (string, func()) {
	p.answer = func(_ int, w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		if _, _, last := p.seen(); strings.Contains(last, "\\x03app") {
			w.Write([]byte{0, 0, 0, 0, 2, 8, 1})
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			return
		}
		w.Header().Set("Grpc-Status", "5")
	}
	to, stop := p.serve(func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
	})
	return strings.Replace(to, "http:", "h2c:", 1), stop
}

// pong answers PING with PONG, and nothing else.
func pong(t *testing.T, p *patient) (string, func()) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			p.checks++
			p.conns++
			p.mu.Unlock()
			go func() {
				defer c.Close()
				for b := make([]byte, 4); ; {
					if _, err := io.ReadFull(c, b); err != nil {
						return
					}
					if string(b) == "PING" {
						io.WriteString(c, "PONG")
					}
				}
			}()
		}
	}()
	return "http://" + ln.Addr().String(), func() { ln.Close() }
}

// judge runs one program with two routes for each pair, under the block.
func judge(t *testing.T, pairs []pair, block func(key string, s settings) settings) {
	var routes []settings
	views := make([][2]*observed, len(pairs))
	var mu sync.Mutex
	feed := map[int][]string{} // what is asked for all the time, by pair
	for i, pr := range pairs {
		for j, own := range []settings{pr.with, pr.without} {
			o := &observed{}
			views[i][j] = o
			var to []any
			kinds := pr.hosts
			if kinds == nil {
				kinds = []kind{statuses(200)}
			}
			for _, k := range kinds {
				p := &patient{}
				url, end := k(t, p)
				t.Cleanup(end)
				p.addr = url[strings.LastIndexByte(url, '/')+1:]
				o.hosts, to = append(o.hosts, p), append(to, url)
			}
			from := fmt.Sprintf("https://r%d-%d.localhost", i, j)
			route := settings{"from": from, "to": to, "allow_public_unauthenticated_access": true, "tls_skip_verify": true}
			routes = append(routes, route.merged(pr.more).merged(block(pr.key, pr.both.merged(own))))
			if pr.traffic != "" {
				feed[i] = append(feed[i], from+pr.traffic)
			}
		}
	}
	b, err := json.Marshal(map[string]any{"routes": routes})
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSuffix(strings.TrimPrefix(string(b), "{"), "}")
	p := servertest.Start(t, strings.Replace(text, `"routes":`, "routes: ", 1)+"\n")
	agent := p.Agent()
	stop := make(chan struct{})
	var sender sync.WaitGroup
	defer sender.Wait()
	defer close(stop)
	sender.Go(func() {
		for {
			mu.Lock()
			targets := slices.Concat(slices.Collect(maps.Values(feed))...)
			mu.Unlock()
			for _, target := range targets {
				select {
				case <-stop:
					return
				default:
				}
				agent.Request("GET", target)
			}
			if len(targets) == 0 {
				return
			}
		}
	})
	open := map[int]error{} // pairs that are not what they should be yet
	for i, pr := range pairs {
		open[i] = errors.New("not looked at")
		if pr.want[0] == pr.want[1] {
			t.Errorf("%s: it comes out the same: this shows nothing", pr.key)
		}
	}
	for end := time.Now().Add(3 * time.Minute); len(open) > 0 && time.Now().Before(end); {
		looked := time.Now()
		states := map[string]string{}
		status := p.Status()
		for _, u := range status.Upstreams {
			states[u.Address] = u.State + " " + u.Reason
		}
		if status.UpstreamsOut > len(status.Upstreams) {
			t.Fatal("more hosts are out of use than the status lists")
		}
		text := p.Log.String()
		for i := range open {
			if open[i] = pairs[i].holds(views[i], states, text); open[i] == nil {
				delete(open, i)
				mu.Lock()
				delete(feed, i)
				mu.Unlock()
			}
		}
		// A busy machine has to judge, and not only to be looked at.
		time.Sleep(max(10*time.Millisecond, 3*time.Since(looked)))
	}
	for i, err := range open {
		t.Errorf("%s: %v", pairs[i].key, err)
	}
	if t.Failed() && testing.Verbose() {
		t.Logf("%s", p.Log)
	}
}

// holds compares what is seen of both routes with what should be.
func (p pair) holds(views [2]*observed, states map[string]string, log string) error {
	for j, o := range views {
		o.states, o.log = states, log
		if got := p.see(o); got != p.want[j] {
			return fmt.Errorf("%s the setting it is %q, want %q", []string{"with", "without"}[j], got, p.want[j])
		}
	}
	return nil
}

// health is whether the first host is healthy.
func (o *observed) health() string {
	s := o.states[o.hosts[0].addr]
	if strings.Contains(s, "not checked yet") {
		return "unchecked"
	}
	if s == "" {
		return "healthy"
	}
	return strings.Fields(s)[0]
}

// often is how often the first host was checked.
func (o *observed) often() string {
	switch n, _, _ := o.hosts[0].seen(); n {
	case 0, 1:
		return fmt.Sprint(n)
	case 2:
		return "2"
	}
	return "many"
}

// lastly is a part of the last check.
func lastly(part string) func(o *observed) string {
	return func(o *observed) string {
		if _, _, last := o.hosts[0].seen(); last != "" {
			return fmt.Sprint(strings.Contains(last, part))
		}
		return "none"
	}
}

// lines counts the lines of the log about the first host with a message.
func (o *observed) lines(message string) int {
	n := 0
	for line := range strings.Lines(o.log) {
		if strings.Contains(line, message) && strings.Contains(line, o.hosts[0].addr) {
			n++
		}
	}
	return n
}

// covers fails the test for keys of a block that no pair shows.
func covers(t *testing.T, block string, pairs []pair) {
	shown := map[string]bool{}
	for _, p := range pairs {
		shown[p.key] = true
	}
	for _, k := range config.Keys() {
		if name, ok := strings.CutPrefix(k.Name, block); ok && k.Status == "acts" {
			if name = strings.TrimPrefix(strings.TrimPrefix(name, "[]"), "."); !shown[name] {
				t.Errorf("nothing shows %s", k.Name)
			}
			delete(shown, name)
		}
	}
	for name := range shown {
		t.Errorf("%q is no acting key of %s", name, block)
	}
}

// TestHealthCheckKeys shows every key of health_checks.
func TestHealthCheckKeys(t *testing.T) {
	t.Parallel()
	const (
		quick, never = "0.030s", "3600s"
		http_, tcp   = "http_health_check", "tcp_health_check"
	)
	hc := func(s settings) settings { return settings{http_: s} }
	byTCP := func(s settings) settings { return settings{http_: nil, tcp: s, "timeout": "0.2s"} }
	byRPC := func(s settings) settings { return settings{http_: nil, "grpc_health_check": s} }
	send := func(kind, what string) settings { return settings{"send": settings{kind: what}} }
	receive := func(kind, what string) settings { return settings{"receive": []any{settings{kind: what}}} }
	ranges := func(from, to int) []any { return []any{settings{"start": from, "end": to}} }
	post := hc(settings{"method": "POST"})
	page := answers(func(_ int, w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 2000)+"PONG")
	})
	slow := answers(func(_ int, w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(300 * time.Millisecond):
		case <-r.Context().Done():
		}
	})
	other := &patient{}
	otherURL, stop := statuses(200)(t, other)
	t.Cleanup(stop)
	u, _ := url.Parse(otherURL)
	otherPort, _ := strconv.Atoi(u.Port())
	header := func(name, value string) []any {
		return []any{settings{"header": settings{"key": name, "value": value}}}
	}
	health := (*observed).health
	often := (*observed).often
	yes := [2]string{"true", "false"}
	good, bad := [2]string{"healthy", "unhealthy"}, [2]string{"unhealthy", "healthy"}
	atTraffic := settings{"no_traffic_interval": nil}
	flips := func(o *observed) string { // how often it became healthy, or not
		n, _, _ := o.hosts[0].seen()
		return map[bool]string{true: "flips", false: "stays"}[o.lines("upstream host is healthy")+o.lines(`upstream host is unhealthy"`) > 2 || n < 9]
	}
	pairs := []pair{
		{key: "", hosts: []kind{statuses(500)}, without: settings{"none": true}, see: health, want: bad},
		{key: "timeout", hosts: []kind{slow}, with: settings{"timeout": "0.050s"}, see: health, want: bad},
		{key: "interval", both: atTraffic, with: settings{"interval": quick}, without: settings{"interval": never}, traffic: "/app", see: often, want: [2]string{"many", "1"}},
		{key: "healthy_threshold", hosts: []kind{statuses(200, 500, 0)}, with: settings{"healthy_threshold": 2}, without: settings{"healthy_threshold": 1},
			see: func(o *observed) string {
				n, _, _ := o.hosts[0].seen()
				return map[bool]string{true: "flips", false: "stays"}[o.lines(`"upstream host is healthy"`) > 1 || n < 9]
			}, want: [2]string{"stays", "flips"}},
		{key: "unhealthy_threshold", hosts: []kind{statuses(200, 500, 500, 0)}, both: hc(settings{"retriable_statuses": ranges(500, 600)}),
			with: settings{"unhealthy_threshold": 3}, see: flips, want: [2]string{"stays", "flips"}},
		{key: "initial_jitter", with: settings{"initial_jitter": never}, see: often, want: [2]string{"0", "many"}},
		{key: "interval_jitter", with: settings{"interval_jitter": "360000s"}, see: often, want: [2]string{"1", "many"}},
		{key: "interval_jitter_percent", with: settings{"interval_jitter_percent": 1_000_000_000}, see: often, want: [2]string{"1", "many"}},
		{key: "reuse_connection", with: settings{"reuse_connection": false}, see: func(o *observed) string {
			if checks, conns, _ := o.hosts[0].seen(); checks >= 3 {
				return fmt.Sprint(conns > 1)
			}
			return ""
		}, want: yes},
		{key: "no_traffic_interval", both: atTraffic, with: settings{"no_traffic_interval": quick}, see: often, want: [2]string{"many", "1"}},
		{key: "no_traffic_healthy_interval", with: settings{"no_traffic_healthy_interval": never}, see: often, want: [2]string{"1", "many"}},
		{key: "unhealthy_interval", hosts: []kind{statuses(500)}, both: atTraffic.merged(settings{"interval": never}), with: settings{"unhealthy_interval": quick},
			traffic: "/app", see: often, want: [2]string{"many", "1"}},
		{key: "unhealthy_edge_interval", hosts: []kind{statuses(200, 500)}, both: atTraffic.merged(settings{"unhealthy_interval": never}),
			with: settings{"unhealthy_edge_interval": quick}, traffic: "/app", see: often, want: [2]string{"many", "2"}},
		{key: "healthy_edge_interval", both: atTraffic.merged(settings{"interval": never}), with: settings{"healthy_edge_interval": quick},
			traffic: "/app", see: often, want: [2]string{"2", "1"}},
		{key: "always_log_health_check_failures", hosts: []kind{statuses(500)}, with: settings{"always_log_health_check_failures": true},
			see: logs("upstream health check failed"), want: yes},
		{key: "always_log_health_check_success", with: settings{"always_log_health_check_success": true},
			see: logs("upstream health check passed"), want: yes},
		{key: "alt_port", hosts: []kind{closed}, with: settings{"alt_port": otherPort}, see: health, want: good},

		{key: http_, hosts: []kind{statuses(500)}, without: byTCP(settings{}), see: health, want: bad},
		{key: http_ + ".host", with: hc(settings{"host": "asked.test"}), see: lastly(" asked.test "), want: yes},
		{key: http_ + ".path", with: hc(settings{"path": "/deep"}), see: lastly("/deep"), want: yes},
		{key: http_ + ".send", both: post, with: hc(send("text", "50494e47")), see: lastly("PING"), want: yes},
		{key: http_ + ".send.text", both: post, with: hc(send("text", "50494e47")), without: hc(send("text", "51")), see: lastly("PING"), want: yes},
		{key: http_ + ".send.binary", both: post, with: hc(send("binary", "UElORw==")), without: hc(send("binary", "UQ==")), see: lastly("PING"), want: yes},
		{key: http_ + ".receive", hosts: []kind{page}, with: hc(receive("text", "50494e47")), see: health, want: bad},
		{key: http_ + ".receive[].text", hosts: []kind{page}, with: hc(receive("text", "50494e47")), without: hc(receive("text", "78")), see: health, want: bad},
		{key: http_ + ".receive[].binary", hosts: []kind{page}, with: hc(receive("binary", "UElORw==")), without: hc(receive("binary", "eA==")), see: health, want: bad},
		{key: http_ + ".response_buffer_size", hosts: []kind{page}, both: hc(receive("text", "504f4e47")), with: hc(settings{"response_buffer_size": 4096}), see: health, want: good},
		{key: http_ + ".request_headers_to_remove", with: hc(settings{"request_headers_to_remove": []any{"User-Agent"}}), see: lastly("agent=Postern"), want: [2]string{"false", "true"}},
		{key: http_ + ".request_headers_to_add", with: hc(settings{"request_headers_to_add": header("X-A", "added")}), see: lastly("a=added"), want: yes},
		{key: http_ + ".method", with: hc(settings{"method": "OPTIONS"}), see: lastly("OPTIONS"), want: yes},
		{key: http_ + ".expected_statuses", hosts: []kind{statuses(204)}, with: hc(settings{"expected_statuses": ranges(200, 300)}), see: health, want: good},
		{key: http_ + ".expected_statuses[].start", hosts: []kind{statuses(204)}, with: hc(settings{"expected_statuses": ranges(200, 300)}),
			without: hc(settings{"expected_statuses": ranges(205, 300)}), see: health, want: good},
		{key: http_ + ".expected_statuses[].end", hosts: []kind{statuses(204)}, with: hc(settings{"expected_statuses": ranges(200, 300)}),
			without: hc(settings{"expected_statuses": ranges(200, 204)}), see: health, want: good},
		{key: http_ + ".retriable_statuses", hosts: []kind{statuses(200, 500)}, both: settings{"unhealthy_threshold": 1_000_000},
			with: hc(settings{"retriable_statuses": ranges(500, 501)}), see: health, want: good},
		{key: http_ + ".retriable_statuses[].start", hosts: []kind{statuses(200, 500)}, both: settings{"unhealthy_threshold": 1_000_000},
			with: hc(settings{"retriable_statuses": ranges(500, 600)}), without: hc(settings{"retriable_statuses": ranges(501, 600)}), see: health, want: good},
		{key: http_ + ".retriable_statuses[].end", hosts: []kind{statuses(200, 500)}, both: settings{"unhealthy_threshold": 1_000_000},
			with: hc(settings{"retriable_statuses": ranges(400, 501)}), without: hc(settings{"retriable_statuses": ranges(400, 500)}), see: health, want: good},
		{key: http_ + ".codec_client_type", hosts: []kind{secure}, with: hc(settings{"codec_client_type": "HTTP2"}), see: lastly("HTTP/2.0"), want: yes},

		{key: tcp, hosts: []kind{pong}, with: byTCP(settings{}), without: settings{"timeout": "0.1s"}, see: health, want: good},
		{key: tcp + ".send", hosts: []kind{pong}, both: byTCP(receive("text", "504f4e47")), with: settings{tcp: send("text", "50494e47")}, see: health, want: good},
		{key: tcp + ".send.text", hosts: []kind{pong}, both: byTCP(receive("text", "504f4e47")), with: settings{tcp: send("text", "50494e47")},
			without: settings{tcp: send("text", "51494e47")}, see: health, want: good},
		{key: tcp + ".send.binary", hosts: []kind{pong}, both: byTCP(receive("text", "504f4e47")), with: settings{tcp: send("binary", "UElORw==")},
			without: settings{tcp: send("binary", "UUlORw==")}, see: health, want: good},
		{key: tcp + ".receive", hosts: []kind{pong}, both: byTCP(send("text", "50494e47")), with: settings{tcp: receive("text", "50494e47")}, see: health, want: bad},
		{key: tcp + ".receive[].text", hosts: []kind{pong}, both: byTCP(send("text", "50494e47")), with: settings{tcp: receive("text", "50494e47")},
			without: settings{tcp: receive("text", "504f4e47")}, see: health, want: bad},
		{key: tcp + ".receive[].binary", hosts: []kind{pong}, both: byTCP(send("text", "50494e47")), with: settings{tcp: receive("binary", "UElORw==")},
			without: settings{tcp: receive("binary", "UE9ORw==")}, see: health, want: bad},

		{key: "grpc_health_check", hosts: []kind{rpc}, with: byRPC(settings{"service_name": "app"}), without: hc(settings{"receive": receive("text", "ff")["receive"]}), see: health, want: good},
		{key: "grpc_health_check.service_name", hosts: []kind{rpc}, with: byRPC(settings{"service_name": "app"}), without: byRPC(settings{"service_name": "other"}), see: health, want: good},
		{key: "grpc_health_check.authority", hosts: []kind{rpc}, both: byRPC(settings{}), with: settings{"grpc_health_check": settings{"authority": "asked.test"}}, see: lastly(" asked.test "), want: yes},
		{key: "grpc_health_check.initial_metadata", hosts: []kind{rpc}, both: byRPC(settings{}), with: settings{"grpc_health_check": settings{"initial_metadata": header("X-A", "added")}}, see: lastly("a=added"), want: yes},
	}
	covers(t, "routes[].health_checks", pairs)
	base := settings{"timeout": "5s", "interval": quick, "no_traffic_interval": quick, "healthy_threshold": 1, "unhealthy_threshold": 1,
		http_: settings{"path": "/check"}}
	judge(t, pairs, func(_ string, s settings) settings {
		if s["none"] != nil {
			return nil
		}
		return settings{"health_checks": []any{base.merged(s)}}
	})
}

// logs tells whether the log ever says something about the first host, once
// the host was checked some times.
func logs(message string) func(o *observed) string {
	return func(o *observed) string {
		if o.often() != "many" {
			return ""
		}
		return fmt.Sprint(o.lines(message) > 0)
	}
}

// TestOutlierKeys shows every key of outlier_detection.
func TestOutlierKeys(t *testing.T) {
	t.Parallel()
	const never = "3600s"
	ejected := func(o *observed) string { // and kept out, since
		return fmt.Sprint(o.lines("upstream host is ejected") > 0)
	}
	returned := func(o *observed) string {
		return fmt.Sprint(o.lines("upstream host is ejected") > 0, o.lines("upstream host is no longer ejected") > 0)
	}
	yes, no := [2]string{"true", "false"}, [2]string{"false", "true"}
	back, out := [2]string{"true true", "true false"}, [2]string{"true false", "true true"}
	three := []kind{fails(500), statuses(200), statuses(200)}
	threeLocal := []kind{closed, statuses(200), statuses(200)}
	rates := settings{"enforcing_consecutive_5xx": 0, "success_rate_minimum_hosts": 3, "success_rate_request_volume": 1, "success_rate_stdev_factor": 1000, "interval": "1s",
		"failure_percentage_minimum_hosts": 3, "failure_percentage_request_volume": 1, "enforcing_failure_percentage": 0}
	shares := rates.merged(settings{"enforcing_success_rate": 0, "enforcing_failure_percentage": 100})
	split := settings{"split_external_local_origin_errors": true}
	local := rates.merged(split).merged(settings{"enforcing_consecutive_local_origin_failure": 0})
	gateway := settings{"enforcing_consecutive_5xx": 0, "enforcing_consecutive_gateway_failure": 100}
	soon := settings{"base_ejection_time": "0.010s", "interval": "0.050s"}
	one, many := []kind{statuses(200)}, 1_000_000
	checks := settings{"health_checks": []any{settings{"timeout": "5s", "interval": "0.050s", "healthy_threshold": 1, "unhealthy_threshold": 1, "http_health_check": settings{"path": "/check"}}}}
	pairs := []pair{
		{key: "", hosts: one, traffic: "/app?500", without: settings{"none": true}, see: ejected, want: yes},
		{key: "consecutive_5xx", hosts: one, traffic: "/app?500", with: settings{"consecutive_5xx": many}, see: ejected, want: no},
		{key: "interval", hosts: one, traffic: "/app?500", both: soon, with: settings{"interval": never}, see: returned, want: out},
		{key: "base_ejection_time", hosts: one, traffic: "/app?500", both: soon, with: settings{"base_ejection_time": never}, see: returned, want: out},
		{key: "max_ejection_time", hosts: one, traffic: "/app?500", both: settings{"interval": "0.050s"}, with: settings{"max_ejection_time": "0.010s"}, see: returned, want: back},
		{key: "max_ejection_time_jitter", hosts: one, traffic: "/app?500", both: soon, with: settings{"max_ejection_time_jitter": "360000s"}, see: returned, want: out},
		{key: "max_ejection_percent", hosts: one, traffic: "/app?500", with: settings{"max_ejection_percent": 99}, see: ejected, want: no},
		{key: "always_eject_one_host", hosts: one, traffic: "/app?500", both: settings{"max_ejection_percent": 10}, with: settings{"always_eject_one_host": true}, see: ejected, want: yes},
		{key: "enforcing_consecutive_5xx", hosts: one, traffic: "/app?500", with: settings{"enforcing_consecutive_5xx": 0}, see: ejected, want: no},
		{key: "consecutive_gateway_failure", hosts: one, traffic: "/app?503", both: gateway, with: settings{"consecutive_gateway_failure": many}, see: ejected, want: no},
		{key: "enforcing_consecutive_gateway_failure", hosts: one, traffic: "/app?503", both: settings{"enforcing_consecutive_5xx": 0},
			with: settings{"enforcing_consecutive_gateway_failure": 100}, see: ejected, want: yes},
		{key: "split_external_local_origin_errors", hosts: []kind{closed}, traffic: "/app", both: settings{"enforcing_consecutive_local_origin_failure": 0}, with: split, see: ejected, want: no},
		{key: "consecutive_local_origin_failure", hosts: []kind{closed}, traffic: "/app", both: split, with: settings{"consecutive_local_origin_failure": many}, see: ejected, want: no},
		{key: "enforcing_consecutive_local_origin_failure", hosts: []kind{closed}, traffic: "/app", both: split, with: settings{"enforcing_consecutive_local_origin_failure": 0}, see: ejected, want: no},

		{key: "enforcing_success_rate", hosts: three, traffic: "/app", both: rates, with: settings{"enforcing_success_rate": 0}, see: ejected, want: no},
		{key: "success_rate_minimum_hosts", hosts: three, traffic: "/app", both: rates, with: settings{"success_rate_minimum_hosts": 4}, see: ejected, want: no},
		{key: "success_rate_request_volume", hosts: three, traffic: "/app", both: rates, with: settings{"success_rate_request_volume": many}, see: ejected, want: no},
		{key: "success_rate_stdev_factor", hosts: three, traffic: "/app", both: rates, with: settings{"success_rate_stdev_factor": 1900}, see: ejected, want: no},
		{key: "enforcing_failure_percentage", hosts: three, traffic: "/app", both: shares, with: settings{"enforcing_failure_percentage": 0}, see: ejected, want: no},
		{key: "failure_percentage_threshold", hosts: []kind{statuses(200), fails(500), fails(500)}, traffic: "/app", both: shares, with: settings{"failure_percentage_threshold": 0}, see: ejected, want: yes},
		{key: "failure_percentage_minimum_hosts", hosts: three, traffic: "/app", both: shares, with: settings{"failure_percentage_minimum_hosts": 4}, see: ejected, want: no},
		{key: "failure_percentage_request_volume", hosts: three, traffic: "/app", both: shares, with: settings{"failure_percentage_request_volume": many}, see: ejected, want: no},
		{key: "enforcing_local_origin_success_rate", hosts: threeLocal, traffic: "/app", both: local, with: settings{"enforcing_local_origin_success_rate": 0}, see: ejected, want: no},
		{key: "enforcing_failure_percentage_local_origin", hosts: threeLocal, traffic: "/app", both: local.merged(settings{"enforcing_local_origin_success_rate": 0}),
			with: settings{"enforcing_failure_percentage_local_origin": 100}, see: ejected, want: yes},
		{key: "successful_active_health_check_uneject_host", hosts: one, traffic: "/app?500", more: checks,
			with: settings{"successful_active_health_check_uneject_host": false}, see: returned, want: out},
	}
	covers(t, "routes[].outlier_detection", pairs)
	base := settings{"max_ejection_percent": 100, "interval": "0.400s", "base_ejection_time": never, "max_ejection_time": nil}
	judge(t, pairs, func(_ string, s settings) settings {
		if s["none"] != nil {
			return nil
		}
		return settings{"outlier_detection": base.merged(s)}
	})
}
