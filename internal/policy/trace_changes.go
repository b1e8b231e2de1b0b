package policy

import (
	"slices"
	"strings"
)

// Change is one thing that has to become otherwise for a request to be let in.
type Change struct {
	// Criterion and Path name what has to come out differently; both are ""
	// for signing in.
	Criterion string `json:"criterion,omitempty"`
	Path      string `json:"path,omitempty"`
	// Value is what it has to become.
	Value bool `json:"value"`
	// Identity: only somebody else, or the same person with other groups or
	// claims, can satisfy it.
	Identity bool   `json:"identity,omitempty"`
	Text     string `json:"text"`
}

// Bounds of the search for changes. Within maxAtoms distinct criteria the
// result is the smallest set there is, up to maxChanges of them.
const (
	maxAtoms        = 20
	maxChanges      = 4
	maxAlternatives = 4
	maxTried        = 400
	maxSearched     = 256       // criteria of policies that are searched wholly
	maxWork         = 1_000_000 // criteria combined in all
)

// atom is a criterion with its value; where it stands twice it is one thing.
type atom struct {
	use   *Use
	at    []*verdict // where it stands in the walk
	plain []verdict  // what those were
}

// changes searches for the smallest sets of criteria whose change lets the
// request in. Where nobody is signed in, signing in is one more change, after
// which a stranger is assumed: somebody who matches nothing by chance.
func (w *walk) changes(in *Input) [][]Change {
	if !w.mayAllow() {
		return nil
	}
	var after *walk
	if !in.HasSession && w.asksWho() {
		stranger := *in
		stranger.HasSession, stranger.HasDirectory = true, true
		stranger.SessionID, stranger.UserID, stranger.Email = "?", "\x00", "\x00@\x00"
		stranger.Claims, stranger.Groups, stranger.Devices = nil, nil, nil
		after = w.again(&stranger)
	}
	plain := w.atoms(in.HasSession)
	signedIn := []atom(nil)
	if after != nil {
		signedIn = after.atoms(true)
	}
	tried := 0
	// The more there is to combine, the fewer sets are tried.
	limit := min(maxTried, maxWork/(1+w.size()))
	for size := 1; size <= maxChanges; size++ {
		found := w.search(in, plain, size, &tried, limit)
		if after != nil {
			for _, set := range after.search(in, signedIn, size-1, &tried, limit) {
				found = append(found, append([]Change{{Value: true, Identity: true, Text: "sign in"}}, set...))
			}
		}
		if len(found) > 0 {
			return found[:min(len(found), maxAlternatives)]
		}
		if tried > limit {
			return nil
		}
	}
	return nil
}

func (w *walk) mayAllow() bool {
	for i := range w.policies {
		p := &w.policies[i]
		if p.allow.Value || slices.ContainsFunc(p.rules, func(r walkedRule) bool { return r.rule.Action == "allow" }) {
			return true
		}
	}
	return false
}

func (w *walk) asksWho() bool {
	for i := range w.policies {
		for _, r := range w.policies[i].rules {
			if slices.ContainsFunc(r.rule.Criteria, func(u Use) bool { return u.Criterion.Identity || u.Criterion.Name == "record" }) {
				return true
			}
		}
	}
	return false
}

// again walks the same rules with another input.
func (w *walk) again(in *Input) *walk {
	out := &walk{policies: slices.Clone(w.policies)}
	for i := range out.policies {
		p := &out.policies[i]
		p.rules = slices.Clone(p.rules)
		for j := range p.rules {
			r := &p.rules[j]
			r.verdicts, r.counts = make([]verdict, len(r.verdicts)), nil
			for k := range r.rule.Criteria {
				r.verdicts[k] = r.rule.Criteria[k].test(in)
			}
		}
		p.combine()
	}
	return out
}

