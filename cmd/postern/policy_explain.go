package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"postern/internal/authz"
	"postern/internal/policy"
	"postern/internal/server"
)

// explainFlags are a question as the command line puts it.
type explainFlags struct {
	control controlFlags
	data    string
	offline bool

	user, session, userID string
	groups, claims        []string

	url, method, ip, certificate string
	headers                      []string
	asJSON                       bool
}

// policyExplainCommand says why a request is decided as it is.
func policyExplainCommand() *cobra.Command {
	var f explainFlags
	cmd := &cobra.Command{
		Use: "explain", Short: "Say why a request would be let in or refused, and what would have to change", Args: noArgs,
		Long: `Judges a request as the server would and tells the outcome, each rule in order,
the criterion that decided, the value seen, where it came from and how old it is,
and what would have to change. Nothing is changed by asking. Exit status 0 if the
request would be let in, 1 if not.

Who asks is named by --user (their newest session; without one, what the records
say), by --session, or described: --user with --group and --claim. Without any of
them nobody is signed in.

A described person, and --data, are judged by the configuration alone, without a
server. Else the running server is asked through its control socket, and its audit
log says so. A data file holds users, directory_users, groups and sessions, as
postern policy who-can takes it.`,
		Example: `  postern policy explain --config config.yaml --user ada@example.com --route https://app.example.com/reports
  postern policy explain --config config.yaml --user ada@example.com --group finance --route https://app.example.com/`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			x, err := f.ask(cmd.Context())
			if err != nil {
				return err
			}
			if f.asJSON {
				err = printJSON(cmd.OutOrStdout(), x)
			} else {
				err = writeExplanation(cmd.OutOrStdout(), x)
			}
			if err == nil && x.Outcome != policy.Allow.String() {
				err = exitCode(1)
			}
			return err
		},
	}
	f.control.add(cmd)
	fl := cmd.Flags()
	fl.StringVar(&f.data, "data", "", "ask about the records in this file (YAML or JSON) instead of the running server's")
	fl.BoolVar(&f.offline, "offline", false, "judge by the configuration alone, without the running server")
	fl.StringVar(&f.user, "user", "", "who asks: e-mail address or user id")
	fl.StringVar(&f.session, "session", "", "who asks: id of a session or service account")
	fl.StringVar(&f.userID, "user-id", "", "user id of a described person (default: --user)")
	fl.StringArrayVar(&f.groups, "group", nil, "directory group id of a described person; may repeat")
	fl.StringArrayVar(&f.claims, "claim", nil, "NAME=VALUE claim of a described person; may repeat; VALUE may be YAML")
	fl.StringVar(&f.url, "route", "", "address asked for, https://host/path")
	fl.StringVar(&f.method, "method", "GET", "request method")
	fl.StringVar(&f.ip, "ip", "", "address of the client")
	fl.StringArrayVar(&f.headers, "header", nil, "NAME:VALUE request header; may repeat")
	fl.StringVar(&f.certificate, "client-certificate", "", "PEM file of the client certificate presented")
	fl.BoolVar(&f.asJSON, "json", false, "print JSON")
	return cmd
}

