package policy

import "go.yaml.in/yaml/v3"

var device = &Criterion{
	Name:    "device",
	Doc:     "True if the first registered device of the type matches: is names its credential, approved asks for (or against) an approval.",
	Value:   "device matcher: is, type, approved",
	Matcher: deviceKind,
	Example: `
policy:
  - allow: {and: [device: {type: enclave_only, approved: true}]}
defaults: {user: {id: ada}}
cases:
  - {name: approved, device: {id: d1, type: enclave_only, approved: true}, expect: allow}
  - {name: waits for approval, device: {id: d1, type: enclave_only}, expect: deny, status: 450}
  - {name: none yet, expect: device, device_type: enclave_only}
`,
	Identity: true,
	Compile:  compileDevice,
}

// deviceKeys are the keys of the device matcher (§6).
var deviceKeys = []string{"is", "type", "approved"}

func compileDevice(s *Scope, n *yaml.Node) test {
	entries, ok := s.object(n, "", "device key", deviceKeys)
	if !ok || len(entries) < len(n.Content)/2 {
		return nil
	}
	if len(entries) == 0 {
		s.Warnf(n, "", "an empty matcher holds for everybody signed in, with or without a device")
	}
	var (
		id                 string
		typ                = "any"
		wantsID, wantsType bool
		approval           *bool
	)
	for _, e := range entries {
		switch e.name {
		case "is":
			if id, wantsID = s.text(e.value, e.name, e.name); !wantsID {
				ok = false
				continue
			}
			s.is = &operand{kind: kindString, text: id}
		case "type":
			if typ, wantsType = s.text(e.value, e.name, e.name); !wantsType {
				ok = false
			}
		case "approved":
			v, readable := s.plain(e.value, e.name)
			if !readable {
				ok = false
				continue
			}
			truth := truthy(v)
			approval = &truth
		}
	}
	if !ok {
		return nil
	}
	holdsWithoutDevice := !wantsID && !wantsType && (approval == nil || !*approval)
	return func(in *Input) verdict {
		// The session counts only with its first credential of the type; one
		// whose record was deleted is as good as none.
		var d *Device
		for i := range in.Devices {
			if in.Devices[i].Type == typ {
				if !in.Devices[i].Revoked {
					d = &in.Devices[i]
				}
				break
			}
		}
		v := verdict{device: &typ, why: ReasonDeviceUnauthenticated.set()}
		switch {
		case d == nil:
			v.ok = holdsWithoutDevice
		case (!wantsID || d.ID == id) && (approval == nil || *approval == (d.Enrolled && d.Approved)):
			v.ok = true
		case d.Enrolled:
			v.why = ReasonDeviceUnauthorized.set()
		}
		if v.ok {
			v.why = ReasonDeviceOK.set()
		}
		return v
	}
}

// truthy is the truth of a value as JavaScript has it.
func truthy(v any) bool {
	switch v := v.(type) {
	case nil:
		return false
	case bool:
		return v
	case string:
		return v != ""
	case int64:
		return v != 0
	case uint64:
		return v != 0
	case float64:
		return v != 0
	}
	return true
}
