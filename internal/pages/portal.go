package pages

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// App is one application in the portal.
type App struct {
	Name        string
	Type        string // "http", "tcp", "udp", "ssh" or "mcp"
	URL         string // where it opens in a browser; "" for a terminal
	Address     string // host, or host:port
	Description string
	Command     string // for a terminal: the command that connects
	LogoURL     string // https; "" or anything else shows a monogram
}

// PortalPage lists what the person may open.
type PortalPage struct {
	Bar   Bar
	Apps  []App
	Query string // what was searched for; Apps hold what was found
	Total int    // how many there are without the search
	Path  string // of this page, for the search form
}

// appKind is how a type of route is shown.
type appKind struct{ icon, word string }

var appKinds = map[string]appKind{
	"http": {"web", "HTTP"}, "tcp": {"server", "TCP"}, "udp": {"server", "UDP"},
	"ssh": {"terminal", "SSH"}, "mcp": {"web", "MCP"},
}

// Portal lists web applications, then those for a terminal. Status 200.
func (r *Renderer) Portal(w http.ResponseWriter, req *http.Request, p PortalPage) {
	type app struct {
		App
		Icon, Word string
	}
	type shelf struct {
		ID, Name string
		Apps     []app
	}
	type page struct {
		Summary, Action, Query        string
		Nothing, NothingWhy, ClearURL string
		Searchable                    bool
		Shelves                       []shelf
	}
	web, terminal := shelf{ID: "web", Name: "On the web"}, shelf{ID: "terminal", Name: "From a terminal"}
	var allow policyFor
	for _, a := range p.Apps {
		k, ok := appKinds[a.Type]
		if !ok {
			k = appKinds["http"]
		}
		if u, err := url.Parse(a.LogoURL); err != nil || u.Scheme != "https" || origin(a.LogoURL) == "" {
			a.LogoURL = ""
		} else {
			allow.images = append(allow.images, a.LogoURL)
		}
		if a.Name == "" {
			a.Name = a.Address
		}
		shown := app{App: a, Icon: k.icon, Word: k.word}
		if a.URL != "" && a.Command == "" {
			web.Apps = append(web.Apps, shown)
		} else {
			terminal.Apps = append(terminal.Apps, shown)
		}
	}
	query := shorten(p.Query, 200)
	v := page{Action: p.Path, Query: query, Searchable: p.Total > 0 || query != ""}
	for _, s := range []shelf{web, terminal} {
		if len(s.Apps) > 0 {
			v.Shelves = append(v.Shelves, s)
		}
	}
	title := "Applications"
	switch n := len(p.Apps); {
	case query != "" && n == 0:
		v.Summary = fmt.Sprintf("None of %d matches “%s”.", p.Total, query)
		v.Nothing, v.NothingWhy, v.ClearURL = "Nothing found", "No application you may open has these words in its name or address.", p.Path
	case query != "":
		v.Summary = fmt.Sprintf("%d of %d match “%s”.", n, p.Total, query)
	case n == 0:
		v.Summary = "None yet."
		v.Nothing, v.NothingWhy = "No applications yet", "When somebody gives you access, the application appears here. Nothing is wrong with your account."
	default:
		v.Summary = count(n) + " you may open."
	}
	r.page(w, req, http.StatusOK, "portal", view{Title: title, Nav: p.Bar.view("portal"), Page: v}, allow)
}

// count words small numbers, as a sentence begins with one.
func count(n int) string {
	words := []string{"None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve"}
	if n >= 0 && n < len(words) {
		return words[n]
	}
	return fmt.Sprint(n)
}

// Matches says whether an application has the words of a search in its name,
// address or description, in any case. An empty search matches everything.
func (a App) Matches(query string) bool {
	hay := strings.ToLower(a.Name + "\n" + a.Address + "\n" + a.Description)
	for _, word := range strings.Fields(strings.ToLower(query)) {
		if !strings.Contains(hay, word) {
			return false
		}
	}
	return true
}
