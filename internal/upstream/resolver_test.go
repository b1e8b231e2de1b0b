package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer is a DNS server on loopback that answers as told.
type nameServer struct {
	addr string

	mu      sync.Mutex
	answers map[string][]netip.Addr // by "A name." and "AAAA name."
	aliases map[string]string
	ttl     uint32
	rcode   dnsmessage.RCode // instead of answers, if not 0
	silent  int              // so many queries get no answer
	large   bool             // answers over UDP are truncated
	forge   bool             // wrong answers come before the right one
	asked   []string         // "udp A name. port"
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	for range 100 {
		var err error
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			break
		}
		tcp.Close()
	}
	s := &nameServer{addr: tcp.Addr().String(), answers: map[string][]netip.Addr{}, aliases: map[string]string{}, ttl: 60}
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, b := range s.reply(buf[:n], "udp", from) {
				udp.WriteTo(b, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var length [2]byte
			io.ReadFull(c, length[:])
			buf := make([]byte, binary.BigEndian.Uint16(length[:]))
			io.ReadFull(c, buf)
			for _, b := range s.reply(buf, "tcp", c.RemoteAddr()) {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			}
			c.Close()
		}
	}()
	return s
}

func (s *nameServer) reply(query []byte, network string, from net.Addr) (out [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	kind, name := strings.TrimPrefix(q.Type.String(), "Type"), strings.ToLower(q.Name.String())
	_, port, _ := net.SplitHostPort(from.String())
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s %s", network, kind, name, port))
	if s.silent > 0 {
		s.silent--
		return nil
	}
	build := func(id uint16, q dnsmessage.Question, addrs []netip.Addr) []byte {
		h := dnsmessage.Header{ID: id, Response: true, RCode: s.rcode, Truncated: s.large && network == "udp"}
		if alias := s.aliases[name]; len(addrs) == 0 && alias == "" && h.RCode == 0 && len(s.answers["A "+name])+len(s.answers["AAAA "+name]) == 0 {
			h.RCode = dnsmessage.RCodeNameError
		}
		b := dnsmessage.NewBuilder(nil, h)
		b.StartQuestions()
		b.Question(q)
		b.StartAnswers()
		owner := q.Name
		if alias := s.aliases[name]; alias != "" {
			to := dnsmessage.MustNewName(alias)
			b.CNAMEResource(dnsmessage.ResourceHeader{Name: owner, Class: q.Class, TTL: s.ttl}, dnsmessage.CNAMEResource{CNAME: to})
			owner, addrs = to, s.answers[kind+" "+alias]
		}
		if h.RCode == 0 && !h.Truncated {
			for _, a := range addrs {
				rh := dnsmessage.ResourceHeader{Name: owner, Class: q.Class, TTL: s.ttl}
				if a.Is4() {
					b.AResource(rh, dnsmessage.AResource{A: a.As4()})
				} else {
					b.AAAAResource(rh, dnsmessage.AAAAResource{AAAA: a.As16()})
				}
			}
		}
		msg, _ := b.Finish()
		return msg
	}
	if s.forge {
		other := q
		other.Name = dnsmessage.MustNewName("forged.test.")
		evil := []netip.Addr{netip.MustParseAddr("6.6.6.6")}
		out = append(out, []byte("x"), build(h.ID+1, q, evil), build(h.ID, other, evil))
	}
	return append(out, build(h.ID, q, s.answers[kind+" "+name]))
}

func (s *nameServer) put(question string, list ...string) {
	s.set(func() { s.answers[question] = addrs(list...) })
}

func (s *nameServer) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *nameServer) queries() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *nameServer) dns() DNS { return DNS{Resolvers: []string{"udp://" + s.addr}} }

