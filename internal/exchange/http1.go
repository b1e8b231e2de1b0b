package exchange

import "errors"

// The strict grammar of HTTP/1.1 messages (RFC 9112), which both sides of the
// proxy read before net/http sees a byte: the head guard in front of clients
// and the response guard in front of upstreams. Whatever two parsers could
// read in two ways is refused here.

// Limits on chunked framing. Extensions and trailers carry nothing we forward
// blindly, so a peer that sends many of them is up to something.
const (
	maxChunkExtension = 1 << 10 // bytes per chunk-size line
	maxTrailerBytes   = 4000    // the trailer section; net/http stops at 4 KiB
	maxTrailerFields  = 100
)

// Errors of ChunkScanner and ParseFieldLine.
var (
	ErrChunkSize      = errors.New("chunk size is malformed")
	ErrChunkExtension = errors.New("chunk extension is malformed or too long")
	ErrChunkEnd       = errors.New("chunk does not end with CRLF")
	ErrTrailer        = errors.New("trailer section is malformed or too long")
	ErrFieldFold      = errors.New("header line begins with white space")
	ErrFieldName      = errors.New("header name is not a token")
	ErrFieldValue     = errors.New("header value holds a control character")
	ErrFieldLineEnd   = errors.New("header line does not end with CRLF")
)

const (
	isTokenByte = 1 << iota // tchar of RFC 9110 §5.6.2
	isValueByte             // field-vchar, SP, HTAB, obs-text
	isHexByte
)

var byteClass = func() (t [256]uint8) {
	for c := 0x20; c < 256; c++ {
		if c != 0x7F {
			t[c] |= isValueByte
		}
	}
	t['\t'] |= isValueByte
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] |= isTokenByte
	}
	for _, c := range "0123456789abcdefABCDEF" {
		t[c] |= isHexByte
	}
	return t
}()

// IsToken reports whether s is a token (RFC 9110 §5.6.2), as header names and
// methods must be.
func IsToken[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if byteClass[s[i]]&isTokenByte == 0 {
			return false
		}
	}
	return len(s) > 0
}

// IsFieldValue reports whether s may stand as a header value: no control
// characters but HTAB.
func IsFieldValue[T string | []byte](s T) bool {
	for i := 0; i < len(s); i++ {
		if byteClass[s[i]]&isValueByte == 0 {
			return false
		}
	}
	return true
}

// ParseFieldLine splits a header line, given without its CRLF, into name and
// value. The value comes without the white space around it. Both alias line.
func ParseFieldLine(line []byte) (name, value []byte, err error) { return parseField(line) }

// ParseField is ParseFieldLine for a line that is a string.
func ParseField(line string) (name, value string, err error) { return parseField(line) }

func parseField[T string | []byte](line T) (name, value T, err error) {
	var none T
	i := 0
	for i < len(line) && byteClass[line[i]]&isTokenByte != 0 {
		i++
	}
	if i == 0 && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return none, none, ErrFieldFold
	}
	if i == 0 || i == len(line) || line[i] != ':' {
		return none, none, ErrFieldName
	}
	name, value = line[:i], line[i+1:]
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for n := len(value); n > 0 && (value[n-1] == ' ' || value[n-1] == '\t'); n-- {
		value = value[:n-1]
	}
	if !IsFieldValue(value) {
		return none, none, ErrFieldValue
	}
	return name, value, nil
}

// ChunkScanner follows chunked framing (RFC 9112 §7.1) through a byte stream
// and finds its end without copying. The zero value is at the start of a body.
type ChunkScanner struct {
	state  chunkState
	digits uint8
	size   uint64 // of the chunk size line, then bytes of data left
	line   int    // bytes of extension, or of the trailer line
	total  int    // bytes of the trailer section
	fields int
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	trailerEndLF
	chunkDone
	chunkBroken
)

// Scan reads on. n is how many bytes of p belong to the body and are in order;
// done says that the body ended there. n is less than len(p) only at the end
// of the body or before the byte that err complains about.
func (s *ChunkScanner) Scan(p []byte) (n int, done bool, err error) { return s.scan(p, false) }

