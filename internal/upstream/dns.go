package upstream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Of one query where nothing is configured.
const (
	queryTimeout = 5 * time.Second
	queryTries   = 4
	// portFor is how long an unused UDP port is kept.
	portFor = 5 * time.Second
	// udpSize is what we accept in one datagram (RFC 9715 §3.1).
	udpSize = 1232
)

// Files of the system's resolver; changed by tests.
var resolvConf, hostsFile = "/etc/resolv.conf", "/etc/hosts"

// dnsClient is a stub resolver (RFC 1035 §7): it asks recursive servers for A
// and AAAA records and, unlike the system's, tells how long they are good.
type dnsClient struct {
	servers []dnsServer // none: those of resolv.conf
	timeout time.Duration
	tries   int
	perPort uint32
	tcpOnly bool

	mu    sync.Mutex
	ports map[netip.AddrPort][]*dnsPort // unused ones
}

type dnsServer struct {
	addr netip.AddrPort
	tcp  bool
}

// dnsPort is a UDP port of ours, connected to a server.
type dnsPort struct {
	net.Conn
	queries uint32
	expire  *time.Timer
}

func newDNSClient(d DNS) (*dnsClient, error) {
	c := &dnsClient{timeout: d.QueryTimeout.Truncate(time.Second), tries: int(d.Tries), perPort: d.UDPMaxQueries, tcpOnly: d.TCP,
		ports: map[netip.AddrPort][]*dnsPort{}}
	if c.timeout <= 0 {
		c.timeout = queryTimeout
	}
	if c.tries <= 0 {
		c.tries = queryTries
	}
	for _, s := range d.Resolvers {
		network, addr, err := ParseResolver(s)
		if err != nil {
			return nil, err
		}
		c.servers = append(c.servers, dnsServer{addr, network == "tcp" || d.TCP})
	}
	return c, nil
}

// lookup gives the addresses of a name in one family. errNoName is among the
// errors if a server says that there is none.
func (c *dnsClient) lookup(ctx context.Context, name string, v6 bool) ([]netip.Addr, time.Duration, error) {
	if addrs := hostsFileAddrs(name, v6); addrs != nil {
		return addrs, systemRefresh, nil
	}
	conf := readResolvConf(c.tcpOnly)
	servers := c.servers
	if len(servers) == 0 {
		servers = conf.servers
	}
	kind := dnsmessage.TypeA
	if v6 {
		kind = dnsmessage.TypeAAAA
	}
	var first error
	for _, full := range conf.candidates(name) {
		addrs, ttl, err := c.resolve(ctx, servers, full, kind)
		if err == nil {
			return addrs, ttl, nil
		}
		if !errors.Is(err, errNoName) {
			return nil, 0, err
		}
		if first == nil {
			first = err
		}
	}
	if first == nil {
		first = fmt.Errorf("%s is not a name of DNS", name)
	}
	return nil, 0, first
}

// resolve asks the servers in turn until one answers.
func (c *dnsClient) resolve(ctx context.Context, servers []dnsServer, name string, kind dnsmessage.Type) ([]netip.Addr, time.Duration, error) {
	var last error
	for try := range c.tries * len(servers) {
		s := servers[try%len(servers)]
		addrs, ttl, err := c.query(ctx, s, name, kind)
		if err == nil || errors.Is(err, errNoName) {
			return addrs, ttl, err
		}
		last = fmt.Errorf("%s: %w", s.addr, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, 0, fmt.Errorf("the name %s was not resolved: %w", strings.TrimSuffix(name, "."), last)
}

func (c *dnsClient) query(ctx context.Context, s dnsServer, name string, kind dnsmessage.Type) ([]netip.Addr, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	qname, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %s is not a name of DNS", errNoName, name)
	}
	q := dnsmessage.Question{Name: qname, Type: kind, Class: dnsmessage.ClassINET}
	id := uint16(rand.Uint32())
	b := dnsmessage.NewBuilder(make([]byte, 2, 514), dnsmessage.Header{ID: id, RecursionDesired: true})
	b.StartQuestions()
	b.Question(q)
	b.StartAdditionals()
	var edns dnsmessage.ResourceHeader
	edns.SetEDNS0(udpSize, dnsmessage.RCodeSuccess, false)
	b.OPTResource(edns, dnsmessage.OPTResource{})
	message, err := b.Finish()
	if err != nil {
		return nil, 0, err
	}
	if !s.tcp {
		addrs, ttl, err := c.overUDP(ctx, s, message[2:], id, q)
		if !errors.Is(err, errTruncated) {
			return addrs, ttl, err
		}
	}
	return overTCP(ctx, s, message, id, q)
}

var errTruncated = errors.New("the answer is truncated")

func (c *dnsClient) overUDP(ctx context.Context, s dnsServer, message []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, time.Duration, error) {
	p, err := c.port(ctx, s.addr)
	if err != nil {
		return nil, 0, err
	}
	deadline, _ := ctx.Deadline()
	p.SetDeadline(deadline)
	p.queries++
	if _, err := p.Write(message); err != nil {
		p.Close()
		return nil, 0, err
	}
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		if err != nil {
			p.Close()
			return nil, 0, err
		}
		addrs, ttl, err := readAnswer(buf[:n], id, q)
		if errors.Is(err, errNotOurs) {
			continue // late, or forged
		}
		c.keep(s.addr, p)
		return addrs, ttl, err
	}
}

// port gives a UDP port from which the server may be asked once more.
func (c *dnsClient) port(ctx context.Context, server netip.AddrPort) (*dnsPort, error) {
	c.mu.Lock()
	for free := c.ports[server]; len(free) > 0; free = c.ports[server] {
		p := free[len(free)-1]
		c.ports[server] = free[:len(free)-1]
		if p.expire.Stop() {
			c.mu.Unlock()
			return p, nil
		}
	}
	c.mu.Unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	return &dnsPort{Conn: conn}, nil
}