// bareSystem hides the machine's hosts file and search domains.
func bareSystem(t *testing.T, conf, hosts string) {
	t.Helper()
	wasConf, wasHosts := resolvConf, hostsFile
	t.Cleanup(func() { resolvConf, hostsFile = wasConf, wasHosts })
	resolvConf, hostsFile = filepath.Join(t.TempDir(), "resolv.conf"), filepath.Join(t.TempDir(), "hosts")
	for file, text := range map[string]string{resolvConf: conf, hostsFile: hosts} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// resolve asks a new resolver once.
func resolve(t *testing.T, d DNS, name string) *answer {
	t.Helper()
	r, err := newResolver(d)
	if err != nil {
		t.Fatal(err)
	}
	l := r.start(name, time.Time{})
	<-l.done
	return l.answer
}

func TestFamilies(t *testing.T) {
	bareSystem(t, "", "")
	s := newNameServer(t)
	s.put("A both.", "10.0.0.2", "10.0.0.1", "10.0.0.2")
	s.put("AAAA both.", "fd00::1")
	s.put("A four.", "10.0.0.4")
	s.put("AAAA six.", "fd00::6")
	for family, want := range map[string]map[string]string{
		"":             {"both": "10.0.0.1 10.0.0.2", "four": "10.0.0.4", "six": "fd00::6", "none": ""},
		"V4_PREFERRED": {"both": "10.0.0.1 10.0.0.2", "four": "10.0.0.4", "six": "fd00::6", "none": ""},
		"AUTO":         {"both": "fd00::1", "four": "10.0.0.4", "six": "fd00::6"},
		"V4_ONLY":      {"both": "10.0.0.1 10.0.0.2", "four": "10.0.0.4", "six": ""},
		"V6_ONLY":      {"both": "fd00::1", "four": "", "six": "fd00::6"},
		"ALL":          {"both": "10.0.0.1 10.0.0.2 fd00::1", "four": "10.0.0.4", "six": "fd00::6", "none": ""},
	} {
		for name, list := range want {
			d := s.dns()
			d.Family = family
			a := resolve(t, d, name)
			got := strings.Trim(fmt.Sprint(a.addrs), "[]")
			if got != list || (a.err == nil) != (list != "") || list == "" && !errors.Is(a.err, errNoName) {
				t.Errorf("%s %s: %q %v, want %q", family, name, got, a.err, list)
			}
		}
	}
}

func TestDNSClient(t *testing.T) {
	bareSystem(t, "search example.test\noptions ndots:2\n", "10.9.9.9 listed.test listed # not unlisted\n::1 listed.test\n")
	s := newNameServer(t)
	s.put("A a.test.", "10.0.0.1")
	s.put("A b.example.test.", "10.0.0.2")
	s.set(func() { s.aliases["alias.test."], s.ttl = "a.test.", 7 })
	only := func(d DNS) DNS { d.Family = "V4_ONLY"; return d }

	for name, want := range map[string]string{"a.test": "10.0.0.1", "A.test.": "10.0.0.1", "b": "10.0.0.2", "alias.test": "10.0.0.1", "listed.test": "10.9.9.9"} {
		if a := resolve(t, only(s.dns()), name); fmt.Sprint(a.addrs) != "["+want+"]" {
			t.Errorf("%s: %v %v", name, a.addrs, a.err)
		}
	}
	if a := resolve(t, only(s.dns()), "a.test."); a.due.Sub(a.made).Round(time.Second) != 7*time.Second {
		t.Errorf("an answer of 7 s is used for %v", a.due.Sub(a.made))
	}
	d := only(s.dns())
	d.Refresh = 3 * time.Minute
	if a := resolve(t, d, "a.test."); a.due.Sub(a.made).Round(time.Second) != 3*time.Minute {
		t.Errorf("with dns_refresh_rate 3m it is used for %v", a.due.Sub(a.made))
	}
	if a := resolve(t, only(s.dns()), strings.Repeat("a", 300)); a.err == nil {
		t.Error("a name of 300 characters resolved")
	}

	s.set(func() { s.forge = true })
	if a := resolve(t, only(s.dns()), "a.test."); fmt.Sprint(a.addrs) != "[10.0.0.1]" {
		t.Errorf("forged: %v", a.addrs)
	}
	s.set(func() { s.forge, s.large, s.asked = false, true, nil })
	if a := resolve(t, only(s.dns()), "a.test."); fmt.Sprint(a.addrs) != "[10.0.0.1]" || len(s.queries()) != 2 || !strings.HasPrefix(s.queries()[1], "tcp ") {
		t.Errorf("truncated: %v %v", a.addrs, s.queries())
	}
	s.set(func() { s.large, s.asked = false, nil })
	d = only(s.dns())
	d.TCP = true
	if a := resolve(t, d, "a.test."); a.err != nil || !strings.HasPrefix(s.queries()[0], "tcp ") {
		t.Errorf("dns_use_tcp: %v %v", a.err, s.queries())
	}
	s.set(func() { s.asked = nil })
	if a := resolve(t, only(DNS{Resolvers: []string{"tcp://" + s.addr}}), "a.test."); a.err != nil || !strings.HasPrefix(s.queries()[0], "tcp ") {
		t.Errorf("tcp://: %v %v", a.err, s.queries())
	}

	// The second try answers; with one try there is no second.
	s.set(func() { s.silent, s.asked = 1, nil })
	d = only(s.dns())
	d.QueryTimeout, d.Tries = 1900*time.Millisecond, 2
	began := time.Now()
	if a := resolve(t, d, "a.test."); a.err != nil || len(s.queries()) != 2 {
		t.Errorf("second try: %v %v", a.err, s.queries())
	}
	if took := time.Since(began); took < time.Second || took > 1800*time.Millisecond {
		t.Errorf("1.9 s are %v, not one whole second", took)
	}
	s.set(func() { s.rcode, s.asked = dnsmessage.RCodeServerFailure, nil })
	d.Tries = 3
	if a := resolve(t, d, "a.test."); a.err == nil || errors.Is(a.err, errNoName) || len(s.queries()) != 3 || !strings.Contains(a.err.Error(), "ServerFailure") {
		t.Errorf("failure: %v %v", a.err, s.queries())
	}
	s.set(func() { s.rcode = 0 })

	// Two resolvers: when the first is out of order, the second answers.
	silent, _ := net.ListenPacket("udp", "127.0.0.1:0")
	dead := silent.LocalAddr().String()
	silent.Close()
	d = only(DNS{Resolvers: []string{"udp://" + dead, "udp://" + s.addr}})
	if a := resolve(t, d, "a.test."); a.err != nil {
		t.Errorf("second resolver: %v", a.err)
	}

	for _, bad := range []string{"udp://dns.test:53", "udp://127.0.0.1", "127.0.0.1:53", "tls://127.0.0.1:53", "udp://127.0.0.1:0"} {
		if _, failed := Build([]Spec{{Endpoints: endpoints(t, "http://a"), DNS: DNS{Resolvers: []string{bad}}}}, nil, nil); failed == nil || !strings.Contains(failed[0].Error(), "dns_resolvers") {
			t.Errorf("%s: %v", bad, failed)
		}
	}
}

// TestQueriesPerPort: a UDP port of ours asks so many times and no more.
func TestQueriesPerPort(t *testing.T) {
	bareSystem(t, "", "")
	s := newNameServer(t)
	for i := range 6 {
		s.put(fmt.Sprintf("A n%d.test.", i), "10.0.0.1")
	}
	for limit, want := range map[uint32]int{0: 1, 1: 6, 2: 3, 100: 1} {
		s.set(func() { s.asked = nil })
		d := s.dns()
		d.Family, d.UDPMaxQueries = "V4_ONLY", limit
		r, _ := newResolver(d)
		ports := map[string]bool{}
		for i := range 6 {
			l := r.start(fmt.Sprintf("n%d.test", i), time.Time{})
			if <-l.done; l.answer.err != nil {
				t.Fatal(l.answer.err)
			}
		}
		for _, q := range s.queries() {
			ports[strings.Fields(q)[3]] = true
		}
		if len(ports) != want {
			t.Errorf("dns_udp_max_queries %d: %d ports for 6 queries, want %d", limit, len(ports), want)
		}
	}
}

// TestRefresh: answers are asked for again when due, by one at a time, and
// only while the name is used.
func TestRefresh(t *testing.T) {
	bareSystem(t, "", "")
	s := newNameServer(t)
	s.put("A app.test.", "10.0.0.1", "10.0.0.2")
	d := s.dns()
	d.Family, d.Refresh, d.FailureRefresh = "V4_ONLY", 20*time.Millisecond, 20*time.Millisecond
	tg := target(t, Spec{DNS: d}, "http://app.test:8080")
	if tg.hosts.Load() != nil || len(s.queries()) != 0 {
		t.Fatal("resolved before it was used")
	}
	ctx := context.Background()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if set, err := tg.ready(ctx); err != nil || len(set.hosts) != 2 {
				t.Errorf("%v %v", set, err)
			}
		})
	}
	wg.Wait()
	if n := len(s.queries()); n != 1 {
		t.Errorf("%d queries for 50 callers", n)
	}
	one := tg.hosts.Load().hosts[0]
	if one.addr != "10.0.0.1:8080" {
		t.Error(one.addr)
	}
	one.ejected.Store(true)
	s.put("A app.test.", "10.0.0.3", "10.0.0.1")
	var set *hostSet
	becomes(t, func() bool { set, _ = tg.ready(ctx); return set.hosts[1].addr == "10.0.0.3:8080" })
	if set.hosts[0] != one || !one.ejected.Load() || len(set.hosts) != 2 {
		t.Error("the host that stayed is another one")
	}
	asked := len(s.queries())
	time.Sleep(100 * time.Millisecond)
	if n := len(s.queries()); n > asked+1 {
		t.Errorf("%d queries while nobody used the name", n-asked)
	}

	// While DNS fails, the last good answer is used.
	s.set(func() { s.rcode = dnsmessage.RCodeServerFailure })
	asked = len(s.queries())
	becomes(t, func() bool { set, _ = tg.ready(ctx); return len(s.queries()) > asked+8 })
	if set, err := tg.ready(ctx); err != nil || len(set.hosts) != 2 || set.hosts[0] != one {
		t.Errorf("DNS fails: %v %v", set, err)
	}
	// A name that is no more is believed when it is said twice.
	s.set(func() { s.rcode = 0; delete(s.answers, "A app.test."); s.asked = nil })
	becomes(t, func() bool {
		set, _ = tg.ready(ctx)
		if len(s.queries()) < 2 && len(set.hosts) == 0 {
			t.Fatal("one word of DNS took the last host away")
		}
		return len(set.hosts) == 0
	})
	d2 := newDoor(t, tg)
	get(t, d2.URL)
	if o := d2.outcome(t); o.Details != "no_healthy_upstream" || !strings.Contains(o.err.Error(), "does not resolve") {
		t.Errorf("%v %s", o.err, o.Details)
	}
	s.put("A app.test.", "10.0.0.4")
	becomes(t, func() bool { set, _ = tg.ready(ctx); return len(set.hosts) == 1 })
}

