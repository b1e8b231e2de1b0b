package keys

import (
	"errors"
	"fmt"
	"io"
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

// nameServer is dnsmasq behind a relay on the same port for UDP and TCP, which
// can lose queries, hold answers back, and sees from where is asked.
type nameServer struct {
	hosts  string // file of addresses and names
	daemon *exec.Cmd

	mu    sync.Mutex
	ports map[string]bool // that asked over UDP
	asked atomic.Int64    // over UDP
}

type fault struct {
	lose    int64         // the first queries get no answer
	loseAll bool          // nor any other
	delay   time.Duration // before an answer
}

// startNames starts a name server, and an application on 127.0.0.1 and another
// on ::1 with the same port. @DNS@ is the server, @PORT@ the port.
func startNames(t *testing.T, o *servertest.Options, records string, f fault) *nameServer {
	s := &nameServer{hosts: filepath.Join(t.TempDir(), "hosts"), ports: map[string]bool{}}
	s.write(t, records)
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	s.daemon = exec.Command("/usr/sbin/dnsmasq", "-k", "-C", "/dev/null", "-p", port, "--listen-address=127.0.0.1", "--bind-interfaces",
		"--no-resolv", "--no-hosts", "--addn-hosts="+s.hosts, "--local-ttl=3600", "--auth-ttl=3600", "--local=/test/", "--user=", "--pid-file=")
	if err := s.daemon.Start(); err != nil {
		t.Fatalf("dnsmasq: %v; make deps installs it", err)
	}
	t.Cleanup(func() { s.daemon.Process.Kill(); s.daemon.Wait() })
	real := "127.0.0.1:" + port
	if err := servertest.Eventually(func() error {
		c, err := net.Dial("tcp", real)
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if port, err = servertest.Port(); err != nil {
		t.Fatal(err)
	}
	o.Vars["DNS"] = "127.0.0.1:" + port
	s.relay(t, o.Vars["DNS"], real, f)

	if port, err = servertest.Port(); err != nil {
		t.Fatal(err)
	}
	o.Vars["PORT"] = port
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			from, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "at %s from %s", ip, from)
		})}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
	}
	return s
}

func (s *nameServer) write(t *testing.T, records string) {
	if err := os.WriteFile(s.hosts, []byte(records), 0o644); err != nil {
		t.Error(err)
	}
	if s.daemon != nil {
		s.daemon.Process.Signal(syscall.SIGHUP) // it reads the file again
	}
}

func (s *nameServer) relay(t *testing.T, addr, real string, f fault) {
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.ports[from.String()] = true
			s.mu.Unlock()
			if count := s.asked.Add(1); f.loseAll || count <= f.lose {
				continue
			}
			query := append([]byte(nil), buf[:n]...)
			go func() {
				time.Sleep(f.delay)
				c, err := net.Dial("udp", real)
				if err != nil {
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				c.Write(query)
				answer := make([]byte, 4096)
				if n, err := c.Read(answer); err == nil {
					udp.WriteTo(answer[:n], from)
				}
			}()
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				up, err := net.Dial("tcp", real)
				if err != nil {
					return
				}
				defer up.Close()
				go io.Copy(up, c)
				io.Copy(c, up)
			}()
		}
	}()
}

// toName is a route to a name that only our name server knows.
func toName(lines ...string) string {
	return strings.Join(lines, "\n") + `
dns_resolvers: [udp://@DNS@]
routes:
  - from: https://app.localhost
    to: http://app.test:@PORT@
    allow_public_unauthenticated_access: true`
}

// body asks once and looks into the answer.
func (w *world) body(part string) error {
	page, err := w.Agent().Request("GET", user)
	if err != nil {
		return err
	}
	return errors.Join(is(page.StatusCode, 200), holds(page.Body, part))
}

// within asks until ok or the time is over.
func within(d time.Duration, ok func() error) (err error) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = ok(); err == nil {
			return nil
		}
	}
	return err
}

// changing gives an example its name server.
func changing(records string, f fault, shows func(w *world, s *nameServer) error) (func(*testing.T, *servertest.Options), func(*world) error) {
	var running sync.Map // by the address in the configuration
	return func(t *testing.T, o *servertest.Options) {
			s := startNames(t, o, records, f)
			running.Store(o.Vars["DNS"], s)
		}, func(w *world) error {
			s, _ := running.Load(w.vars["DNS"])
			return shows(w, s.(*nameServer))
		}
}

