package telemetry

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// The two request logs are written for every request, so their lines are
// appended by hand instead of through reflection. Each appendX adds a value;
// key adds a comma where one is due, the name and the colon.

// line builds one JSON object.
type line struct{ b []byte }

func (l *line) open() { l.b = append(l.b, '{') }

func (l *line) key(name string) {
	if n := len(l.b); n > 0 && l.b[n-1] != '{' {
		l.b = append(l.b, ',')
	}
	l.b = append(l.b, '"')
	l.b = append(l.b, name...) // names are ours and need no escaping
	l.b = append(l.b, '"', ':')
}

func (l *line) str(name, value string) {
	l.key(name)
	l.b = appendString(l.b, value)
}

func (l *line) bool(name string, v bool) {
	l.key(name)
	l.b = strconv.AppendBool(l.b, v)
}

func (l *line) int(name string, v int64) {
	l.key(name)
	l.b = strconv.AppendInt(l.b, v, 10)
}

func (l *line) uint(name string, v uint64) {
	l.key(name)
	l.b = strconv.AppendUint(l.b, v, 10)
}

// millis writes a duration as floating milliseconds with microseconds kept.
func (l *line) millis(name string, d time.Duration) {
	l.key(name)
	ms := math.Round(float64(d)/1e3) / 1e3
	l.b = strconv.AppendFloat(l.b, ms, 'f', -1, 64)
}

func (l *line) time(name string, t time.Time) {
	l.key(name)
	l.b = append(l.b, '"')
	l.b = t.AppendFormat(l.b, time.RFC3339Nano)
	l.b = append(l.b, '"')
}

func (l *line) strs(name string, list []string) {
	l.key(name)
	l.b = append(l.b, '[')
	for i, s := range list {
		if i == maxItems {
			break
		}
		if i > 0 {
			l.b = append(l.b, ',')
		}
		l.b = appendString(l.b, s)
	}
	l.b = append(l.b, ']')
}

func (l *line) close() { l.b = append(l.b, '}', '\n') }

const hexDigits = "0123456789abcdef"

// appendString writes s as a JSON string. At most maxText bytes of it are
// written, control characters and what is not UTF-8 are escaped, so a value
// can neither end the string nor begin a line of its own. U+2028 and U+2029
// are escaped too: some log viewers break lines there.
func appendString(b []byte, s string) []byte {
	s = bounded(s)
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= 0x20 && c != '"' && c != '\\' && c != 0x7f {
				i++
				continue
			}
			b = append(b, s[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, s[start:i]...)
			b = append(b, `\ufffd`...)
		case r == '\u2028' || r == '\u2029' || r <= 0x9f: // C1 controls steer terminals too
			b = append(b, s[start:i]...)
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		default:
			i += n
			continue
		}
		i += n
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

// json writes a value that its maker has bounded and redacted. One that cannot
// be encoded, or is far too long for a line, is left out.
func (l *line) json(name string, v any) {
	b, err := json.Marshal(v)
	if err != nil || len(b) > 4*maxText {
		return
	}
	l.key(name)
	l.b = append(l.b, b...)
}

// object writes a small map of claims with sorted names. Values are bounded
// and tokens in them redacted; what cannot be encoded is left out.
func (l *line) object(name string, m map[string]any) {
	l.key(name)
	l.b = append(l.b, '{')
	n := 0
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v, err := json.Marshal(m[k])
		if err != nil || len(v) > maxText || n == maxItems {
			continue
		}
		if n > 0 {
			l.b = append(l.b, ',')
		}
		n++
		l.b = appendString(l.b, k)
		l.b = append(l.b, ':')
		if secretKey(k) {
			l.b = append(l.b, `"`+redacted+`"`...)
			continue
		}
		for _, r := range redactText(string(v)) {
			// encoding/json leaves DEL and the C1 controls as they are.
			if r >= 0x7f && r <= 0x9f {
				l.b = append(l.b, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
			} else {
				l.b = utf8.AppendRune(l.b, r)
			}
		}
	}
	l.b = append(l.b, '}')
}
