package policytest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"postern/internal/policy"
)

// Local answers cases by the policy package alone: it joins the identity as
// policy-language.md §5 says and selects the outcome as §8 and §9 say.
type Local struct{}

// Evaluate answers a case.
func (Local) Evaluate(c *Case) (Answer, error) {
	set, err := c.set()
	if err != nil {
		return Answer{}, err
	}
	in, err := Input(c)
	if err != nil {
		return Answer{}, err
	}
	client := policy.Client{
		Follows:  policy.Follows(in.Header("Content-Type"), in.Header("Accept"), carriesToken(in)),
		MCPRoute: c.Settings.Route.MCPServer, MCPCall: in.MCP != nil,
		Robots: in.RawPath == "/robots.txt",
	}
	var res policy.Result
	if c.SSH == nil {
		if client.MCPRoute && in.Method == "OPTIONS" {
			return Answer{Outcome: policy.Allow, Status: 204, Allow: true}, nil
		}
		if internal, needsSession := policy.InternalPath(in.RawPath); internal {
			res.Allow.Value = !needsSession || in.HasSession
			res.Allow.Reasons = res.Allow.Reasons.Add("pomerium-route")
			if !res.Allow.Value {
				res.Allow.Reasons = res.Allow.Reasons.Add("user-unauthenticated")
			}
			return answer(&res, policy.Choose(&res, client)), nil
		}
	}
	set.Evaluate(in, &res)
	if c.SSH != nil {
		return answer(&res, policy.ChooseSSH(&res, false)), nil
	}
	a := answer(&res, policy.Choose(&res, client))
	if c.Settings.Route.ShowErrorDetails {
		for _, d := range set.Details(in) {
			if d.Remediation != "" {
				a.Remediation = append(a.Remediation, d.Remediation)
			}
		}
	}
	return a, nil
}

// set pools everything that decides about a case.
func (c *Case) set() (*policy.Set, error) {
	shortcuts, err := c.Settings.Route.Shortcuts().Policy()
	if err != nil {
		return nil, err
	}
	mtls := c.Settings.DownstreamMTLS
	return policy.NewSet(policy.Pool{
		Own: c.Own, Attached: c.Attached, Shortcuts: shortcuts,
		CertificateRule: mtls != nil && mtls.Enforcement != "policy" && c.SSH == nil,
	}), nil
}

func answer(res *policy.Result, choice policy.Choice) Answer {
	return Answer{
		Outcome: choice.Outcome, Status: choice.Status,
		Allow: res.Allow.Value, Deny: res.Deny.Value,
		Reasons:    res.Allow.Reasons.Union(res.Deny.Reasons).Names(),
		DeviceType: choice.DeviceType,
	}
}

func carriesToken(in *policy.Input) bool {
	if in.Header("X-Pomerium-Authorization") != "" {
		return true
	}
	scheme, token, _ := strings.Cut(in.Header("Authorization"), " ")
	if strings.EqualFold(scheme, "Pomerium") || strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(token, "Pomerium-") {
		return true
	}
	for pair := range strings.SplitSeq(in.RawQuery, "&") {
		if name, _, _ := strings.Cut(pair, "="); name == "pomerium_session" {
			return true
		}
	}
	return false
}

// Input gives what the policies of a case look at.
func Input(c *Case) (*policy.Input, error) {
	in := &policy.Input{Now: c.Now, Header: func(string) string { return "" }}
	in.ClientIP, _ = netip.ParseAddr(c.Request.IP)
	host, raw, query := splitURL(c.Request.URL)
	in.Host = host
	if c.SSH == nil {
		in.Method, in.RawPath, in.RawQuery, in.Path = c.Request.Method, raw, query, policy.DecodePath(raw)
		in.Header = func(name string) string {
			for k, v := range c.Request.Headers {
				if strings.EqualFold(k, name) {
					return v
				}
			}
			return ""
		}
		in.EachHeader = func(yield func(name, value string) bool) {
			for k, v := range c.Request.Headers {
				if !yield(k, v) {
					return
				}
			}
		}
		in.Certificate = c.Request.Certificate
	}
	if c.Settings.DownstreamMTLS != nil {
		switch {
		case !c.Request.Presented || c.SSH != nil:
			in.CertificateState = policy.CertificateMissing
		case !c.Request.Trusted:
			in.CertificateState = policy.CertificateInvalid
		}
	}
	if c.MCP != nil {
		in.MCP = &policy.MCPCall{Method: c.MCP.Method, Tool: c.MCP.Tool, Arguments: c.MCP.Arguments}
	}
	if c.SSH != nil {
		in.SSH = &policy.SSHInput{Username: c.SSH.Username}
		if c.SSH.PublicKey != "" {
			key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(c.SSH.PublicKey))
			if err != nil {
				return nil, fmt.Errorf("ssh.public_key is not an authorized_keys line: %w", err)
			}
			in.SSH.PublicKey = key.Marshal()
		}
	}
	c.identify(in)
	in.RecordIdentity = func(typ string) bool { return strings.HasPrefix(c.foreignKey(typ), "user.") }
	in.Record = func(typ string) (map[string]any, bool) { return c.record(typ, in) }
	in.RecordByID = func(typ, id string) (map[string]any, error) {
		if data := c.identityRecord(typ, id); data != nil {
			return data, nil
		}
		return c.RecordByID(typ, id), nil
	}
	return in, nil
}

