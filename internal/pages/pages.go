// Package pages is every page a person sees: templates, one stylesheet of
// design tokens, one small script, and the bodies that refusals take for
// clients that are not people.
//
//	r, err := pages.New(pages.Branding{Name: "Fernhill Observatory"})
//	...
//	r.SignIn(w, req, pages.SignInPage{Application: "Star Atlas", Providers: choices})
//	r.Error(w, req, pages.ErrorPage{Kind: pages.NotFound, Host: req.Host, RequestID: id})
//
// A page takes a plain struct of what is true and writes status, headers and
// body. It knows no session, no configuration and no clock: whoever calls it
// hands over names and times, and never a token. Values that arrive from
// outside (claims, group names, hosts) are only ever text; the two kinds of
// words an organisation writes itself (policy explanations and the branding
// paragraph) pass through Markdown, which emits a fixed handful of elements.
//
// Every page works without script, carries no inline script or style, and is
// sent with a Content-Security-Policy that allows neither.
package pages

import (
	"bytes"
	"embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

//go:embed templates/*.html
var templateFiles embed.FS

// Renderer renders the pages in one organisation's branding. It is immutable
// and safe for concurrent use; build a new one when the branding changes.
type Renderer struct {
	templates *template.Template
	brand     brandView
	words     template.HTML // the branding's error paragraph
	images    []string      // origins of branding images, for img-src
	assets    map[string]asset
	notes     []string
}

// New checks the branding and builds a Renderer. A malformed colour or URL is
// an error; a colour that would be too faint to read is shifted instead, and
// Notes says so.
func New(b Branding) (*Renderer, error) {
	t, err := template.New("pages").Funcs(template.FuncMap{
		"initials": initials, "initial": initial, "tint": tint,
	}).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("the embedded page templates do not parse: %w", err)
	}
	r := &Renderer{templates: t, words: Markdown(b.ErrorParagraph)}
	brandStyle, notes, err := b.stylesheet()
	if err != nil {
		return nil, err
	}
	r.notes = notes
	r.brand = brandView{Name: b.Name}
	if r.brand.Name == "" {
		r.brand.Name = "Postern"
	}
	for _, u := range []struct {
		key, value string
		to         *string
		image      bool
	}{
		{"logo_url", b.LogoURL, &r.brand.LogoURL, true},
		{"favicon_url", b.FaviconURL, &r.brand.Favicon, true},
		{"help_url", b.HelpURL, &r.brand.HelpURL, false},
		{"privacy_url", b.PrivacyURL, &r.brand.PrivacyURL, false},
	} {
		if u.value == "" {
			continue
		}
		parsed, err := url.Parse(u.value)
		mail := err == nil && !u.image && parsed.Scheme == "mailto" && parsed.Opaque != ""
		web := err == nil && (parsed.Scheme == "https" || parsed.Scheme == "http") && parsed.Host != ""
		if !mail && !web {
			return nil, fmt.Errorf("%s %q is not a web address; write it in full, starting with https://", u.key, u.value)
		}
		if u.image {
			o := origin(u.value)
			if o == "" {
				return nil, fmt.Errorf("%s %q has a host that cannot stand in a content policy; use a plain host name", u.key, u.value)
			}
			r.images = append(r.images, o)
		}
		*u.to = u.value
	}
	r.assets = buildAssets(&r.brand, brandStyle)
	return r, nil
}

// Notes are sentences for the administrator about what New had to change, for
// example a brand colour shifted to keep its contrast.
func (r *Renderer) Notes() []string { return r.notes }

// brandView is what every template may show of the branding.
type brandView struct {
	Name, LogoURL, Favicon    string
	HelpURL, PrivacyURL       string
	Style, BrandStyle, Script string // asset paths with their hash
}

// view is what a template is given.
type view struct {
	Title string // begins with the news
	Brand brandView
	Nav   *navView
	Page  any
}

type navView struct {
	Person, Current                   string
	PortalURL, AccountURL, SignOutURL string
}

// policyFor holds what one page adds to the content policy.
type policyFor struct {
	forms  []string // URLs whose origins a form may end at
	images []string // URLs whose origins may serve images
}

// csp builds the Content-Security-Policy. Whatever is not a plain origin is
// left out, so that no value can add a directive.
func (r *Renderer) csp(p policyFor) string {
	var b strings.Builder
	b.WriteString("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'")
	seen := map[string]bool{}
	for _, o := range r.images {
		if !seen[o] {
			seen[o] = true
			b.WriteString(" " + o)
		}
	}
	for _, u := range p.images {
		if o := origin(u); o != "" && !seen[o] {
			seen[o] = true
			b.WriteString(" " + o)
		}
	}
	b.WriteString("; connect-src 'self'; form-action 'self'")
	seen = map[string]bool{}
	for _, u := range p.forms {
		if o := origin(u); o != "" && !seen[o] {
			seen[o] = true
			b.WriteString(" " + o)
		}
	}
	b.WriteString("; frame-ancestors 'none'; base-uri 'none'")
	return b.String()
}

// origin gives scheme://host[:port] of an http or https URL, or "" for
// anything that cannot stand in a content policy.
func origin(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" {
		return ""
	}
	for i := range len(u.Host) {
		c := u.Host[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.', c == '-', c == ':', c == '[', c == ']', c == '_':
		default:
			return ""
		}
	}
	return u.Scheme + "://" + strings.ToLower(u.Host)
}

// page executes a template and sends it. Nothing is written before the whole
// page exists, so a failing template never leaves half a page.
func (r *Renderer) page(w http.ResponseWriter, req *http.Request, status int, name string, v view, p policyFor) {
	v.Brand = r.brand
	if v.Title != r.brand.Name {
		v.Title += " | " + r.brand.Name
	}
	var body bytes.Buffer
	if err := r.templates.ExecuteTemplate(&body, name, v); err != nil {
		// Unreachable with the tested templates; say something plain all the same.
		send(w, req, http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("This page could not be shown.\n"))
		return
	}
	h := w.Header()
	h.Set("Content-Security-Policy", r.csp(p))
	send(w, req, status, "text/html; charset=utf-8", body.Bytes())
}

// send writes a whole response that nobody may store. A HEAD request gets the
// same headers and no body.
func send(w http.ResponseWriter, req *http.Request, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Add("Vary", "Accept")
	h.Add("Vary", "Cookie")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if req.Method != http.MethodHead {
		_, _ = io.Copy(w, bytes.NewReader(body))
	}
}