func (c *dnsClient) keep(server netip.AddrPort, p *dnsPort) {
	if c.perPort > 0 && p.queries >= c.perPort {
		p.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.expire = time.AfterFunc(portFor, func() { p.Close() })
	c.ports[server] = append(c.ports[server], p)
}

// overTCP asks over a connection of its own (RFC 7766). message has two bytes
// of room for its length.
func overTCP(ctx context.Context, s dnsServer, message []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, time.Duration, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.addr.String())
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	binary.BigEndian.PutUint16(message, uint16(len(message)-2))
	if _, err := conn.Write(message); err != nil {
		return nil, 0, err
	}
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, 0, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, 0, err
	}
	return readAnswer(buf, id, q)
}

// errNotOurs: the message is no answer to our question.
var errNotOurs = errors.New("not an answer to the question")

// readAnswer gives the addresses that a message answers a question with,
// following aliases within it, and the least TTL on the way.
func readAnswer(b []byte, id uint16, q dnsmessage.Question) ([]netip.Addr, time.Duration, error) {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || h.ID != id || !h.Response {
		return nil, 0, errNotOurs
	}
	asked, err := p.AllQuestions()
	if err != nil || len(asked) != 1 || asked[0].Type != q.Type || asked[0].Class != q.Class || !strings.EqualFold(asked[0].Name.String(), q.Name.String()) {
		return nil, 0, errNotOurs
	}
	switch {
	case h.Truncated:
		return nil, 0, errTruncated
	case h.RCode == dnsmessage.RCodeNameError:
		return nil, 0, fmt.Errorf("%w: the name %s does not resolve", errNoName, strings.TrimSuffix(q.Name.String(), "."))
	case h.RCode != dnsmessage.RCodeSuccess:
		return nil, 0, fmt.Errorf("the server answers %s", strings.TrimPrefix(h.RCode.String(), "RCode"))
	}
	records, err := p.AllAnswers()
	if err != nil {
		return nil, 0, fmt.Errorf("the answer is malformed: %w", err)
	}
	owner, ttl := q.Name.String(), uint32(1<<31-1)
	var addrs []netip.Addr
	for range 16 {
		alias := ""
		for _, r := range records {
			if r.Header.Class != q.Class || !strings.EqualFold(r.Header.Name.String(), owner) {
				continue
			}
			switch body := r.Body.(type) {
			case *dnsmessage.AResource:
				if q.Type == dnsmessage.TypeA {
					addrs = append(addrs, netip.AddrFrom4(body.A))
					ttl = min(ttl, r.Header.TTL)
				}
			case *dnsmessage.AAAAResource:
				if q.Type == dnsmessage.TypeAAAA {
					addrs = append(addrs, netip.AddrFrom16(body.AAAA))
					ttl = min(ttl, r.Header.TTL)
				}
			case *dnsmessage.CNAMEResource:
				alias = body.CNAME.String()
				ttl = min(ttl, r.Header.TTL)
			}
		}
		if len(addrs) > 0 {
			return addrs, time.Duration(ttl) * time.Second, nil
		}
		if alias == "" {
			break
		}
		owner = alias
	}
	return nil, 0, fmt.Errorf("%w: the name %s does not resolve to an address of the family", errNoName, strings.TrimSuffix(q.Name.String(), "."))
}

// resolvSettings is what matters in resolv.conf.
type resolvSettings struct {
	servers []dnsServer
	search  []string
	ndots   int
}

func readResolvConf(tcp bool) resolvSettings {
	c := resolvSettings{ndots: 1}
	eachLine(resolvConf, func(f []string) {
		switch {
		case f[0] == "nameserver" && len(f) > 1:
			if ip, err := netip.ParseAddr(f[1]); err == nil {
				c.servers = append(c.servers, dnsServer{netip.AddrPortFrom(ip, 53), tcp})
			}
		case f[0] == "domain" && len(f) > 1 || f[0] == "search":
			c.search = f[1:]
		case f[0] == "options":
			for _, o := range f[1:] {
				if n, ok := strings.CutPrefix(o, "ndots:"); ok {
					c.ndots, _ = strconv.Atoi(n)
				}
			}
		}
	})
	if len(c.servers) == 0 {
		c.servers = []dnsServer{{netip.MustParseAddrPort("127.0.0.1:53"), tcp}}
	}
	return c
}

// candidates are the full names to ask for, in order (resolv.conf(5)).
func (c *resolvSettings) candidates(name string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var list []string
	for _, domain := range c.search {
		list = append(list, name+"."+strings.Trim(domain, ".")+".")
	}
	if strings.Count(name, ".") >= c.ndots {
		return append([]string{name + "."}, list...)
	}
	return append(list, name+".")
}

// hostsFileAddrs looks a name up in hosts(5).
func hostsFileAddrs(name string, v6 bool) (addrs []netip.Addr) {
	name = strings.TrimSuffix(name, ".")
	eachLine(hostsFile, func(f []string) {
		ip, err := netip.ParseAddr(f[0])
		if err != nil || ip.Is4() == v6 {
			return
		}
		for _, n := range f[1:] {
			if strings.EqualFold(strings.TrimSuffix(n, "."), name) {
				addrs = append(addrs, ip)
				return
			}
		}
	})
	return addrs
}

// eachLine gives the words of the lines that have any, without comments. A
// file that cannot be read has none.
func eachLine(file string, line func(words []string)) {
	f, err := os.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		text, _, _ := strings.Cut(s.Text(), "#")
		if words := strings.Fields(text); len(words) > 0 && words[0][0] != ';' {
			line(words)
		}
	}
}
