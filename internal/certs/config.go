package certs

import "time"

// Config holds the settings of server certificates, ACME and client
// certificates. The tags are the declaration that package config parses and
// documents.
type Config struct {
	_ struct{} `section:"2.2"`

	Certificates             []CertificateFiles `key:"certificates" env:"-" status:"acts" doc:"Server certificates, as pairs of file paths; the server name (SNI) selects."`
	Certificate              []byte             `key:"certificate" form:"b64" status:"acts" doc:"Base64 PEM of a server certificate; needs certificate_key."`
	CertificateKey           []byte             `key:"certificate_key" form:"b64" secret:"true" status:"acts" doc:"Base64 PEM of the key of certificate."`
	CertificateFile          string             `key:"certificate_file" form:"file" status:"acts" doc:"File holding a PEM server certificate; needs certificate_key_file."`
	CertificateKeyFile       string             `key:"certificate_key_file" form:"file" status:"acts" doc:"File holding the PEM key of certificate_file."`
	CertificateAuthority     []byte             `key:"certificate_authority" form:"b64" status:"acts" doc:"Base64 PEM of a CA added to the system roots for upstream and internal traffic."`
	CertificateAuthorityFile string             `key:"certificate_authority_file" form:"file" status:"acts" doc:"File holding a PEM CA added to the system roots."`
	TLSDerive                string             `key:"tls_derive" status:"acts" doc:"Derive a CA and a certificate for this name from the shared secret, trust that CA upstream, and serve a derived certificate for names that no other is for; all replicas with one secret derive the same."`

	// Pairs holds every server certificate read from the keys above, in
	// order: certificates, certificate, certificate_file.
	Pairs []KeyPair `key:"-"`
	// ExtraRoots is the PEM of certificate_authority and
	// certificate_authority_file together, to be added to the system roots.
	ExtraRoots []byte `key:"-"`

	ECHKeys     []byte `key:"ech_keys" form:"b64" secret:"true" status:"acts" section:"ours" doc:"Base64 PEM of the keys of Encrypted Client Hello, newest first, as postern ech-key makes them: each a PRIVATE KEY (X25519) and the ECHCONFIG list that is published in DNS."`
	ECHKeysFile string `key:"ech_keys_file" form:"file" status:"acts" section:"ours" doc:"File holding the PEM keys of Encrypted Client Hello; see ech_keys."`

	_ struct{} `section:"2.3"`

	Autocert              bool   `key:"autocert" status:"acts" doc:"Get certificates by ACME for the host of every https, tcp+https and udp+https route without wildcard and for the own sign-in host; with autocert_dns_provider for wildcard hosts, too."`
	AutocertCA            string `key:"autocert_ca" status:"acts" doc:"Directory URL of the ACME server; Let's Encrypt if unset."`
	AutocertEmail         string `key:"autocert_email" status:"acts" doc:"Contact of the ACME account."`
	AutocertUseStaging    bool   `key:"autocert_use_staging" status:"acts" doc:"Use the staging server of Let's Encrypt; also removes the default HSTS header."`
	AutocertEABKeyID      string `key:"autocert_eab_key_id" status:"acts" doc:"Key id of an external account binding; needs autocert_eab_mac_key."`
	AutocertEABMACKey     string `key:"autocert_eab_mac_key" secret:"true" status:"acts" doc:"Key of an external account binding, unpadded base64url."`
	AutocertMustStaple    bool   `key:"autocert_must_staple" status:"acts" doc:"Ask for certificates with the must-staple extension, from the next one on."`
	AutocertDir           string `key:"autocert_dir" status:"acts" doc:"Where ACME keys and certificates are kept: a directory, s3://, gs:// or records:// (the databroker storage, sealed and shared by all replicas)."`
	AutocertTrustedCA     []byte `key:"autocert_trusted_ca" form:"b64" status:"acts" doc:"Base64 PEM of the CA of the ACME server; the system's if unset."`
	AutocertTrustedCAFile string `key:"autocert_trusted_ca_file" form:"file" status:"acts" doc:"File holding the PEM CA of the ACME server."`

	AutocertChallenges []string `key:"autocert_challenges" status:"acts" doc:"Challenges to answer: http-01, tls-alpn-01, dns-01. Unset: dns-01 with autocert_dns_provider, else tls-alpn-01, and http-01 if http_redirect_addr has port 80."`
	AutocertProfile    string   `key:"autocert_profile" status:"acts" doc:"Certificate profile to ask the ACME server for."`

	AutocertDNSProvider           string        `key:"autocert_dns_provider" enum:"rfc2136|exec|webhook" status:"acts" doc:"Who writes the DNS records of dns-01 challenges: a name server that takes updates (rfc2136), a program (exec), an HTTP service (webhook)."`
	AutocertDNSServer             string        `key:"autocert_dns_server" status:"acts" doc:"rfc2136: host:port of the name server that takes the updates."`
	AutocertDNSZone               string        `key:"autocert_dns_zone" status:"acts" doc:"rfc2136: the zone to update; unset: found by asking for the SOA."`
	AutocertDNSTSIGKey            string        `key:"autocert_dns_tsig_key" status:"acts" doc:"rfc2136: name of the TSIG key that signs the updates."`
	AutocertDNSTSIGSecret         string        `key:"autocert_dns_tsig_secret" secret:"true" status:"acts" doc:"rfc2136: the TSIG key in base64."`
	AutocertDNSTSIGSecretFile     string        `key:"autocert_dns_tsig_secret_file" form:"file" status:"acts" doc:"File holding autocert_dns_tsig_secret."`
	AutocertDNSTSIGAlgorithm      string        `key:"autocert_dns_tsig_algorithm" default:"hmac-sha256" enum:"hmac-sha256|hmac-sha384|hmac-sha512|hmac-sha224|hmac-sha1" status:"acts" doc:"rfc2136: algorithm of the TSIG key."`
	AutocertDNSCommand            string        `key:"autocert_dns_command" status:"acts" doc:"exec: absolute path of the program, run as PROGRAM present|cleanup NAME VALUE, without a shell."`
	AutocertDNSWebhook            string        `key:"autocert_dns_webhook" status:"acts" doc:"webhook: URL that is sent JSON by POST: action (present or cleanup), fqdn, value."`
	AutocertDNSWebhookSecret      string        `key:"autocert_dns_webhook_secret" secret:"true" status:"acts" doc:"webhook: sent as bearer token."`
	AutocertDNSWebhookSecretFile  string        `key:"autocert_dns_webhook_secret_file" form:"file" status:"acts" doc:"File holding autocert_dns_webhook_secret."`
	AutocertDNSTTL                time.Duration `key:"autocert_dns_ttl" default:"1m" status:"acts" doc:"Time to live of the challenge records."`
	AutocertDNSPropagationDelay   time.Duration `key:"autocert_dns_propagation_delay" default:"0s" status:"acts" doc:"Time to wait before looking whether a challenge record is there."`
	AutocertDNSPropagationTimeout time.Duration `key:"autocert_dns_propagation_timeout" default:"2m" status:"acts" doc:"Time within which the zone's name servers must show a challenge record; 0 does not look."`
	AutocertDNSResolvers          []string      `key:"autocert_dns_resolvers" status:"acts" doc:"Name servers, host:port, to ask for zones and challenge records; the system's if unset."`

	_ struct{} `section:"2.10"`

	DownstreamMTLS DownstreamMTLS `key:"downstream_mtls" narrows:"true" status:"acts" doc:"Certificates asked of clients."`
}

