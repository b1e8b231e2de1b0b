package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"postern/internal/policy/impact"
	"postern/internal/server"
)

// groupReport counts the members of a group.
type groupReport struct {
	ID          string `json:"id"`
	Name        string `json:"name,omitempty"`
	Members     int    `json:"members"`
	Always      int    `json:"always"`
	Conditional int    `json:"conditional"`
}

// policyWhoCanCommand asks the question of an access review.
func policyWhoCanCommand() *cobra.Command {
	var people peopleFlags
	var address, user string
	var asJSON, all bool
	cmd := &cobra.Command{
		Use: "who-can (--route URL | --user EMAIL)", Short: "Tell who may reach a route, or what somebody may reach", Args: noArgs,
		Long: `Answers for every known person (users that signed in, directory records) and for
nobody: always, never, or only if, with the rules. Who somebody is decides; what
only a request can tell (method, path, address, time, device, certificate, tool)
is printed as the condition. Claims are those of the last sign-in.

The people come from --data, or from the running server through its control socket.`,
	}
	path := configFlag(cmd)
	people.add(cmd)
	cmd.Flags().StringVar(&address, "route", "", "URL of a route, such as https://app.example.com/")
	cmd.Flags().StringVar(&user, "user", "", "e-mail address or id of somebody known")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&all, "all", false, "print those who never get in too")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if (address == "") == (user == "") {
			return usageError{errors.New("postern policy who-can: give --route or --user, one of them")}
		}
		cfg, policies, err := compilePolicies(*path)
		if err != nil {
			return err
		}
		known, err := people.load(cmd, cfg)
		if err != nil {
			return err
		}
		persons := known.Persons()
		if user != "" {
			return whatCan(cmd, policies, persons, user, asJSON, all)
		}
		rp, err := policies.Find(address)
		if err != nil {
			return usageError{err}
		}
		return whoCan(cmd, rp, known, persons, asJSON, all)
	}
	return cmd
}

func whoCan(cmd *cobra.Command, rp *server.RoutePolicies, known *server.People, persons []impact.Person, asJSON, all bool) error {
	space := impact.NewSpace()
	report := func(p *impact.Person) accessReport {
		r := newAccessReport(space.Access(&rp.Impact, impact.KnownOf(p)))
		r.ID, r.Email, r.Name = p.ID, p.Email, p.Name
		return r
	}
	nobody := report(&impact.Person{Anonymous: true})
	list := make([]accessReport, len(persons))
	groups := map[string]*groupReport{}
	var groupIDs []string
	group := func(id, name string) *groupReport {
		if groups[id] == nil {
			groups[id] = &groupReport{ID: id, Name: name}
			groupIDs = append(groupIDs, id)
		}
		return groups[id]
	}
	for _, g := range known.Groups {
		group(g.ID, g.Name)
	}
	count := map[string]int{}
	for i := range persons {
		list[i] = report(&persons[i])
		count[list[i].Access]++
		for _, id := range persons[i].Groups {
			g := group(id, "")
			g.Members++
			switch list[i].Access {
			case "always":
				g.Always++
			case "conditional":
				g.Conditional++
			}
		}
	}
	slices.Sort(groupIDs)
	if asJSON {
		gs := []groupReport{}
		for _, id := range groupIDs {
			gs = append(gs, *groups[id])
		}
		return printJSON(cmd.OutOrStdout(), map[string]any{"route": rp.Label, "nobody": nobody, "people": list, "groups": gs})
	}
	out := cmd.OutOrStdout()
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "%s\n", rp.Label)
	fmt.Fprintln(w, "WHO\tACCESS\tRULE")
	fmt.Fprintf(w, "%s\t%s\t%s\n", label(&impact.Person{Anonymous: true}), nobody.text, nobody.why())
	for i := range list {
		if list[i].Access != "never" || all {
			fmt.Fprintf(w, "%s\t%s\t%s\n", label(&persons[i]), list[i].text, list[i].why())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, id := range groupIDs {
		g := groups[id]
		name := g.ID
		if g.Name != "" && g.Name != g.ID {
			name += " (" + g.Name + ")"
		}
		fmt.Fprintf(out, "group %s: of %d members %d always, %d under conditions\n", name, g.Members, g.Always, g.Conditional)
	}
	fmt.Fprintf(out, "%d people known: %d always, %d under conditions, %d never\n", len(list), count["always"], count["conditional"], count["never"])
	return nil
}

func whatCan(cmd *cobra.Command, policies *server.Policies, persons []impact.Person, user string, asJSON, all bool) error {
	at := slices.IndexFunc(persons, func(p impact.Person) bool { return p.ID == user || p.Email != "" && strings.EqualFold(p.Email, user) })
	if at < 0 {
		return usageError{fmt.Errorf("nobody known is called %q: give the e-mail address or id of one of the %d people known", user, len(persons))}
	}
	p := &persons[at]
	var list []accessReport
	for i := range policies.Routes {
		rp := &policies.Routes[i]
		r := newAccessReport(impact.NewSpace().Access(&rp.Impact, impact.KnownOf(p)))
		r.Route = rp.Label
		list = append(list, r)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"id": p.ID, "email": p.Email, "name": p.Name, "groups": p.Groups, "routes": list})
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s\n", label(p))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ROUTE\tACCESS\tRULE")
	count := map[string]int{}
	for i := range list {
		count[list[i].Access]++
		if list[i].Access != "never" || all {
			fmt.Fprintf(w, "%s\t%s\t%s\n", list[i].Route, list[i].text, list[i].why())
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "%d routes: %d always, %d under conditions, %d never\n", len(list), count["always"], count["conditional"], count["never"])
	return nil
}
