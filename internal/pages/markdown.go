package pages

import (
	"html/template"
	"net/url"
	"strings"
)

// Words that an organisation writes (a policy's explanation and remediation,
// the branding paragraph) are bounded, whoever wrote them.
const (
	mostMarkdown = 8 << 10 // bytes read of one text
	mostNesting  = 4       // emphasis within emphasis
	mostLabel    = 300     // bytes of a link's words
	mostTarget   = 1024    // bytes of a link's address
)

// Markdown renders the few things a refusal may say: paragraphs, emphasis,
// inline code, flat lists, and links to http, https and mailto addresses.
// There is no HTML, no image and no heading: whatever is not understood is
// shown as the text it is. The result holds only p, ul, ol, li, strong, em,
// code, br and a[href], every value escaped.
func Markdown(source string) template.HTML {
	if len(source) > mostMarkdown {
		source = shorten(source, mostMarkdown)
	}
	source = strings.ToValidUTF8(source, "\uFFFD")
	source = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\x00", "\uFFFD").Replace(source)
	var out strings.Builder
	var para []string
	list := "" // the open list element, if any
	item := false
	flush := func() {
		if len(para) == 0 {
			return
		}
		if !item {
			out.WriteString("<p>")
		}
		for i, line := range para {
			if i > 0 {
				if strings.HasSuffix(para[i-1], "  ") {
					out.WriteString("<br>")
				} else {
					out.WriteByte('\n')
				}
			}
			inline(&out, strings.TrimSpace(line), 0)
		}
		if item {
			out.WriteString("</li>")
		} else {
			out.WriteString("</p>")
		}
		para, item = nil, false
	}
	closeList := func() {
		if list != "" {
			out.WriteString("</" + list + ">")
			list = ""
		}
	}
	for _, line := range strings.Split(source, "\n") {
		if strings.TrimSpace(line) == "" {
			flush()
			continue
		}
		kind, rest := listItem(line)
		switch {
		case kind != "":
			flush()
			if kind != list {
				closeList()
				out.WriteString("<" + kind + ">")
				list = kind
			}
			out.WriteString("<li>")
			item, para = true, []string{rest}
		case len(para) > 0: // continues the paragraph or item
			para = append(para, line)
		default:
			closeList()
			para = []string{line}
		}
	}
	flush()
	closeList()
	return template.HTML(out.String()) //nolint:gosec // built from escaped text and fixed elements only
}

// listItem tells a list line from a plain one: "- x", "* x", "+ x", "12. x".
func listItem(line string) (kind, rest string) {
	s := strings.TrimLeft(line, " \t")
	if len(s) >= 2 && strings.ContainsRune("-*+", rune(s[0])) && s[1] == ' ' {
		if rest = strings.TrimSpace(s[2:]); rest != "" {
			return "ul", rest
		}
		return "", ""
	}
	digits := 0
	for digits < len(s) && digits < 4 && s[digits] >= '0' && s[digits] <= '9' {
		digits++
	}
	if digits > 0 && len(s) > digits+1 && (s[digits] == '.' || s[digits] == ')') && s[digits+1] == ' ' {
		if rest = strings.TrimSpace(s[digits+2:]); rest != "" {
			return "ol", rest
		}
	}
	return "", ""
}

// inline renders one stretch of text. Each rule looks for its closing mark
// once and otherwise emits the mark as text, so the work is bounded by length
// times nesting.
func inline(out *strings.Builder, s string, depth int) {
	plain := 0
	flush := func(to int) { out.WriteString(template.HTMLEscapeString(s[plain:to])) }
	// absent remembers marks that have no partner further on, so that a text
	// of a thousand opening marks is not searched a thousand times.
	absent := map[string]bool{}
	find := func(from int, mark string) int {
		if absent[mark] {
			return -1
		}
		i := strings.Index(s[from:], mark)
		if i < 0 {
			absent[mark] = true
			return -1
		}
		return from + i
	}
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s) && strings.IndexByte("\\`*_[]()<>#+-.!", s[i+1]) >= 0:
			flush(i)
			plain = i + 1
			i += 2
		case c == '`':
			end := find(i+1, "`")
			if end <= i+1 {
				i++
				continue
			}
			flush(i)
			out.WriteString("<code>" + template.HTMLEscapeString(s[i+1:end]) + "</code>")
			i, plain = end+1, end+1
		case (c == '*' || c == '_') && depth < mostNesting:
			mark, tag := s[i:i+1], "em"
			if strings.HasPrefix(s[i+1:], mark) {
				mark, tag = s[i:i+2], "strong"
			}
			from := i + len(mark)
			// snake_case and 2*3 are not emphasis.
			inWord := c == '_' && i > 0 && isWord(s[i-1])
			end := -1
			if !inWord && from < len(s) && s[from] != ' ' {
				end = find(from, mark)
			}
			if end <= from || s[end-1] == ' ' || (c == '_' && end+len(mark) < len(s) && isWord(s[end+len(mark)])) {
				i += len(mark)
				continue
			}
			flush(i)
			out.WriteString("<" + tag + ">")
			inline(out, s[from:end], depth+1)
			out.WriteString("</" + tag + ">")
			i, plain = end+len(mark), end+len(mark)
		case c == '[' && (i == 0 || s[i-1] != '!') && depth < mostNesting:
			mid := find(i+1, "](")
			if mid < 0 || mid-i > mostLabel {
				i++
				continue
			}
			end := find(mid+2, ")")
			if end < 0 || end-mid > mostTarget {
				i++
				continue
			}
			label, target := s[i+1:mid], s[mid+2:end]
			href := linkTarget(target)
			if href == "" || label == "" || strings.ContainsAny(label, "[]") {
				i++
				continue
			}
			flush(i)
			out.WriteString(`<a href="` + template.HTMLEscapeString(href) + `" rel="noreferrer">`)
			out.WriteString(template.HTMLEscapeString(label))
			out.WriteString("</a>")
			i, plain = end+1, end+1
		case c == '<':
			end := find(i+1, ">")
			href := ""
			if end > 0 && end-i <= mostTarget {
				href = linkTarget(s[i+1 : end])
			}
			if href == "" {
				i++
				continue
			}
			flush(i)
			out.WriteString(`<a href="` + template.HTMLEscapeString(href) + `" rel="noreferrer">` +
				template.HTMLEscapeString(strings.TrimPrefix(href, "mailto:")) + "</a>")
			i, plain = end+1, end+1
		default:
			i++
		}
	}
	flush(len(s))
}

func isWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// linkTarget gives a safe absolute address, or "". Only http, https and mailto
// pass, decided on the parsed URL, which is then written out again.
func linkTarget(s string) string {
	s = strings.TrimSpace(s)
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f || s[i] == '\\' {
			return ""
		}
	}
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" || u.User != nil {
			return ""
		}
	case "mailto":
		if u.Opaque == "" {
			return ""
		}
	default:
		return ""
	}
	return u.String()
}
