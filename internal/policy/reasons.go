package policy

import (
	"math/bits"
	"slices"
)

// Reason is one of the fixed words by which criteria explain themselves
// (policy-language.md §7). They are clients' and log readers' contract.
type Reason uint8

// The fixed reasons. There are fewer than 64, so that a set of them is a word.
const (
	ReasonAccept Reason = iota
	ReasonReject
	ReasonUserOK
	ReasonUserUnauthorized
	ReasonUserUnauthenticated
	ReasonEmailOK
	ReasonEmailUnauthorized
	ReasonDomainOK
	ReasonDomainUnauthorized
	ReasonClaimOK
	ReasonClaimUnauthorized
	ReasonGroupsOK
	ReasonGroupsUnauthorized
	ReasonDeviceOK
	ReasonDeviceUnauthorized
	ReasonDeviceUnauthenticated
	ReasonHTTPMethodOK
	ReasonHTTPMethodUnauthorized
	ReasonHTTPPathOK
	ReasonHTTPPathUnauthorized
	ReasonSourceIPOK
	ReasonSourceIPUnauthorized
	ReasonCORSRequest
	ReasonNonCORSRequest
	ReasonClientCertificateOK
	ReasonClientCertificateUnauthorized
	ReasonClientCertificateRequired
	ReasonInvalidClientCertificate
	ReasonValidClientCertificate
	ReasonPomeriumRoute
	ReasonNonPomeriumRoute
	ReasonRouteNotFound
	ReasonMCPToolMatch
	ReasonMCPToolNoMatch
	ReasonMCPNotAToolCall
	ReasonSSHUsernameOK
	ReasonSSHUsernameUnauthorized
	ReasonSSHPublicKeyOK
	ReasonSSHPublicKeyUnauthorized
	ReasonDateOK
	ReasonDateUnauthorized
	ReasonDayOfWeekOK
	ReasonDayOfWeekUnauthorized
	ReasonTimeOfDayOK
	ReasonTimeOfDayUnauthorized
	ReasonRecordOK
	ReasonRecordUnauthorized
	reasonCount
)

var reasonNames = [reasonCount]string{
	ReasonAccept:                        "accept",
	ReasonReject:                        "reject",
	ReasonUserOK:                        "user-ok",
	ReasonUserUnauthorized:              "user-unauthorized",
	ReasonUserUnauthenticated:           "user-unauthenticated",
	ReasonEmailOK:                       "email-ok",
	ReasonEmailUnauthorized:             "email-unauthorized",
	ReasonDomainOK:                      "domain-ok",
	ReasonDomainUnauthorized:            "domain-unauthorized",
	ReasonClaimOK:                       "claim-ok",
	ReasonClaimUnauthorized:             "claim-unauthorized",
	ReasonGroupsOK:                      "groups-ok",
	ReasonGroupsUnauthorized:            "groups-unauthorized",
	ReasonDeviceOK:                      "device-ok",
	ReasonDeviceUnauthorized:            "device-unauthorized",
	ReasonDeviceUnauthenticated:         "device-unauthenticated",
	ReasonHTTPMethodOK:                  "http-method-ok",
	ReasonHTTPMethodUnauthorized:        "http-method-unauthorized",
	ReasonHTTPPathOK:                    "http-path-ok",
	ReasonHTTPPathUnauthorized:          "http-path-unauthorized",
	ReasonSourceIPOK:                    "source-ip-ok",
	ReasonSourceIPUnauthorized:          "source-ip-unauthorized",
	ReasonCORSRequest:                   "cors-request",
	ReasonNonCORSRequest:                "non-cors-request",
	ReasonClientCertificateOK:           "client-certificate-ok",
	ReasonClientCertificateUnauthorized: "client-certificate-unauthorized",
	ReasonClientCertificateRequired:     "client-certificate-required",
	ReasonInvalidClientCertificate:      "invalid-client-certificate",
	ReasonValidClientCertificate:        "valid-client-certificate",
	ReasonPomeriumRoute:                 "pomerium-route",
	ReasonNonPomeriumRoute:              "non-pomerium-route",
	ReasonRouteNotFound:                 "route-not-found",
	ReasonMCPToolMatch:                  "mcp-tool-match",
	ReasonMCPToolNoMatch:                "mcp-tool-no-match",
	ReasonMCPNotAToolCall:               "mcp-not-a-tool-call",
	ReasonSSHUsernameOK:                 "ssh-username-ok",
	ReasonSSHUsernameUnauthorized:       "ssh-username-unauthorized",
	ReasonSSHPublicKeyOK:                "ssh-publickey-ok",
	ReasonSSHPublicKeyUnauthorized:      "ssh-publickey-unauthorized",
	ReasonDateOK:                        "date-ok",
	ReasonDateUnauthorized:              "date-unauthorized",
	ReasonDayOfWeekOK:                   "day-of-week-ok",
	ReasonDayOfWeekUnauthorized:         "day-of-week-unauthorized",
	ReasonTimeOfDayOK:                   "time-of-day-ok",
	ReasonTimeOfDayUnauthorized:         "time-of-day-unauthorized",
	ReasonRecordOK:                      "record-ok",
	ReasonRecordUnauthorized:            "record-unauthorized",
}