// splitURL cuts a URL without judging it, so that a case can hold a bad path.
func splitURL(url string) (host, path, query string) {
	_, rest, ok := strings.Cut(url, "://")
	if !ok {
		rest = url
	}
	rest, _, _ = strings.Cut(rest, "#")
	rest, query, _ = strings.Cut(rest, "?")
	host, path, ok = strings.Cut(rest, "/")
	if !ok {
		return host, "/", query
	}
	return host, "/" + path, query
}

// identify joins who is asking (§5).
func (c *Case) identify(in *policy.Input) {
	users := map[string]*User{}
	if c.User != nil {
		users[c.User.ID] = c.User
	}
	claims := map[string][]any{}
	switch {
	case c.ServiceAccount != nil:
		if expired(c.ServiceAccount.ExpiresAt, c) {
			return
		}
		in.SessionID, in.UserID = c.ServiceAccount.ID, c.ServiceAccount.UserID
	case c.User != nil:
		s := c.Session
		if s == nil {
			s = &Session{}
		}
		if expired(s.ExpiresAt, c) {
			return
		}
		if other := s.Impersonate; other != nil {
			if other.User == nil || expired(other.ExpiresAt, c) {
				return
			}
			users[other.User.ID] = other.User
			in.SessionID, in.UserID = other.Session, other.User.ID
			flatten(claims, "", other.Claims)
			break
		}
		in.SessionID, in.UserID = cmp.Or(s.ID, "session"), c.User.ID
		flatten(claims, "", s.Claims)
		for _, d := range c.Devices {
			in.Devices = append(in.Devices, policy.Device{ID: d.ID, Type: d.Type,
				Approved: d.Approved, Enrolled: d.Enrolled == nil || *d.Enrolled, Revoked: d.Revoked})
		}
	default:
		return
	}
	in.HasSession = true
	in.Claims = claims
	u := users[in.UserID]
	if u == nil {
		return
	}
	if u.HasRecord() {
		in.Email = u.Email
		own := map[string][]any{}
		flatten(own, "", u.Claims)
		maps.Copy(claims, own)
	}
	if email, groups, ok := u.DirectoryRecord(); ok {
		in.HasDirectory, in.Groups = true, groups
		if email != "" {
			in.Email = email
		}
	}
}

func expired(at *Moment, c *Case) bool { return at != nil && !c.Now.Before(at.Time) }

// flatten stores claims as lists under dotted names.
func flatten(out map[string][]any, prefix string, values map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		switch v := values[name].(type) {
		case map[string]any:
			flatten(out, prefix+name+".", v)
		case []any:
			out[prefix+name] = v
		default:
			out[prefix+name] = []any{v}
		}
	}
}

func (c *Case) foreignKey(typ string) string {
	if d, ok := c.Settings.ExternalData[typ]; ok && d.ForeignKey != "" {
		return d.ForeignKey
	}
	return "user.id"
}

// record finds the external record of a type by its foreign key: an exact id
// wins, then for addresses the longest prefix in $index.cidr (§6).
func (c *Case) record(typ string, in *policy.Input) (map[string]any, bool) {
	key := ""
	switch c.foreignKey(typ) {
	case "user.id":
		key = in.UserID
	case "user.email":
		key = in.Email
	case "request.ip":
		if in.ClientIP.IsValid() && in.ClientIP.Zone() == "" {
			key = in.ClientIP.Unmap().String()
		}
	case "request.client_certificate.fingerprint":
		if in.Certificate != nil {
			sum := sha256.Sum256(in.Certificate.Raw)
			key = hex.EncodeToString(sum[:])
		}
	}
	if key == "" {
		return nil, false
	}
	var found *Record
	longest := -1
	for i := range c.Records {
		r := &c.Records[i]
		if r.Type != typ {
			continue
		}
		if r.ID == key {
			return r.Data, true
		}
		if c.foreignKey(typ) == "request.ip" {
			index, _ := r.Data["$index"].(map[string]any)
			cidr, _ := index["cidr"].(string)
			if p, err := netip.ParsePrefix(cidr); err == nil && p.Contains(in.ClientIP.Unmap()) && p.Bits() > longest {
				found, longest = r, p.Bits()
			}
		}
	}
	if found == nil {
		return nil, false
	}
	return found.Data, true
}