// question makes the query; described says that it needs no records.
func (f *explainFlags) question() (q *server.ExplainQuery, described bool, err error) {
	if f.url == "" {
		return nil, false, usageError{errors.New("give the address that is asked for with --route https://host/path")}
	}
	q = &server.ExplainQuery{User: f.user, Session: f.session, URL: f.url, Method: f.method, IP: f.ip, Headers: map[string]string{}}
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || name == "" {
			return nil, false, usageError{fmt.Errorf("--header %q is not NAME:VALUE", h)}
		}
		q.Headers[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	if f.certificate != "" {
		b, err := os.ReadFile(f.certificate)
		if err != nil {
			return nil, false, usageError{err}
		}
		q.ClientCertificate = string(b)
	}
	if f.groups == nil && f.claims == nil && f.userID == "" && !(f.offline && f.user != "" && f.data == "") {
		return q, false, nil
	}
	if f.session != "" {
		return nil, false, usageError{errors.New("--session names somebody real, --group and --claim describe somebody: give one or the other")}
	}
	d := &server.DescribedUser{ID: f.userID, Groups: f.groups}
	if strings.Contains(f.user, "@") {
		d.Email = f.user
	}
	if d.ID == "" {
		d.ID = f.user
	}
	for _, c := range f.claims {
		name, text, ok := strings.Cut(c, "=")
		if !ok || name == "" {
			return nil, false, usageError{fmt.Errorf("--claim %q is not NAME=VALUE", c)}
		}
		var n yaml.Node
		var value any = text
		if yaml.Unmarshal([]byte(text), &n) == nil && n.Kind == yaml.DocumentNode {
			if v, err := policy.Plain(n.Content[0]); err == nil {
				value = v
			}
		}
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		if d.Claims == nil {
			d.Claims = map[string][]any{}
		}
		d.Claims[name] = append(d.Claims[name], list...)
	}
	q.User, q.Described = "", d
	return q, true, nil
}

func (f *explainFlags) ask(ctx context.Context) (*authz.Explanation, error) {
	q, described, err := f.question()
	if err != nil {
		return nil, err
	}
	if f.control.socket == "" && (described || f.offline || f.data != "") {
		cfg, err := loadConfig(f.control.config)
		if err != nil {
			return nil, err
		}
		var data *server.Export
		if f.data != "" {
			b, err := os.ReadFile(f.data)
			if err != nil {
				return nil, usageError{err}
			}
			if data, err = server.ReadExport(b); err != nil {
				return nil, usageError{fmt.Errorf("%s: %w", f.data, err)}
			}
		}
		x, err := server.Explain(ctx, cfg, data, q)
		return &x, err
	}
	c, err := f.control.client()
	if err != nil {
		return nil, err
	}
	x := new(authz.Explanation)
	if err := c.Call(ctx, "POST", "/v1/explain", q, x); err != nil {
		return nil, fmt.Errorf("%w; without a server, describe the person (--group, --claim) or give records (--data)", err)
	}
	return x, nil
}

// outcomeWords say an outcome as the pages do.
var outcomeWords = map[string]string{
	"allow": "Let in", "deny": "Refused", "login": "Sent to sign in", "device": "Asked for a device", "error": "Failed",
}

var operatorWords = map[string]string{"and": "all of", "or": "one of", "not": "none of", "nor": "not all of"}

// writeExplanation prints an explanation for people: the outcome first.
func writeExplanation(out io.Writer, x *authz.Explanation) error {
	var b strings.Builder
	who := x.Who.Email
	switch {
	case !x.Who.SignedIn:
		who = "nobody (not signed in)"
	case who == "":
		who = x.Who.UserID
	}
	fmt.Fprintf(&b, "%s (%d %s): %s, %s %s%s\n", outcomeWords[x.Outcome], x.Status, x.StatusText(), who, x.Request.Method, x.Request.Host, x.Request.Path)
	if x.Message != "" {
		fmt.Fprintln(&b, x.Message)
	}
	deciding := x.Trace.Deciding()
	for _, c := range deciding[:min(len(deciding), 8)] {
		fmt.Fprintf(&b, "  decided by %s: %s\n", c.Criterion, evidence(c))
	}
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w)
	if x.Route != nil {
		fmt.Fprintf(w, "Route\t%s\n", strings.TrimSpace(x.Route.Name+" "+x.Route.From))
	}
	if id := x.Who.SessionID; id != "" {
		fmt.Fprintf(w, "Session\t%s\n", id)
	}
	if id := x.Who.ServiceAccountID; id != "" {
		fmt.Fprintf(w, "Service account\t%s\n", id)
	}
	if x.Who.SignedIn {
		fmt.Fprintf(w, "User\t%s\n", x.Who.UserID)
	}
	if x.Who.ImpersonatedBy != "" {
		fmt.Fprintf(w, "Impersonated by\t%s\n", x.Who.ImpersonatedBy)
	}
	fmt.Fprintf(w, "Judged\t%s\n", x.At.UTC().Format(time.RFC3339))
	w.Flush()
	for i := range x.Trace.Policies {
		writePolicy(&b, &x.Trace.Policies[i])
	}
	if len(x.Trace.Changes) > 0 {
		fmt.Fprintln(&b, "\nWhat would have to change:")
		for i, set := range x.Trace.Changes {
			var parts []string
			for _, c := range set {
				parts = append(parts, c.Text)
			}
			lead := "  "
			if i > 0 {
				lead = "  or "
			}
			fmt.Fprintln(&b, lead+strings.Join(parts, ", and "))
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func writePolicy(b *strings.Builder, p *policy.PolicyTrace) {
	name := p.Name
	if p.ID != "" {
		name = strings.TrimSpace("policy " + p.ID + " " + name)
	}
	fmt.Fprintf(b, "\n%s\n", name)
	if p.Script {
		fmt.Fprintf(b, "  a script answers allow %v (%s), deny %v (%s)\n", p.Allow.Value, strings.Join(p.Allow.Reasons, ", "), p.Deny.Value, strings.Join(p.Deny.Reasons, ", "))
	}
	if p.Error != "" {
		fmt.Fprintf(b, "  failed: %s\n", p.Error)
	}
	for i := range p.Rules {
		r := &p.Rules[i]
		holds := "does not hold"
		if r.Value {
			holds = "holds"
		}
		fmt.Fprintf(b, "  %s %s: %s\n", r.Action, operatorWords[r.Operator], holds)
		w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
		for k := range r.Criteria {
			c := &r.Criteria[k]
			sign, decided := "no ", ""
			if c.Value {
				sign = "yes"
			}
			if c.Decided {
				decided = "<- decided"
			}
			at := c.Path
			if c.Line > 0 {
				at = fmt.Sprintf("%d:%d", c.Line, c.Column)
			}
			fmt.Fprintf(w, "    %s %s\t%s\t%s\t%s\t%s\n", sign, c.Criterion, c.Wanted, evidence(c), at, decided)
		}
		if r.Omitted > 0 {
			fmt.Fprintf(w, "    and %d more\n", r.Omitted)
		}
		w.Flush()
	}
}

// evidence says what was seen, from where and how old.
func evidence(c *policy.CriterionTrace) string {
	saw := "saw nothing"
	if len(c.Seen) > 0 {
		saw = "saw " + strings.Join(c.Seen, ", ")
	} else if c.Source == "" || c.Source == "clock" {
		saw = strings.Join(c.Reasons, ", ")
	}
	if c.Source != "" && c.Source != "clock" {
		saw += " (" + c.Source
		if c.Age != "" {
			saw += ", " + c.Age + " old"
		}
		saw += ")"
	}
	return saw
}