// reasonByName finds the fixed reason of a word a custom script answered.
var reasonByName = func() map[string]Reason {
	m := make(map[string]Reason, reasonCount)
	for r, name := range reasonNames {
		m[name] = Reason(r)
	}
	return m
}()

// String gives the word, for example "email-ok".
func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return "unknown-reason"
}

// reasonSet holds fixed reasons as bits.
type reasonSet uint64

func (r Reason) set() reasonSet { return 1 << r }

// Reasons is a set of reasons: the fixed ones as bits, so that evaluating a
// policy allocates nothing, and the free words of custom scripts as a sorted
// list. The zero Reasons is empty. A Reasons is a value: Add and Union give a
// new set and never change a list that another set may share.
type Reasons struct {
	fixed  reasonSet
	custom []string
}

// ReasonsOf gives the set of the named fixed reasons.
func ReasonsOf(reasons ...Reason) (s Reasons) {
	for _, r := range reasons {
		s.fixed |= r.set()
	}
	return s
}

// Has tells whether the set holds r.
func (s Reasons) Has(r Reason) bool { return s.fixed&r.set() != 0 }

// HasAny tells whether the set holds one of the fixed reasons of other.
func (s Reasons) HasAny(other Reasons) bool { return s.fixed&other.fixed != 0 }

// Empty tells whether there is no reason at all.
func (s Reasons) Empty() bool { return s.fixed == 0 && len(s.custom) == 0 }

// Add gives the set with the named reason, fixed or free, in it.
func (s Reasons) Add(name string) Reasons {
	if r, ok := reasonByName[name]; ok {
		s.fixed |= r.set()
		return s
	}
	if at, found := slices.BinarySearch(s.custom, name); !found {
		s.custom = slices.Insert(slices.Clone(s.custom), at, name)
	}
	return s
}

// Union gives the reasons of both sets.
func (s Reasons) Union(other Reasons) Reasons {
	s.fixed |= other.fixed
	if len(s.custom) == 0 {
		s.custom = other.custom
		return s
	}
	for _, name := range other.custom {
		s = s.Add(name)
	}
	return s
}

// Append adds the names of the set to dst in alphabetical order, as the
// decision log writes them.
func (s Reasons) Append(dst []string) []string {
	from := len(dst)
	for set := s.fixed; set != 0; set &= set - 1 {
		dst = append(dst, reasonNames[bits.TrailingZeros64(uint64(set))])
	}
	dst = append(dst, s.custom...)
	slices.Sort(dst[from:])
	return dst
}

// Names lists the set in alphabetical order; never nil.
func (s Reasons) Names() []string {
	return s.Append(make([]string, 0, bits.OnesCount64(uint64(s.fixed))+len(s.custom)))
}