// atoms lists what may change. Of large policies only some criteria of each
// rule are taken, those that stand in the way first.
func (w *walk) atoms(identity bool) []atom {
	var list []atom
	index := map[string]int{}
	collect := func(perRule int) {
		for i := range w.policies {
			for j := range w.policies[i].rules {
				r := &w.policies[i].rules[j]
				taken := 0
				for k := range r.verdicts {
					u := &r.rule.Criteria[k]
					if !u.changeable() || u.Criterion.Identity && !identity {
						continue
					}
					name := u.Word() + "\x00" + wantedText(u)
					if len(wantedText(u)) > maxShownText {
						name = u.Path + "\x00" + w.where(i) // too long to compare in words
					}
					at, known := index[name]
					if !known {
						if taken == perRule {
							break
						}
						taken++
						at = len(list)
						index[name] = at
						list = append(list, atom{use: u})
					}
					list[at].at = append(list[at].at, &r.verdicts[k])
					list[at].plain = append(list[at].plain, r.verdicts[k])
				}
			}
		}
	}
	long := w.size() > maxSearched
	if !long {
		collect(-1)
	}
	if long || len(list) > maxAtoms {
		list, index = nil, map[string]int{}
		collect(3)
		list = list[:min(len(list), maxAtoms)]
	}
	return list
}

// size counts the criteria.
func (w *walk) size() (n int) {
	for i := range w.policies {
		for j := range w.policies[i].rules {
			n += len(w.policies[i].rules[j].verdicts)
		}
	}
	return n
}

func (w *walk) where(policy int) string { return string(rune('a' + policy)) }

// changeable tells whether a criterion can come out otherwise at all.
func (u *Use) changeable() bool {
	switch u.Criterion.Name {
	case "accept", "reject", "pomerium_routes":
		return false
	}
	return true
}

// search tries every set of size changes.
func (w *walk) search(in *Input, atoms []atom, size int, tried *int, limit int) (found [][]Change) {
	chosen := make([]int, 0, size)
	var step func(from int)
	step = func(from int) {
		if len(found) == maxAlternatives || *tried > limit {
			return
		}
		if len(chosen) == size {
			*tried++
			for i := range w.policies {
				w.policies[i].combine()
			}
			res := w.result()
			if chooseFor(in, &res).Outcome == Allow {
				set := make([]Change, 0, size)
				for _, i := range chosen {
					set = append(set, atoms[i].change())
				}
				found = append(found, set)
			}
			return
		}
		for i := from; i < len(atoms); i++ {
			atoms[i].flip()
			chosen = append(chosen, i)
			step(i + 1)
			chosen = chosen[:len(chosen)-1]
			atoms[i].restore()
		}
	}
	step(0)
	return found
}

func (a *atom) flip() {
	for i, v := range a.plain {
		out := verdict{ok: !v.ok}
		if out.ok && a.use.Criterion == invalidClientCertificate {
			out.why = ReasonInvalidClientCertificate.set()
		}
		*a.at[i] = out
	}
}

func (a *atom) restore() {
	for i, v := range a.plain {
		*a.at[i] = v
	}
}

func (a *atom) change() Change {
	value := !a.plain[0].ok
	return Change{
		Criterion: a.use.Word(), Path: a.use.Path, Value: value,
		Identity: a.use.Criterion.Identity, Text: changeText(a.use, value),
	}
}

// changeText says what has to become true (or false) of the criterion.
func changeText(u *Use, value bool) string {
	needs := neededValues(u)
	one := strings.Join(needs, " or ")
	plain := len(needs) > 0 && value
	switch name := u.Criterion.Name; {
	case name == "groups" && plain && len(needs) == 1:
		return "needs group " + one
	case name == "groups" && plain:
		return "needs one of the groups " + strings.Join(needs, ", ")
	case name == "email" && plain:
		return "needs the e-mail address " + one
	case name == "domain" && plain:
		return "needs an e-mail address of " + one
	case name == "user" && plain:
		return "needs the user id " + one
	case name == "claim" && plain:
		return "needs claim " + u.SubPath + " " + one
	case name == "authenticated_user" && value:
		return "needs a session that names a user"
	case name == "device" && value:
		return strings.TrimSpace("needs a device: " + wantedText(u))
	case name == "http_method" && plain:
		return "the method has to be " + one
	case name == "http_path" && plain:
		return "the path has to be " + one
	case name == "source_ip" && plain:
		return "has to come from " + one
	case name == "invalid_client_certificate" && !value:
		return "needs a trusted client certificate"
	case name == "cors_preflight" && value:
		return "has to be a CORS preflight"
	case name == "cors_preflight":
		return "must not be a CORS preflight"
	}
	word, wanted := u.Word(), wantedText(u)
	if value {
		return strings.TrimSpace(word + " has to match: " + wanted)
	}
	return strings.TrimSpace(word + " must not match: " + wanted)
}
