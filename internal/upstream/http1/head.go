package http1

import (
	"bytes"
	"strings"

	"postern/internal/exchange"
)

// Expect is what was asked, as far as the answer's framing depends on it.
type Expect struct {
	// Head: the method was HEAD, so that no body follows.
	Head bool
	// Upgrade: 101 is an answer to this request.
	Upgrade bool
}

// Answer is the head of an answer.
type Answer struct {
	Status int
	// Fields are those that concern the client: without hop-by-hop ones
	// (RFC 9110 §7.6.1) and those that Connection names, in the order and the
	// spelling that came. They stay valid; only the slice is used again by
	// the next ReadHead into the same Answer.
	Fields []exchange.Field
	// Length is what Content-Length says, -1 without one: of the body or, in
	// answers to HEAD and in 304, of the body that a GET would have got.
	Length int64
	// Bodiless: no body follows, whatever the fields say.
	Bodiless bool
	// Upgrade is the Upgrade field of 101.
	Upgrade string
	// Trailer names the trailers that are announced, joined by commas.
	Trailer string
}

// ReadHead reads the next head into a: of a 1xx answer, after which another
// follows, or the final one. io.EOF means that the connection ended before the
// first byte of it. After an error of the connection, such as a deadline, it
// may be called again.
func (c *Conn) ReadHead(a *Answer, e Expect) error {
	for {
		if len(c.in) > 0 {
			end, err := headEnd(c.in, c.scanned)
			if err != nil {
				return c.fail(err)
			}
			if end > 0 {
				c.scanned = 0
				if err := c.accept(a, c.in[:end], c.in[end:], e); err != nil {
					return c.fail(err)
				}
				c.in = c.in[end:]
				return nil
			}
			c.scanned = len(c.in)
		}
		if err := c.more(); err != nil {
			return err
		}
	}
}

// accept reads a whole head, and checks as much of the body as came with it:
// while nothing went to the client, the answer can still be refused.
func (c *Conn) accept(a *Answer, head, rest []byte, e Expect) error {
	chunked, err := c.parse(a, head)
	if err != nil {
		return err
	}
	switch s := a.Status; {
	case s == 101:
		if !e.Upgrade {
			return malformed("status 101 without being asked to upgrade")
		}
		c.phase, a.Bodiless = tunnel, true
	case s < 200:
		if c.interim++; c.interim > MaxInterim {
			return malformed("more than %d interim answers", MaxInterim)
		}
		if chunked || a.Length > 0 {
			return malformed("status %d with a body", s)
		}
		a.Bodiless = true
	case e.Head || s == 204 || s == 304 || a.Length == 0 && !chunked:
		if len(rest) > 0 {
			return errBytesAfterEnd
		}
		c.phase, a.Bodiless = ended, true
	case chunked:
		c.phase, c.chunks = inChunks, exchange.ChunkScanner{}
		probe := c.chunks
		switch n, done, err := probe.Scan(rest); {
		case err != nil:
			return malformed("%v", err)
		case done && n < len(rest):
			return errBytesAfterEnd
		}
	case a.Length > 0:
		if int64(len(rest)) > a.Length {
			return errBytesAfterEnd
		}
		c.phase, c.left = inLength, a.Length
	default:
		c.phase, c.keep = inClose, false
	}
	return nil
}

const statusPrefix = "HTTP/1."

// headEnd finds the end of a head, or 0, and refuses what cannot become one.
// The bytes before from were looked at already.
func headEnd(buf []byte, from int) (int, error) {
	if from > 0 && from < len(buf) && buf[from-1] == '\r' && buf[from] != '\n' {
		return 0, errBareCR
	}
	for i := from; i < len(buf); {
		if i < len(statusPrefix) {
			if buf[i] != statusPrefix[i] {
				return 0, malformed("answer does not begin with HTTP/1.")
			}
			i++
			continue
		}
		switch n := bytes.IndexByte(buf[i:], '\n'); {
		case n >= 0:
			line := buf[i : i+n]
			i += n
			if buf[i-1] != '\r' {
				return 0, malformed("line in the head does not end with CRLF")
			}
			if err := innerBytes(line); err != nil {
				return 0, err
			}
			if buf[i-2] == '\n' {
				return i + 1, nil
			}
			i++
		default:
			if err := innerBytes(buf[i:]); err != nil {
				return 0, err
			}
			i = len(buf)
		}
		if i > MaxHeadBytes {
			return 0, errHeadTooLarge
		}
	}
	if len(buf) > MaxHeadBytes {
		return 0, errHeadTooLarge
	}
	return 0, nil
}

var (
	errHeadTooLarge = malformed("response head is larger than 128 KiB")
	errBareCR       = malformed("carriage return without line feed in the head")
)

// innerBytes refuses what may not stand within a line. A carriage return may be
// its last byte: what follows is looked at with the next one.
func innerBytes(line []byte) error {
	if i := bytes.IndexByte(line, '\r'); i >= 0 && i != len(line)-1 {
		return errBareCR
	}
	if bytes.IndexByte(line, 0) >= 0 {
		return malformed("NUL in the head")
	}
	return nil
}

