package proxy

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	"postern/internal/exchange"
	"postern/internal/route"
)

// location is where a redirect route sends a request (configuration.md §3.2).
func (rd *Redirect) location(rt *route.Route, v exchange.View) string {
	scheme := v.Scheme()
	switch {
	case rd.HTTPSRedirect != nil && *rd.HTTPSRedirect:
		scheme = "https"
	case rd.SchemeRedirect != nil && *rd.SchemeRedirect != "":
		scheme = *rd.SchemeRedirect
	}
	host := v.Authority()
	if rd.HostRedirect != nil && *rd.HostRedirect != "" {
		host = *rd.HostRedirect
	}
	if rd.PortRedirect != nil && *rd.PortRedirect != 0 {
		host = withPort(host, strconv.Itoa(int(*rd.PortRedirect)))
	} else if scheme != v.Scheme() {
		// The default port of the old scheme says nothing about the new one.
		if h, p, err := net.SplitHostPort(host); err == nil && p == map[string]string{"http": "80", "https": "443"}[v.Scheme()] {
			host = withPort(h, "")
		}
	}
	path := v.Path()
	switch {
	case rd.PathRedirect != nil && *rd.PathRedirect != "":
		path = *rd.PathRedirect
	case rd.PrefixRewrite != nil && *rd.PrefixRewrite != "":
		path = *rd.PrefixRewrite + path[len(rt.MatchedPrefix(path)):]
	}
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	if v.HasQuery() && !strings.Contains(path, "?") && (rd.StripQuery == nil || !*rd.StripQuery) {
		path += "?" + v.RawQuery()
	}
	return scheme + "://" + host + path
}

func (rd *Redirect) status() int {
	if rd.ResponseCode == nil {
		return http.StatusMovedPermanently
	}
	return *rd.ResponseCode
}

// withPort gives host with another port, "" for none.
func withPort(host, port string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if strings.IndexByte(host, ':') >= 0 {
		host = "[" + host + "]"
	}
	if port != "" {
		host += ":" + port
	}
	return host
}

// RedirectHandler answers every plain HTTP request with 301 to its https URL
// (http_redirect_addr, wire-contract.md §1.1 step 1). The port of the
// request is dropped, for it is the one that spoke HTTP.
func RedirectHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Connection", "close")
		h.Set("Cache-Control", "no-store")
		authority, _, err := exchange.CanonicalAuthority(r.Host)
		raw, query, hasQuery := splitTarget(r)
		if err != nil || r.Method == http.MethodConnect || !strings.HasPrefix(raw, "/") || !validTarget(raw) || !validTarget(query) {
			http.Error(w, "bad request", http.StatusBadRequest)
			return
		}
		// The path is not normalised here: the https side does it.
		target := "https://" + withPort(authority, "") + raw
		if hasQuery {
			target += "?" + query
		}
		h.Set("Location", target)
		h.Set("Content-Length", "0")
		w.WriteHeader(http.StatusMovedPermanently)
	})
}
