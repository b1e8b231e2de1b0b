package demo

import (
	"encoding/json"
	"net/http"
	"sort"
	"strings"
	"time"

	"github.com/coder/websocket"

	"postern/internal/pages"
)

// application is the sample that stands behind the door. It plays a program of
// somebody else's: it has no login, learns who is there from the signed
// assertion alone, and looks up the key set like any application would.
type application struct {
	pages  *pages.Renderer
	verify *verifier
	doors  []pages.Link
}

func (a *application) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", a.home)
	mux.HandleFunc("/headers", a.headers)
	mux.HandleFunc("/ws", a.echo)
	mux.HandleFunc("/public", a.public)
	return mux
}

func hostOf(r *http.Request) string {
	if h := r.Header.Get("X-Forwarded-Host"); h != "" {
		return h
	}
	return r.Host
}

func (a *application) home(w http.ResponseWriter, r *http.Request) {
	c, checks, ok := a.verify.verify(r)
	page := pages.SamplePage{
		Host: hostOf(r), Now: time.Now(), Verified: ok,
		Person: c.Name, Email: c.Email, Groups: c.Groups, UserID: c.Subject,
		Doors: a.doors, SignOutURL: "/.pomerium/sign_out",
	}
	for _, x := range checks {
		page.Checks = append(page.Checks, pages.Check{Passed: x.ok, Title: x.title, Before: x.before, Code: x.code, After: x.after})
	}
	a.pages.Sample(w, r, page)
}

// headers shows what reaches an application: identity, and neither cookie nor
// session.
func (a *application) headers(w http.ResponseWriter, r *http.Request) {
	names := make([]string, 0, len(r.Header))
	for k := range r.Header {
		names = append(names, k)
	}
	sort.Strings(names)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	var b strings.Builder
	b.WriteString("What this application was sent, header by header:\n\n" + r.Method + " " + r.URL.RequestURI() + "\nHost: " + r.Host + "\n")
	for _, k := range names {
		for _, v := range r.Header[k] {
			b.WriteString(k + ": " + v + "\n")
		}
	}
	_, _ = w.Write([]byte(b.String()))
}

// public is reached without signing in: there is nobody to greet.
func (a *application) public(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"message": "anyone may read this", "path": r.URL.Path, "assertion": r.Header.Get(assertionHeader) != ""})
}

// echo answers every WebSocket message with itself, until the door cuts it.
func (a *application) echo(w http.ResponseWriter, r *http.Request) {
	// The door checked who is there; the browser's Origin names the public
	// host, which this application does not know.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for {
		kind, b, err := c.Read(r.Context())
		if err != nil {
			return
		}
		if err := c.Write(r.Context(), kind, b); err != nil {
			return
		}
	}
}