// parse reads a head that ends with an empty line.
func (c *Conn) parse(a *Answer, head []byte) (chunked bool, err error) {
	// One copy for all names and values: they outlive the buffer.
	text := string(head)
	a.Status, a.Length, a.Bodiless, a.Upgrade, a.Trailer = 0, -1, false, "", ""
	if a.Fields = a.Fields[:0]; a.Fields == nil {
		a.Fields = make([]exchange.Field, 0, 12)
	}
	i := strings.IndexByte(text, '\n')
	line, rest := text[:i-1], text[i+1:]
	// HTTP/1.x SP 3DIGIT [SP reason]
	if len(line) < 12 || line[:7] != statusPrefix || (line[7] != '0' && line[7] != '1') || line[8] != ' ' ||
		(len(line) > 12 && line[12] != ' ') {
		return false, malformed("status line is malformed")
	}
	for _, d := range line[9:12] {
		if d < '0' || d > '9' {
			return false, malformed("status is not a number")
		}
		a.Status = a.Status*10 + int(d-'0')
	}
	if a.Status < 100 {
		return false, malformed("status is out of range")
	}
	if len(line) > 13 && !exchange.IsFieldValue(line[13:]) {
		return false, malformed("control character in the status line")
	}
	one := line[7] == '1'
	closes, stays := false, false
	named := false // Connection names fields
	fields := 0
	for len(rest) > 2 {
		if fields++; fields > MaxHeadFields {
			return false, malformed("response has more than 1000 headers")
		}
		i := strings.IndexByte(rest, '\n')
		name, value, err := exchange.ParseField(rest[:i-1])
		if err != nil {
			return false, malformed("%v", err)
		}
		rest = rest[i+1:]
		switch kindOf(name) {
		case endToEnd:
			a.Fields = append(a.Fields, exchange.Field{Name: name, Value: value})
		case contentLength:
			if a.Length >= 0 {
				return false, malformed("more than one Content-Length")
			}
			if a.Length, err = parseLength(value); err != nil {
				return false, err
			}
		case transferEncoding:
			if chunked || !strings.EqualFold(value, "chunked") {
				return false, malformed("Transfer-Encoding is not exactly chunked")
			}
			if !one {
				return false, malformed("Transfer-Encoding in an HTTP/1.0 response")
			}
			chunked = true
		case connection:
			for token := range strings.SplitSeq(value, ",") {
				switch token = strings.TrimSpace(token); {
				case token == "":
				case strings.EqualFold(token, "close"):
					closes = true
				case strings.EqualFold(token, "keep-alive"):
					stays = true
				case kindOf(token) == endToEnd:
					named = true
				}
			}
		case upgrade:
			a.Upgrade = value
		case trailer:
			if a.Trailer != "" {
				value = a.Trailer + ", " + value
			}
			a.Trailer = value
		}
	}
	if chunked && a.Length >= 0 {
		return false, malformed("both Content-Length and Transfer-Encoding")
	}
	if a.Status >= 200 {
		c.keep = !closes && (one || stays)
	}
	if named {
		dropNamed(a, text)
	}
	return chunked, nil
}

// dropNamed removes the fields that Connection names: they were for us.
func dropNamed(a *Answer, text string) {
	names := map[string]bool{}
	for line := range strings.SplitSeq(text, "\r\n") {
		name, value, err := exchange.ParseField(line)
		if err != nil || kindOf(name) != connection {
			continue
		}
		for token := range strings.SplitSeq(value, ",") {
			names[strings.ToLower(strings.TrimSpace(token))] = true
		}
	}
	kept := a.Fields[:0]
	for _, f := range a.Fields {
		if !names[strings.ToLower(f.Name)] {
			kept = append(kept, f)
		}
	}
	a.Fields = kept
}

func parseLength(s string) (int64, error) {
	if len(s) == 0 || len(s) > 18 {
		return 0, malformed("Content-Length is not a number")
	}
	var n int64
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, malformed("Content-Length is not a number")
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, nil
}

// kind is what a field is to this connection.
type kind uint8

const (
	endToEnd kind = iota
	dropped       // ends here, and says nothing we use
	contentLength
	transferEncoding
	connection
	upgrade
	trailer
)

func kindOf(name string) kind {
	switch len(name) {
	case 2:
		if strings.EqualFold(name, "TE") {
			return dropped
		}
	case 4:
		if strings.EqualFold(name, "Host") {
			return dropped
		}
	case 6:
		if strings.EqualFold(name, "Expect") {
			return dropped
		}
	case 7:
		switch {
		case strings.EqualFold(name, "Upgrade"):
			return upgrade
		case strings.EqualFold(name, "Trailer"):
			return trailer
		}
	case 10:
		switch {
		case strings.EqualFold(name, "Connection"):
			return connection
		case strings.EqualFold(name, "Keep-Alive"):
			return dropped
		}
	case 14:
		switch {
		case strings.EqualFold(name, "Content-Length"):
			return contentLength
		case strings.EqualFold(name, "HTTP2-Settings"):
			return dropped
		}
	case 16:
		if strings.EqualFold(name, "Proxy-Connection") {
			return dropped
		}
	case 17:
		if strings.EqualFold(name, "Transfer-Encoding") {
			return transferEncoding
		}
	case 18:
		if strings.EqualFold(name, "Proxy-Authenticate") {
			return dropped
		}
	case 19:
		if strings.EqualFold(name, "Proxy-Authorization") {
			return dropped
		}
	}
	return endToEnd
}

// HopByHop reports whether a field ends at this hop, or is made anew from what
// it says (RFC 9110 §7.6.1): lengths, codings, Host, Expect, Trailer, TE.
func HopByHop(name string) bool { return kindOf(name) != endToEnd }