const oneAddress = "127.0.0.1 app.test\n"

// Keys about names and source addresses (§2.15).
func dnsExamples() []example {
	var list []example
	add := func(keys, config, records string, f fault, shows func(w *world, s *nameServer) error) {
		with, wrapped := changing(records, f, shows)
		list = append(list, example{keys: keys, config: config, with: with, shows: wrapped})
	}
	answers := func(part string) func(*world, *nameServer) error {
		return func(w *world, _ *nameServer) error { return w.body(part) }
	}
	add("dns_resolvers", `
dns_query_tries: 1
dns_query_timeout: 1s
dns_resolvers: [udp://@DNS@] # shown
routes:
  - from: https://app.localhost
    to: http://app.test:@PORT@
    allow_public_unauthenticated_access: true`, oneAddress, fault{}, answers("at 127.0.0.1"))
	add("dns_lookup_family", toName("dns_lookup_family: V6_ONLY # shown"), oneAddress+"::1 app.test\n", fault{}, answers("at ::1"))
	add("dns_use_tcp", toName("dns_use_tcp: true # shown", "dns_query_timeout: 1s", "dns_query_tries: 1"), oneAddress, fault{loseAll: true}, answers("at 127.0.0.1"))
	add("dns_query_timeout", toName("dns_query_timeout: 1s # shown", "dns_query_tries: 1"), oneAddress, fault{delay: 1500 * time.Millisecond},
		func(w *world, _ *nameServer) error { return w.status(503, user) })
	add("dns_query_tries", toName("dns_query_tries: 1 # shown", "dns_query_timeout: 1s"), oneAddress, fault{lose: 2},
		func(w *world, _ *nameServer) error { return w.status(503, user) })
	add("dns_refresh_rate", toName("dns_refresh_rate: 50ms # shown"), oneAddress, fault{}, func(w *world, s *nameServer) error {
		if err := w.body("at 127.0.0.1"); err != nil {
			return err
		}
		s.write(w.t, "127.0.0.2 app.test\n")
		return within(1500*time.Millisecond, func() error { return w.body("at 127.0.0.2") })
	})
	add("dns_failure_refresh_rate", toName("dns_failure_refresh_rate: 1h # shown"), "127.0.0.1 other.test\n", fault{}, func(w *world, s *nameServer) error {
		if err := w.status(503, user); err != nil {
			return err
		}
		s.write(w.t, oneAddress)
		if within(2500*time.Millisecond, func() error { return w.body("at 127.0.0.1") }) == nil {
			return errors.New("the failed lookup was tried again")
		}
		return nil
	})
	add("dns_udp_max_queries", toName("dns_udp_max_queries: 1 # shown", "dns_refresh_rate: 20ms", "dns_lookup_family: V4_ONLY"), oneAddress, fault{}, func(w *world, s *nameServer) error {
		if err := within(5*time.Second, func() error {
			if err := w.body("at"); err != nil || s.asked.Load() < 4 {
				return errors.Join(err, errors.New("asked too seldom"))
			}
			return nil
		}); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.ports) < 4 {
			return fmt.Errorf("%d queries came from %d ports", s.asked.Load(), len(s.ports))
		}
		return nil
	})
	add("envoy_bind_config_source_address", toName("envoy_bind_config_source_address: 127.0.0.9 # shown"), oneAddress, fault{}, answers("from 127.0.0.9"))
	// 192.0.2.1 is nobody's address: without the option the system refuses it
	// at once; with it, answers find no way back.
	add("envoy_bind_config_freebind", toName("envoy_bind_config_freebind: true # shown", "envoy_bind_config_source_address: 192.0.2.1"), oneAddress, fault{}, func(w *world, _ *nameServer) error {
		if err := w.status(503, user); err != nil && w.status(504, user) != nil {
			return err
		}
		text, err := w.logged("upstream exchange failed")
		return errors.Join(err, lacks(text, "cannot assign"))
	})
	return list
}

