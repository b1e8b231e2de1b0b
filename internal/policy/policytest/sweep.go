package policytest

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
)

// sweepSize is how many inputs decide whether a variant that no case catches
// is equivalent.
const sweepSize = 4000

// near are the values that the policies of a document name, and those just
// beside them.
type near struct {
	emails, users, groups, methods, paths, logins, tools []string
	ips                                                  []netip.Addr
	moments                                              []time.Time
	claims                                               map[string][]any
	devices                                              []policy.Device
	zones                                                []*time.Location
	clocks                                               []time.Duration
}

// inputsNear makes random inputs out of what the policies and cases name. The
// sequence is always the same.
func inputsNear(d *Document, rules []ruleText) []*policy.Input {
	v := &near{
		emails: []string{"", "somebody@somewhere.test"}, users: []string{"u1", "somebody"}, groups: []string{"no-such-group"},
		methods: []string{"GET", "POST", "OPTIONS"}, paths: []string{"/", "/no/such"}, logins: []string{"nobody-named"}, tools: []string{"no-such-tool"},
		ips: []netip.Addr{{}, netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")}, moments: []time.Time{DefaultNow},
		claims: map[string][]any{}, devices: []policy.Device{{ID: "some", Type: "any"}}, zones: []*time.Location{time.UTC},
	}
	for _, t := range append([]policyText{}, d.texts...) {
		for _, r := range rulesOf(t.node) {
			v.harvest(r.criteria)
		}
	}
	for _, r := range rules {
		v.harvest(r.criteria)
	}
	var bases []*policy.Input
	for _, c := range d.Cases {
		if in, err := Input(c); err == nil {
			bases = append(bases, in)
		}
	}
	r := rand.New(rand.NewPCG(14, uint64(len(v.emails))))
	out := make([]*policy.Input, 0, sweepSize+len(bases))
	out = append(out, bases...)
	for len(out) < sweepSize && len(bases) > 0 {
		in := *bases[r.IntN(len(bases))]
		v.shuffle(r, &in)
		out = append(out, &in)
	}
	return out
}

func (v *near) harvest(list *yaml.Node) {
	for _, item := range list.Content {
		if item.Kind != yaml.MappingNode || len(item.Content) != 2 {
			continue
		}
		name, sub, _ := strings.Cut(item.Content[0].Value, "/")
		value := item.Content[1]
		for _, x := range values(value) {
			t, isText := x.(string)
			switch {
			case name == "claim":
				v.claims[sub] = append(v.claims[sub], x, "other")
			case !isText:
			case name == "email":
				v.emails = append(v.emails, t, "x"+t, t+"x", "some"+t)
			case name == "domain":
				v.emails = append(v.emails, "a@"+t, "b@x"+t, "c@"+t+".x", "d@sub."+t)
			case name == "user":
				v.users = append(v.users, t, "x"+t, t+"x")
			case name == "groups":
				v.groups = append(v.groups, t)
			case name == "http_method":
				v.methods = append(v.methods, t)
			case name == "http_path":
				v.paths = append(v.paths, t, t+"/x", "/x"+t, t+"x")
			case name == "mcp_tool":
				v.tools = append(v.tools, t, "x"+t, t+"x")
			case name == "ssh_username":
				v.logins = append(v.logins, t, "x"+t, t+"x")
			case name == "ssh_username_matches_claim":
				v.claims[t] = append(v.claims[t], "root")
			case name == "source_ip":
				if p, err := netip.ParsePrefix(t); err == nil {
					p = p.Masked()
					v.ips = append(v.ips, p.Addr(), p.Addr().Next(), p.Addr().Prev())
				} else if ip, err := netip.ParseAddr(t); err == nil {
					v.ips = append(v.ips, ip, ip.Next(), ip.Prev())
				}
			case name == "date":
				if at, err := policy.ParseMoment(t); err == nil {
					v.moments = append(v.moments, at, at.Add(-time.Second), at.Add(time.Second), at.AddDate(0, 0, 3))
				}
			case name == "time_of_day":
				if zone, err := time.LoadLocation(t); err == nil && t != "" {
					v.zones = append(v.zones, zone)
				} else if at, err := policy.ParseTimeOfDay(t); err == nil {
					v.clocks = append(v.clocks, at, at-time.Second, at+time.Second)
				}
			case name == "device":
				v.devices = append(v.devices, policy.Device{ID: t, Type: "any"}, policy.Device{ID: "some", Type: t})
			}
		}
	}
}

// values are all scalars of a value.
func values(n *yaml.Node) (list []any) {
	switch n.Kind {
	case yaml.ScalarNode:
		if x, err := policy.Plain(n); err == nil {
			list = append(list, x)
		}
	case yaml.SequenceNode:
		for _, item := range n.Content {
			list = append(list, values(item)...)
		}
	case yaml.MappingNode:
		for i := 1; i < len(n.Content); i += 2 {
			list = append(list, values(n.Content[i])...)
		}
	}
	return list
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// shuffle changes about half of what an input says.
func (v *near) shuffle(r *rand.Rand, in *policy.Input) {
	change := func() bool { return r.IntN(2) == 0 }
	if change() {
		in.HasSession = r.IntN(6) > 0
		in.UserID, in.Email = pick(r, v.users), pick(r, v.emails)
		in.HasDirectory, in.Groups, in.Claims = r.IntN(5) > 0, nil, map[string][]any{}
		for range r.IntN(4) {
			in.Groups = append(in.Groups, pick(r, v.groups))
		}
		for _, name := range slices.Sorted(maps.Keys(v.claims)) {
			for range r.IntN(3) {
				in.Claims[name] = append(in.Claims[name], pick(r, v.claims[name]))
			}
		}
	}
	if in.SSH == nil && change() {
		in.Method = pick(r, v.methods)
		in.Path = pick(r, v.paths)
		in.RawPath = in.Path
	}
	if in.SSH != nil && change() {
		in.SSH = &policy.SSHInput{Username: pick(r, v.logins), PublicKey: in.SSH.PublicKey}
	}
	if in.MCP != nil && change() {
		in.MCP = &policy.MCPCall{Method: pick(r, []string{"tools/call", "tools/call", "tools/list"}), Tool: pick(r, v.tools)}
	}
	if change() {
		in.ClientIP = pick(r, v.ips)
	}
	if change() {
		in.Now = pick(r, v.moments).Add(time.Duration(r.IntN(8*24)) * time.Hour)
	}
	if change() {
		in.Now = pick(r, v.moments)
	}
	if len(v.clocks) > 0 && change() {
		day := in.Now.In(pick(r, v.zones))
		in.Now = time.Date(day.Year(), day.Month(), day.Day(), 0, 0, 0, 0, day.Location()).Add(pick(r, v.clocks))
	}
	if change() {
		in.CertificateState = policy.CertificateState(r.IntN(3))
	}
	if in.HasSession && change() {
		d := pick(r, v.devices)
		d.Approved, d.Enrolled, d.Revoked = change(), r.IntN(3) > 0, r.IntN(5) == 0
		in.Devices = []policy.Device{d}
	}
}

// sameAnswers tells that two cases, which differ in their policies alone, get
// the same outcome on every input.
func sameAnswers(a, b *Case, inputs []*policy.Input) bool {
	sets := [2]*policy.Set{}
	for i, c := range []*Case{a, b} {
		set, err := c.set()
		if err != nil {
			return false
		}
		sets[i] = set
	}
	for _, in := range inputs {
		var choice [2]policy.Choice
		for i, set := range sets {
			var res policy.Result
			set.Evaluate(in, &res)
			if in.SSH != nil {
				choice[i] = policy.ChooseSSH(&res, false)
			} else {
				choice[i] = policy.Choose(&res, policy.Client{MCPRoute: a.Settings.Route.MCPServer})
			}
		}
		if choice[0].Outcome != choice[1].Outcome || choice[0].Status != choice[1].Status || choice[0].Outcome == policy.Enroll && choice[0].DeviceType != choice[1].DeviceType {
			return false
		}
	}
	return len(inputs) > 0
}