// Next reads on as Scan does, but at most to the end of one run of payload,
// which is data, or to where the trailers begin.
func (s *ChunkScanner) Next(p []byte) (data []byte, n int, done bool, err error) {
	n, done, err = s.scan(p, true)
	if s.state == chunkData && n < len(p) {
		take := min(uint64(len(p)-n), s.size)
		data = p[n : n+int(take)]
		n += int(take)
		if s.size -= take; s.size == 0 {
			s.state = chunkDataCR
		}
	}
	return data, n, done, err
}

// InTrailers reports whether what is read next belongs to the trailer section.
func (s *ChunkScanner) InTrailers() bool { return s.state >= trailerStart && s.state <= trailerEndLF }

// scan stops, if told to, before a payload and before the trailers.
func (s *ChunkScanner) scan(p []byte, stop bool) (n int, done bool, err error) {
	for n < len(p) {
		c := p[n]
		switch s.state {
		case chunkSize:
			switch {
			case byteClass[c]&isHexByte != 0:
				// 15 digits: what net/http takes, and more than anybody has.
				if s.digits++; s.digits > 15 {
					return s.broken(n, ErrChunkSize)
				}
				s.size = s.size<<4 | uint64(hexValue(c))
			case s.digits == 0:
				return s.broken(n, ErrChunkSize)
			case c == ';':
				s.line, s.state = 0, chunkExt
			case c == '\r':
				s.state = chunkSizeLF
			default:
				return s.broken(n, ErrChunkSize)
			}
		case chunkExt:
			if s.line++; s.line > maxChunkExtension {
				return s.broken(n, ErrChunkExtension)
			}
			if c == '\r' {
				s.state = chunkSizeLF
			} else if byteClass[c]&isValueByte == 0 {
				return s.broken(n, ErrChunkExtension)
			}
		case chunkSizeLF:
			if c != '\n' {
				return s.broken(n, ErrChunkSize)
			}
			s.digits = 0
			if s.state = chunkData; s.size == 0 {
				s.state = trailerStart
			}
			if stop {
				// The line feed is used up, and counts to no trailer.
				return n + 1, false, nil
			}
		case chunkData:
			if stop {
				return n, false, nil
			}
			skip := uint64(len(p) - n)
			if skip > s.size {
				skip = s.size
			}
			s.size -= skip
			n += int(skip)
			if s.size == 0 {
				s.state = chunkDataCR
			}
			continue
		case chunkDataCR:
			if c != '\r' {
				return s.broken(n, ErrChunkEnd)
			}
			s.state = chunkDataLF
		case chunkDataLF:
			if c != '\n' {
				return s.broken(n, ErrChunkEnd)
			}
			s.state = chunkSize
		case trailerStart:
			switch {
			case c == '\r':
				s.state = trailerEndLF
			case byteClass[c]&isTokenByte != 0 && s.fields < maxTrailerFields:
				s.fields++
				s.state = trailerName
			default:
				return s.broken(n, ErrTrailer)
			}
		case trailerName:
			if c == ':' {
				s.state = trailerValue
			} else if byteClass[c]&isTokenByte == 0 {
				return s.broken(n, ErrTrailer)
			}
		case trailerValue:
			if c == '\r' {
				s.state = trailerLF
			} else if byteClass[c]&isValueByte == 0 {
				return s.broken(n, ErrTrailer)
			}
		case trailerLF:
			if c != '\n' {
				return s.broken(n, ErrTrailer)
			}
			s.state = trailerStart
		case trailerEndLF:
			if c != '\n' {
				return s.broken(n, ErrTrailer)
			}
			s.state = chunkDone
			return n + 1, true, nil
		case chunkDone:
			return n, true, nil
		default:
			return n, false, ErrChunkSize
		}
		if s.state >= trailerStart && s.state <= trailerLF {
			if s.total++; s.total > maxTrailerBytes {
				return s.broken(n, ErrTrailer)
			}
		}
		n++
	}
	return n, s.state == chunkDone, nil
}

func (s *ChunkScanner) broken(n int, err error) (int, bool, error) {
	s.state = chunkBroken
	return n, false, err
}

func hexValue(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}