// CertificateFiles names a server certificate and its key by path.
type CertificateFiles struct {
	Cert string `key:"cert" form:"file" status:"acts" doc:"Path of the PEM certificate chain."`
	Key  string `key:"key" form:"file" status:"acts" doc:"Path of the PEM key."`
	ID   string `key:"id" status:"acts" doc:"Name of the pair, in messages about it."`
}

// KeyPair is a server certificate as read, in PEM.
type KeyPair struct {
	// Source names the key or file it came from, for error messages.
	Source  string
	CertPEM []byte
	KeyPEM  []byte

	parsed *pair // once checked
}

// The values of downstream_mtls.enforcement.
const (
	EnforcePolicy                = "policy"
	EnforcePolicyWithDefaultDeny = "policy_with_default_deny"
	EnforceRejectConnection      = "reject_connection"
)

// DownstreamMTLS says which certificates clients must show. The feature is on
// where CA is not empty.
type DownstreamMTLS struct {
	// CA is PEM, from the inline key or the file.
	CA     []byte `key:"ca" form:"b64" narrows:"true" status:"acts" doc:"Base64 PEM of the CAs of client certificates; switches the feature on."`
	CAFile string `key:"ca_file" form:"file" narrows:"true" status:"acts" doc:"File holding the PEM CAs of client certificates."`
	// CRL is PEM or DER, from the inline key or the file.
	CRL                  []byte       `key:"crl" form:"b64" narrows:"true" status:"acts" doc:"Base64 PEM of certificate revocation lists."`
	CRLFile              string       `key:"crl_file" form:"file" narrows:"true" status:"acts" doc:"File holding PEM certificate revocation lists."`
	Enforcement          string       `key:"enforcement" default:"policy_with_default_deny" enum:"policy_with_default_deny|policy|reject_connection" narrows:"true" status:"acts" doc:"policy: explicit rules only; policy_with_default_deny: refuse without a valid certificate on every route; reject_connection: refuse at TLS level."`
	MatchSubjectAltNames []SANMatcher `key:"match_subject_alt_names" form:"sans" env:"-" narrows:"true" status:"acts" doc:"Alternative names of which one must match: dns, email, ip_address, uri or user_principal_name, each an RE2 for the full value."`
	MaxVerifyDepth       *uint32      `key:"max_verify_depth" default:"1" narrows:"true" status:"acts" doc:"Length of the chain without the trust anchor; 0 is unlimited."`
}

// SANMatcher is one entry of match_subject_alt_names.
type SANMatcher struct {
	Type    string // dns, email, ip_address, uri or user_principal_name
	Pattern string // RE2, matched against the full value
}

// RouteConfig holds the per-route client CA.
type RouteConfig struct {
	_ struct{} `section:"3.7"`

	TLSDownstreamClientCA     []byte `key:"tls_downstream_client_ca" form:"b64" narrows:"true" deprecated:"downstream_mtls" status:"acts" doc:"Base64 PEM of the client CA of this route; replaces the global one."`
	TLSDownstreamClientCAFile string `key:"tls_downstream_client_ca_file" form:"file" narrows:"true" deprecated:"downstream_mtls" status:"acts" doc:"File holding the PEM client CA of this route."`
}
