package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"postern/internal/policy"
	"postern/internal/policy/impact"
	"postern/internal/server"
)

// change is one difference, as --json prints it. Who is "" where the question
// was asked of anybody.
type change struct {
	Route  string `json:"route"`
	Who    string `json:"who,omitempty"`
	Gains  string `json:"gains,omitempty"` // always, or only if ...
	Loses  string `json:"loses,omitempty"`
	Before string `json:"before"`
	After  string `json:"after"`
	// Requests counts the recorded requests, with --requests; Example is one.
	Requests int    `json:"requests,omitempty"`
	Example  string `json:"example,omitempty"`
}

// policyDiffCommand compares two configurations, or two policies.
func policyDiffCommand() *cobra.Command {
	var people peopleFlags
	var log string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "diff OLD NEW", Short: "Tell who gains and who loses access by a change", Args: exactArgs(2, "two configurations, or two policy documents"),
		Long: `Compares two configurations route by route, or two policy documents, for every
known person and for nobody, conditions included. Without known people (--data,
--control) it tells what changes for anybody, in the words of the policies.

With --requests, a file of authorize log lines, recorded requests are judged by
both. What the log does not tell (headers, devices, certificates, and groups
of people that are not known) stays open; differences that depend on it are told
with their condition.

Exit status 0: nothing changes, 1: something does, 2: wrong usage.`,
	}
	people.add(cmd)
	cmd.Flags().StringVar(&log, "requests", "", "authorize log, JSON lines, whose requests are judged by both")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		before, err := diffSide(args[0])
		if err != nil {
			return err
		}
		after, err := diffSide(args[1])
		if err != nil {
			return err
		}
		if (before.single == nil) != (after.single == nil) {
			return usageError{errors.New("one of the files is a policy and the other a configuration: give two of a kind")}
		}
		var persons []impact.Person
		if people.data != "" || people.socket != "" {
			known, err := people.load(cmd, nil)
			if err != nil {
				return err
			}
			persons = known.Persons()
		}
		changes := compareAll(before, after, persons)
		var replay *replayReport
		if log != "" {
			if replay, err = replayLog(log, before, after, persons); err != nil {
				return err
			}
		}
		out := cmd.OutOrStdout()
		if asJSON {
			if err := printJSON(out, map[string]any{"changes": changes, "requests": replay}); err != nil {
				return err
			}
		} else {
			printChanges(out, changes)
			if replay != nil {
				printChanges(out, replay.Changes)
				fmt.Fprintf(out, "%d recorded requests: %d gain, %d lose, %d depend on what the log does not tell, %d lines are not decisions\n",
					replay.Judged, replay.Gain, replay.Lose, replay.Open, replay.Skipped)
			}
			if len(changes) == 0 && (replay == nil || len(replay.Changes) == 0) {
				fmt.Fprintln(out, "nobody gains or loses anything")
			}
		}
		if len(changes) > 0 || replay != nil && len(replay.Changes) > 0 {
			return exitCode(1)
		}
		return nil
	}
	return cmd
}

// side is one of the two that are compared.
type side struct {
	policies *server.Policies
	single   *impact.Route // a policy document instead
}

func diffSide(path string) (*side, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, usageError{err}
	}
	if !isPolicyDocument(text) {
		_, policies, err := compilePolicies(path)
		return &side{policies: policies}, err
	}
	p, _, err := policy.Parse(path, text, policy.Options{})
	if err != nil {
		return nil, usageError{err}
	}
	return &side{single: &impact.Route{Set: policy.NewSet(policy.Pool{Own: p}), MCP: true, ClientCAs: true}}, nil
}

