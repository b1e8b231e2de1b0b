package upstream

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

// response is what an upstream said: the head, and the way to the rest. It is
// read by one goroutine.
type response interface {
	// status of the final head.
	status() int
	// head gives the head without hop-by-hop fields.
	head() ResponseHead
	// bodiless: nothing follows the head, whatever it says.
	bodiless() bool
	// next gives the next piece of the body, never empty and valid until the
	// following call; io.EOF at its proper end.
	next() ([]byte, error)
	// ready reports whether next has something at hand and waits for nothing.
	ready() bool
	// trailers are valid after io.EOF.
	trailers() []exchange.Field
	// tunnel gives the connection after 101, or nil. upgrade is what the
	// upstream chose.
	tunnel() (conn io.ReadWriteCloser, upgrade string)
	// close lets go of the connection, which is used again if all is well.
	close()
}

// describe completes the head of an answer without a body: it says what a GET
// would get.
func describe(h *ResponseHead, isHead, bodiless bool) {
	if bodiless && !isHead {
		if h.Status == http.StatusNotModified && h.Length >= 0 {
			h.Add("Content-Length", contentLength(h.Length))
		}
		h.Length = 0
	} else if isHead && h.Length >= 0 {
		h.Add("Content-Length", contentLength(h.Length))
	}
}

// transported is an answer that Transport read: HTTP/2 and HTTP/3.
type transported struct {
	resp   *http.Response
	isHead bool
	buf    patient
	took   int // how much of buf is in use
}

func (a *transported) status() int { return a.resp.StatusCode }

func (a *transported) bodiless() bool {
	return a.isHead || a.resp.StatusCode == http.StatusNoContent || a.resp.StatusCode == http.StatusNotModified
}

func (a *transported) head() ResponseHead {
	h := ResponseHead{Status: a.resp.StatusCode, Length: a.resp.ContentLength, Fields: endToEnd(a.resp.Header)}
	if a.resp.Header.Get("Content-Length") == "" && a.bodiless() {
		h.Length = -1
	}
	describe(&h, a.isHead, a.bodiless())
	if len(a.resp.Trailer) > 0 && !a.bodiless() {
		h.Add("Trailer", strings.Join(slices.Sorted(maps.Keys(a.resp.Trailer)), ", "))
	}
	return h
}

func (a *transported) next() ([]byte, error) {
	a.buf.took(a.took)
	if a.buf.large == nil && a.resp.ContentLength > patientSize {
		a.buf.large = copyBuffers.Get().(*[]byte)
	}
	for {
		b := a.buf.next()
		n, err := a.resp.Body.Read(b)
		if a.took = n; n > 0 {
			return b[:n], nil // an error comes again
		}
		if err != nil {
			return nil, err
		}
	}
}

func (a *transported) ready() bool { return false }

func (a *transported) trailers() []exchange.Field { return endToEnd(a.resp.Trailer) }

func (a *transported) tunnel() (io.ReadWriteCloser, string) { return nil, "" }

func (a *transported) close() {
	a.resp.Body.Close()
	a.buf.free()
}

// endToEnd lists the fields of a response that go on to the client, in the
// order of their names.
func endToEnd(h http.Header) []exchange.Field {
	var named map[string]bool
	for _, value := range h["Connection"] {
		for token := range strings.SplitSeq(value, ",") {
			if named == nil {
				named = map[string]bool{}
			}
			named[strings.ToLower(strings.TrimSpace(token))] = true
		}
	}
	fields := make([]exchange.Field, 0, len(h)+2)
	for _, name := range slices.Sorted(maps.Keys(h)) {
		if http1.HopByHop(name) || named[strings.ToLower(name)] {
			continue
		}
		for _, value := range h[name] {
			fields = append(fields, exchange.Field{Name: name, Value: value})
		}
	}
	return fields
}

// direct is an answer over a connection of our own: HTTP/1.1.
type direct struct {
	e      *trip
	conn   *http1.Conn
	sender *sender // nil without a body
	reuse  *idleConns
	isHead bool
	http1.Answer
}

func (a *direct) status() int { return a.Status }

func (a *direct) bodiless() bool { return a.Bodiless }

func (a *direct) head() ResponseHead {
	h := ResponseHead{Status: a.Status, Length: a.Length, Fields: a.Fields}
	describe(&h, a.isHead, a.Bodiless)
	if a.Trailer != "" && !a.Bodiless {
		var names []string
		for name := range strings.SplitSeq(a.Trailer, ",") {
			if name = strings.TrimSpace(name); exchange.IsToken(name) && !http1.HopByHop(name) {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			h.Add("Trailer", strings.Join(names, ", "))
		}
	}
	return h
}

func (a *direct) next() ([]byte, error) { return a.conn.Next() }

func (a *direct) ready() bool { return a.conn.Ready() }

func (a *direct) trailers() []exchange.Field { return a.conn.Trailers() }

func (a *direct) tunnel() (io.ReadWriteCloser, string) { return a.conn, strings.TrimSpace(a.Upgrade) }

func (a *direct) close() {
	if a.reuse != nil && a.conn.Reusable() && a.sender.sent() && a.e.releaseConn() && a.reuse.put(a.conn) {
		return
	}
	a.conn.Rest()
	a.conn.Close()
}

func contentLength(n int64) string { return strconv.FormatInt(n, 10) }