// TestSuspectAnswer: a host that does not accept connections makes its name be
// asked for again before its time.
func TestSuspectAnswer(t *testing.T) {
	bareSystem(t, "", "")
	s := newNameServer(t)
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	_, port, _ := net.SplitHostPort(app.Listener.Addr().String())
	s.answers["A app.test."] = addrs("127.0.0.77") // nobody listens there
	s.set(func() { s.ttl = 3600 })
	d := s.dns()
	d.Family = "V4_ONLY"
	door := newDoor(t, target(t, Spec{DNS: d}, "http://app.test:"+port))
	if resp, _ := get(t, door.URL); resp.StatusCode == 200 {
		t.Fatal("somebody listens on 127.0.0.77")
	}
	s.put("A app.test.", "127.0.0.1")
	becomes(t, func() bool { resp, _ := get(t, door.URL); return resp.StatusCode == 200 })
}

// TestHostsAreEndpoints: a request goes to each address of a name, with the
// name as its Host.
func TestHostsAreEndpoints(t *testing.T) {
	bareSystem(t, "", "")
	s := newNameServer(t)
	var mu sync.Mutex
	seen := map[string]int{}
	one, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(one.Addr().String())
	two, err := net.Listen("tcp", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	for _, ln := range []net.Listener{one, two} {
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen[ln.Addr().String()+" "+r.Host]++
		})}
		go srv.Serve(ln)
		t.Cleanup(func() { srv.Close() })
	}
	s.put("A app.test.", "127.0.0.1", "127.0.0.2")
	d := s.dns()
	d.Family = "V4_ONLY"
	tg := target(t, Spec{DNS: d}, "http://app.test:"+port)
	door := newDoor(t, tg)
	for range 6 {
		get(t, door.URL)
	}
	if len(seen) != 2 || seen["127.0.0.1:"+port+" app.test:"+port] != 3 {
		t.Errorf("%v", seen)
	}
	// An address that goes takes its idle connections with it.
	open := tg.breaker.open.Load()
	tg.apply([]*answer{{addrs: addrs("127.0.0.1")}})
	becomes(t, func() bool { return tg.breaker.open.Load() < open })
}

func TestSourceAddress(t *testing.T) {
	app := upstreamServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) }))
	for _, b := range []Bind{{Source: netip.MustParseAddr("127.0.0.9")}, {Source: netip.MustParseAddr("127.0.0.9"), Free: true}} {
		d := newDoor(t, target(t, Spec{Bind: b}, app.URL))
		if _, body := get(t, d.URL); !strings.HasPrefix(body, "127.0.0.9:") {
			t.Errorf("%+v: the upstream sees %s", b, body)
		}
	}
	// An address of somebody else can be bound to only with IP_FREEBIND.
	for free, says := range map[bool]string{false: "cannot assign requested address", true: ""} {
		d := newDoor(t, target(t, Spec{Bind: Bind{Source: netip.MustParseAddr("192.0.2.1"), Free: free}}, app.URL))
		client := http.Client{Timeout: 300 * time.Millisecond}
		if resp, err := client.Get(d.URL); err == nil {
			resp.Body.Close()
		}
		if o := d.outcome(t); o.err == nil || (strings.Contains(o.err.Error(), "cannot assign") != !free) || !strings.Contains(o.err.Error(), says) {
			t.Errorf("freebind %v: %v", free, o.err)
		}
	}
}