// crowd is an application that keeps requests for /hold until they leave or
// half a second is over: @CROWD@. @DEAD@ is a port where nobody listens.
func crowd(t *testing.T, o *servertest.Options) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			select {
			case <-r.Context().Done():
			case <-time.After(700 * time.Millisecond):
			}
		}
		fmt.Fprintf(w, "at %s", r.Context().Value(http.LocalAddrContextKey))
	})
	for i, name := range []string{"CROWD", "OTHER"} {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.%d:0", i+1))
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: handler}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
		o.Vars[name] = "http://" + ln.Addr().String()
	}
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	o.Vars["DEAD"] = "http://127.0.0.1:" + port
}

// full holds one request and sees whether others meet a limit.
func full(w *world) error {
	held := make(chan error, 1)
	go func() {
		_, err := w.Agent().Request("GET", app+"/hold")
		held <- err
	}()
	defer func() { <-held }()
	time.Sleep(150 * time.Millisecond) // until the request is held; if it takes longer, nobody is refused and the example fails
	for range 3 {
		page, err := w.Agent().Request("GET", user)
		if err != nil {
			return err
		}
		if page.StatusCode == 503 {
			_, err := w.logged("http-request", "upstream_reset_before_response_started{overflow}")
			return err
		}
	}
	return errors.New("nobody was refused")
}

// retried sees whether a host that is down costs an answer.
func retried(w *world) error {
	for range 4 {
		if w.status(503, user) == nil {
			return nil
		}
	}
	return errors.New("no request failed")
}

// breakerExamples shows circuit breakers, for all routes and for one.
func breakerExamples() []example {
	var list []example
	for _, b := range []struct {
		key, shown, also, to string
		shows                func(*world) error
	}{
		{"max_requests", "max_requests: 1", "", "@CROWD@", full},
		{"max_connections", "max_connections: 1", "max_pending_requests: 0", "@CROWD@", full},
		{"max_pending_requests", "max_pending_requests: 0", "max_connections: 1", "@CROWD@", full},
		{"max_retries", "max_retries: 0", "", "['@DEAD@', '@CROWD@']", retried},
		{"max_connection_pools", "max_connection_pools: 1", "", "['@CROWD@', '@OTHER@']", full},
	} {
		route := `
routes:
  - from: https://app.localhost
    to: ` + b.to + `
    allow_public_unauthenticated_access: true`
		lines := "\n  max_retries: 3" + "\n  " + b.shown + " # shown"
		if b.key == "max_retries" {
			lines = "\n  max_requests: 100" + "\n  " + b.shown + " # shown"
		}
		if b.also != "" {
			lines += "\n  " + b.also
		}
		list = append(list,
			example{keys: "circuit_breaker_thresholds circuit_breaker_thresholds." + b.key, with: crowd, shows: b.shows,
				config: "circuit_breaker_thresholds:" + lines + route},
			example{keys: "routes[].circuit_breaker_thresholds routes[].circuit_breaker_thresholds." + b.key, with: crowd, shows: b.shows,
				config: route + "\n    circuit_breaker_thresholds:" + strings.ReplaceAll(lines, "\n  ", "\n      ")})
	}
	return list
}

// stays sees whether all requests go to the same endpoint.
func stays(w *world) error {
	first := ""
	for range 6 {
		page, err := w.Agent().Request("GET", user)
		if err != nil {
			return err
		}
		if first == "" {
			first = page.Body
		}
		if page.Body != first {
			return fmt.Errorf("%s, then %s", first, page.Body)
		}
	}
	return nil
}

func toTwo(lines ...string) string {
	return strings.Replace(onRoute(lines...), "@APP@", "['@CROWD@', '@OTHER@']", 1)
}

// Keys about choosing an endpoint (§3.8).
var balancingExamples = []example{
	{keys: "routes[].load_balancing_policy", with: crowd, config: toTwo("load_balancing_policy: MAGLEV # shown"), shows: stays},
	{keys: "routes[].healthy_panic_threshold", with: crowd, config: onRoute("healthy_panic_threshold: 0 # shown",
		"health_checks: [{timeout: 1s, interval: 60s, healthy_threshold: 1, unhealthy_threshold: 1, http_health_check: {path: '/?status=500'}}]"),
		shows: func(w *world) error {
			if err := w.status(503, user); err != nil {
				return err
			}
			_, err := w.logged("http-request", "no_healthy_upstream")
			return err
		}},
}