// isPolicyDocument tells a policy from a configuration.
func isPolicyDocument(text []byte) bool {
	var n yaml.Node
	if yaml.Unmarshal(text, &n) != nil || len(n.Content) == 0 {
		return false
	}
	top := n.Content[0]
	if top.Kind == yaml.SequenceNode {
		return true
	}
	for i := 0; i+1 < len(top.Content); i += 2 {
		if k := top.Content[i].Value; k != "allow" && k != "deny" {
			return false
		}
	}
	return top.Kind == yaml.MappingNode
}

// nothing stands for a route that one side does not have: nobody reaches it.
var nothing = policy.NewSet(policy.Pool{})

// pair is a route on both sides.
type pair struct {
	label         string
	before, after *impact.Route
}

func pairs(before, after *side) []pair {
	if before.single != nil {
		return []pair{{"the policy", before.single, after.single}}
	}
	byKey := map[string]*pair{}
	var order []*pair
	for _, s := range []*side{before, after} {
		for i := range s.policies.Routes {
			rp := &s.policies.Routes[i]
			p := byKey[rp.Key]
			if p == nil {
				p = &pair{label: rp.Label, before: &impact.Route{Set: nothing}, after: &impact.Route{Set: nothing}}
				byKey[rp.Key] = p
				order = append(order, p)
			}
			if s == before {
				p.before = &rp.Impact
			} else {
				p.after = &rp.Impact
			}
		}
	}
	out := make([]pair, len(order))
	for i, p := range order {
		out[i] = *p
	}
	return out
}

// compare gives the difference for what is known; nil if there is none.
func compare(s *impact.Space, p *pair, k *impact.Known) *change {
	a, b := s.Access(p.before, k), s.Access(p.after, k)
	if a.Same(b.Condition) {
		return nil
	}
	c := &change{Route: p.label, Before: a.String(), After: b.String()}
	if gains := b.But(a.Condition); !gains.Never() {
		c.Gains = gains.String()
	}
	if loses := a.But(b.Condition); !loses.Never() {
		c.Loses = loses.String()
	}
	return c
}

func compareAll(before, after *side, persons []impact.Person) []change {
	out := []change{}
	for _, p := range pairs(before, after) {
		s := impact.NewSpace()
		if len(persons) == 0 {
			if c := compare(s, &p, impact.Anybody()); c != nil {
				out = append(out, *c)
			}
			continue
		}
		for _, who := range append([]impact.Person{{Anonymous: true}}, persons...) {
			if c := compare(s, &p, impact.KnownOf(&who)); c != nil {
				c.Who = label(&who)
				out = append(out, *c)
			}
		}
	}
	return out
}

func printChanges(w io.Writer, list []change) {
	for _, c := range list {
		who := cmp.Or(c.Who, "anybody")
		times := ""
		switch {
		case c.Requests == 1:
			times = " (1 request: " + c.Example + ")"
		case c.Requests > 1:
			times = fmt.Sprintf(" (%d requests, such as %s)", c.Requests, c.Example)
		}
		for _, x := range []struct{ verb, when string }{{"gains", c.Gains}, {"loses", c.Loses}} {
			switch x.when {
			case "":
			case "always":
				fmt.Fprintf(w, "%s: %s %s access%s\n", c.Route, who, x.verb, times)
			default:
				fmt.Fprintf(w, "%s: %s %s access, %s%s\n", c.Route, who, x.verb, x.when, times)
			}
		}
	}
}

// logged are the fields of an authorize log line that a policy may look at.
type logged struct {
	Message          string `json:"message"`
	Time             string `json:"time"`
	Method           string `json:"method"`
	Host             string `json:"host"`
	Path             string `json:"path"`
	IP               string `json:"ip"`
	User             string `json:"user"`
	Email            string `json:"email"`
	SessionID        string `json:"session-id"`
	ServiceAccountID string `json:"service-account-id"`
	ImpersonateUser  string `json:"impersonate-user-id"`
	ImpersonateEmail string `json:"impersonate-email"`
	MCPMethod        string `json:"mcp-method"`
	MCPTool          string `json:"mcp-tool"`
}

