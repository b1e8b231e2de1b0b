package policy

import "go.yaml.in/yaml/v3"

var invalidClientCertificate = &Criterion{
	Name:    "invalid_client_certificate",
	Doc:     "True if a client CA is configured and the client showed no certificate, or one that it does not vouch for.",
	Value:   "ignored; true by custom",
	Matcher: anything,
	Example: `
settings: {downstream_mtls: {enforcement: policy}}
policy:
  - allow: {or: [accept: true]}
    deny: {or: [invalid_client_certificate: true]}
cases:
  - {name: none was presented, expect: deny, status: 495, reasons: [client-certificate-required]}
`,
	Compile: compileInvalidClientCertificate,
}

func compileInvalidClientCertificate(s *Scope, _ *yaml.Node) test {
	if s.Action == "deny" && (s.Operator == "not" || s.Operator == "nor") {
		s.Warnf(s.Key, "", "under deny the reason alone refuses, so this refuses everybody without a certificate and everybody with one; write deny: {or: [{invalid_client_certificate: true}]}")
	}
	return func(in *Input) verdict {
		switch in.CertificateState {
		case CertificateOK:
			return verdict{why: ReasonValidClientCertificate.set()}
		case CertificateMissing:
			return verdict{ok: true, why: ReasonClientCertificateRequired.set()}
		}
		return verdict{ok: true, why: ReasonInvalidClientCertificate.set()}
	}
}
