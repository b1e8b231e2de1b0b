package route

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
)

// identityOf hashes from, prefix, path, regex and action to 16 hex digits
// (configuration.md §3.4). Policies, names and every other setting leave the
// identity alone, so that it can name a cluster over years.
func identityOf(from From, s Spec) string {
	h := sha256.New()
	put := func(parts ...string) {
		for _, p := range parts {
			// Lengths in front keep "a","bc" and "ab","c" apart.
			h.Write([]byte(strconv.Itoa(len(p)) + ":" + p))
		}
	}
	put(from.String(), s.Prefix, s.Path, s.Regex)
	switch {
	case s.Redirect != "":
		put("redirect", s.Redirect)
	case s.Response != "":
		put("response", s.Response)
	default:
		put("to")
		put(s.To...)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// SortAPI orders routes that come from the API, the console or a cluster:
// from ascending, path descending, regex_priority_order descending (unset
// last), regex descending, prefix descending, id ascending
// (configuration.md §3.4). Routes of a file keep the order of the file.
func SortAPI(routes []*Route) {
	slices.SortStableFunc(routes, func(a, b *Route) int {
		return cmp.Or(
			strings.Compare(a.From.Raw, b.From.Raw),
			strings.Compare(b.Path, a.Path),
			comparePriority(a.priority, b.priority),
			strings.Compare(b.Regex, a.Regex),
			strings.Compare(b.Prefix, a.Prefix),
			strings.Compare(a.ID, b.ID),
		)
	})
}

// Merge gives the order in which routes are tried: those of the file as they
// stand, then those of API and console by SortAPI. A route of the API that
// equals one of the file is left out, without a word (configuration.md §3.4).
func Merge(file, api []*Route) []*Route {
	out := slices.Clone(file)
	have := make(map[string]bool, len(file))
	for _, r := range file {
		have[r.identity] = true
	}
	for _, r := range api {
		if !have[r.identity] {
			out = append(out, r)
		}
	}
	SortAPI(out[len(file):])
	return out
}

func comparePriority(a, b *int64) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return 1
	case b == nil:
		return -1
	}
	return cmp.Compare(*b, *a)
}