// replayReport is what recorded requests say of a change.
type replayReport struct {
	Judged  int      `json:"judged"`
	Gain    int      `json:"gain"`
	Lose    int      `json:"lose"`
	Open    int      `json:"open"`
	Skipped int      `json:"skipped"`
	Changes []change `json:"changes"`
}

func replayLog(path string, before, after *side, persons []impact.Person) (*replayReport, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, usageError{err}
	}
	defer f.Close()
	r := &replayReport{Changes: []change{}}
	merged := map[string]*change{}
	lines := bufio.NewScanner(f)
	lines.Buffer(make([]byte, 64<<10), 4<<20)
	// One space per pair of routes, renewed before it grows large.
	type routes struct{ a, b *impact.Route }
	spaces := map[routes]*impact.Space{}
	for lines.Scan() {
		var l logged
		if json.Unmarshal(lines.Bytes(), &l) != nil || l.Message != "authorize check" || l.Host == "" {
			r.Skipped++
			continue
		}
		if internal, _ := policy.InternalPath(l.Path); internal {
			r.Skipped++
			continue
		}
		p := pair{label: l.Host, before: &impact.Route{Set: nothing}, after: &impact.Route{Set: nothing}}
		if before.single != nil {
			p = pair{"the policy", before.single, after.single}
		} else {
			if rp := before.policies.At(l.Host, l.Path); rp != nil {
				p.label, p.before = rp.Label, &rp.Impact
			}
			if rp := after.policies.At(l.Host, l.Path); rp != nil {
				p.label, p.after = rp.Label, &rp.Impact
			}
		}
		r.Judged++
		key := routes{p.before, p.after}
		if spaces[key] == nil {
			spaces[key] = impact.NewSpace()
		}
		k, who := knownOfLine(&l, persons)
		c := compare(spaces[key], &p, k)
		if c == nil {
			continue
		}
		c.Who = who
		switch {
		case c.Gains == "always":
			r.Gain++
		case c.Loses == "always":
			r.Lose++
		default:
			r.Open++
		}
		at := strings.Join([]string{c.Route, who, c.Gains, c.Loses}, "\x00")
		if merged[at] == nil {
			merged[at] = c
			c.Example = l.Method + " " + l.Path
		}
		merged[at].Requests++
	}
	if err := lines.Err(); err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", path, err)}
	}
	for _, at := range slices.Sorted(maps.Keys(merged)) {
		r.Changes = append(r.Changes, *merged[at])
	}
	return r, nil
}

// knownOfLine is what a line tells of a request, and whose it was.
func knownOfLine(l *logged, persons []impact.Person) (*impact.Known, string) {
	id, email := cmp.Or(l.ImpersonateUser, l.User), cmp.Or(l.ImpersonateEmail, l.Email)
	who := impact.Person{ID: id, Email: email, Anonymous: id == "" && email == "" && l.SessionID == "" && l.ServiceAccountID == ""}
	partial := !who.Anonymous
	for i := range persons {
		if !who.Anonymous && (id != "" && persons[i].ID == id || id == "" && email != "" && strings.EqualFold(persons[i].Email, email)) {
			who, partial = persons[i], false
			break
		}
	}
	k := impact.KnownOf(&who)
	k.Person = partial
	k.In.Method, k.Method = l.Method, l.Method != ""
	k.In.RawPath, k.In.Path, k.Path = l.Path, policy.DecodePath(l.Path), l.Path != ""
	if ip, err := netip.ParseAddr(l.IP); err == nil {
		k.In.ClientIP, k.IP = ip, true
	}
	if at, err := time.Parse(time.RFC3339Nano, l.Time); err == nil {
		k.In.Now, k.Now = at, true
	}
	if l.MCPMethod != "" {
		k.In.MCP, k.MCP = &policy.MCPCall{Method: l.MCPMethod, Tool: l.MCPTool}, true
	}
	return k, label(&who)
}
