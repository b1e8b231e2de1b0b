package config

import (
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/net/http/httpguts"

	"postern/internal/policy"
	"postern/internal/telemetry"
)

// check looks at the whole configuration once every key is decoded and every
// file read: what is wrong between keys, and what a type cannot say.
func (d *decoder) check() {
	d.checkServices()
	d.checkListeners()
	d.checkCertificates()
	d.checkSecrets()
	d.checkSignIn()
	d.checkProviders()
	d.checkIdentityHeaders()
	d.checkStore()
	d.checkTelemetry()
	d.checkUpstream()
	d.checkFeatures()
	d.checkRateLimits(d.cfg.Proxy.RateLimit, "rate_limit")
}

func sorted(names []string) []string {
	slices.Sort(names)
	return names
}

func checkRegex(pattern string) error {
	if _, err := regexp.Compile(pattern); err != nil {
		return fmt.Errorf("the regular expression is malformed: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	return nil
}

// needURL checks that a URL, where set, has scheme and host.
func (d *decoder) needURL(path string, u *url.URL) {
	if u == nil {
		return
	}
	if u.Scheme == "" || u.Host == "" {
		d.bad(path, shorten(u.String())+" lacks "+missingPart(u), "write a whole URL, such as https://sign-in.example.com")
	}
}

func missingPart(u *url.URL) string {
	if u.Scheme == "" {
		return "a scheme"
	}
	return "a host"
}

func (d *decoder) checkServices() {
	s, a := &d.cfg.Services, &d.cfg.Authn
	d.needURL("authenticate_service_url", a.AuthenticateServiceURL)
	d.needURL("authenticate_internal_service_url", a.AuthenticateInternalServiceURL)
	d.needURL("authorize_service_url", s.AuthorizeServiceURL)
	d.needURL("databroker_service_url", s.DatabrokerServiceURL)
	d.needURL("authorize_internal_service_url", s.AuthorizeInternalServiceURL)
	d.needURL("databroker_internal_service_url", s.DatabrokerInternalServiceURL)
	for i, u := range s.AuthorizeServiceURLs {
		d.needURL(indexed("authorize_service_urls", i), u)
	}
	for i, u := range s.DatabrokerServiceURLs {
		d.needURL(indexed("databroker_service_urls", i), u)
	}
	if u := a.AuthenticateServiceURL; u != nil && u.Host != "" && u.Scheme != "https" && u.Scheme != "http" {
		d.bad("authenticate_service_url", "the scheme "+shorten(u.Scheme)+" is not https", "write https://host")
	}
	if u := a.SignoutRedirectURL; u != nil && u.Scheme != "" && u.Scheme != "https" && u.Scheme != "http" {
		d.bad("signout_redirect_url", "the scheme "+shorten(u.Scheme)+" is not https", "write https://host/path")
	}
}

// listener checks host:port; a port may be missing where bare is set.
func (d *decoder) listener(path, value string, bare bool) (port int) {
	if value == "" {
		return 0
	}
	_, portText, err := net.SplitHostPort(value)
	if err != nil {
		if bare && !strings.Contains(strings.Trim(value, "[]"), ":") || bare && isIPv6(value) {
			return 0
		}
		d.bad(path, shorten(value)+" is not host:port", "write :443 or 127.0.0.1:8080")
		return 0
	}
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		if port, lookupErr := net.LookupPort("tcp", portText); lookupErr == nil && portText != "" {
			return port // a name such as https
		}
		if portText == "" && bare {
			return 0
		}
		d.bad(path, "the port of "+shorten(value)+" is not from 0 to 65535", "write :443 or 127.0.0.1:8080")
	}
	return int(n)
}

// withPort adds the port that an address without one means.
func withPort(address, port string) string {
	if address == "" {
		return ""
	}
	if host, p, err := net.SplitHostPort(address); err == nil {
		if p == "" {
			return net.JoinHostPort(host, port)
		}
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

func isIPv6(s string) bool {
	a, err := netip.ParseAddr(strings.Trim(s, "[]"))
	return err == nil && a.Is6()
}

func (d *decoder) checkListeners() {
	c := d.cfg
	p := &c.Proxy
	p.HTTPRedirectAddr = strings.Trim(p.HTTPRedirectAddr, `"'`+"`")
	d.listener("address", p.Address, true)
	d.listener("http_redirect_addr", p.HTTPRedirectAddr, true)
	d.checkProtocols()
	main := "443"
	if p.InsecureServer {
		main = "80"
	}
	p.Address = withPort(p.Address, main)
	p.HTTPRedirectAddr = withPort(p.HTTPRedirectAddr, "80")
	d.listener("grpc_address", c.RPC.GRPCAddress, true)
	d.listener("databroker_raft_bind_address", c.Store.RaftBindAddress, false)
	d.listener("ssh_address", c.Features.SSHAddress, false)
	d.listener("envoy_admin_address", c.Telemetry.EnvoyAdminAddress, false)

	t := &c.Telemetry
	d.listener("debug_address", t.DebugAddress, false)
	if d.isSet("debug_address") && t.DebugAddress == "" {
		d.bad("debug_address", "the address is empty", "write host:port, or remove the key: the listener is off by default")
	}
	d.listener("health_check_addr", t.HealthCheckAddr, false)
	if t.HealthCheckAddr == "" {
		d.bad("health_check_addr", "the address is empty", "write host:port; the default is 127.0.0.1:28080")
	}
	if t.MetricsAddress != "" {
		before := len(d.problems)
		if port := d.listener("metrics_address", t.MetricsAddress, false); port == 0 && len(d.problems) == before {
			d.bad("metrics_address", "the port of "+shorten(t.MetricsAddress)+" is not from 1 to 65535", "write host:port, such as :9090")
		}
	}
	if p.HTTP3AdvertisePort > 65535 {
		d.bad("http3_advertise_port", "the port is above 65535", "write the UDP port clients reach")
	}
	d.checkHeaders("set_response_headers", p.SetResponseHeaders, true)
	for i, up := range p.AllowUpgrades {
		if up != "" && !isUpgrade(up) {
			d.bad(indexed("allow_upgrades", i), shorten(up)+" is not the name of a protocol", "write a token such as websocket")
		}
	}
	if p.SkipXFFAppend && len(p.TrustedProxies) == 0 && p.XFFNumTrustedHops == 0 && d.isSet("trusted_proxies") {
		d.problem(LevelWarning, KindInvalid, "trusted_proxies", "the list is empty: no proxy is trusted", "list networks, or remove the key")
	}
}

// isUpgrade accepts name or name/version (RFC 9110 §7.8).
func isUpgrade(s string) bool {
	name, version, has := strings.Cut(s, "/")
	return isToken(name) && (!has || isToken(version))
}

func isToken(s string) bool { return s != "" && httpguts.ValidHeaderFieldName(s) }

// checkHeaders checks names and values of headers to set.
func (d *decoder) checkHeaders(path string, headers map[string]string, response bool) {
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		at := path + "." + name
		switch {
		case strings.HasPrefix(name, ":"):
			d.bad(at, "pseudo headers cannot be set", "use host_rewrite, prefix_rewrite or to")
		case !isToken(name):
			d.bad(at, shorten(name)+" is not the name of a header", "use letters, digits and -")
		case !response && strings.EqualFold(name, "host"):
			d.bad(at, "Host cannot be set as a header", "use host_rewrite, host_rewrite_header or preserve_host_header")
		case !httpguts.ValidHeaderFieldValue(headers[name]):
			d.bad(at, "the value holds a character that headers may not hold", "write it on one line, without control characters")
		}
	}
}

func (d *decoder) checkCertificates() {
	c := &d.cfg.Certs
	for _, p := range []struct {
		path string
		pem  []byte
	}{
		{"certificate_authority", c.CertificateAuthority},
		{"certificate_authority_file", d.fileOnly(c.CertificateAuthorityFile, c.ExtraRoots)},
		{"autocert_trusted_ca", c.AutocertTrustedCA},
		{"downstream_mtls.ca", c.DownstreamMTLS.CA},
		{"metrics_client_ca", d.cfg.Telemetry.MetricsClientCA},
	} {
		d.needCA(p.path, p.pem)
	}
	if err := checkCRL(c.DownstreamMTLS.CRL); err != nil {
		d.bad(d.setOne("downstream_mtls.crl", "downstream_mtls.crl_file"), err.Error(), "give PEM blocks X509 CRL")
	}
	c.TLSDerive = strings.ToLower(c.TLSDerive)
	if c.TLSDerive != "" && !isHostName(c.TLSDerive) {
		d.bad("tls_derive", shorten(c.TLSDerive)+" is not a host name", "write a full name such as postern.internal")
	}
	keyID, mac := c.AutocertEABKeyID, c.AutocertEABMACKey
	if d.half(keyID != "", mac != "", "autocert_eab_key_id", "autocert_eab_mac_key") {
		if _, err := base64.RawURLEncoding.DecodeString(mac); err != nil {
			d.bad("autocert_eab_mac_key", "the value is not base64url without padding", "copy it as the ACME server shows it")
		}
	}
	if c.AutocertCA != "" {
		if u, err := url.Parse(c.AutocertCA); err != nil || u.Scheme == "" || u.Host == "" {
			d.bad("autocert_ca", shorten(c.AutocertCA)+" is not a URL", "write the directory URL of the ACME server")
		}
	}
	if scheme, _, ok := strings.Cut(c.AutocertDir, "://"); ok {
		switch strings.ToLower(scheme) {
		case "s3", "gs", "records":
		default:
			d.bad("autocert_dir", "the scheme "+shorten(scheme)+" is not known", "write a directory, s3://, gs:// or records://")
		}
	}
}

// fileOnly gives text if there is a file, so that a complaint names its key.
func (d *decoder) fileOnly(name string, text []byte) []byte {
	if name == "" {
		return nil
	}
	return text
}

// setOne gives the one of two keys that was set, preferring the second.
func (d *decoder) setOne(a, b string) string {
	if d.isSet(b) {
		return b
	}
	return a
}

// needCA checks that text, where there is some, holds a certificate.
func (d *decoder) needCA(path string, text []byte) {
	if len(text) == 0 {
		return
	}
	if err := checkCA(text); err != nil {
		if !strings.HasSuffix(path, "_file") {
			path = d.setOne(path, path+"_file")
		}
		d.bad(path, err.Error(), "give one or more PEM blocks CERTIFICATE")
	}
}

func (d *decoder) checkSecrets() {
	c := d.cfg
	if !c.Services.All() && len(c.Secrets.SharedSecret) == 0 && !d.isSet("shared_secret") && !d.isSet("shared_secret_file") {
		d.bad("shared_secret", "the processes of a split installation need a common secret", "make one with: head -c32 /dev/urandom | base64")
	}
	if len(c.Secrets.SharedSecretPrevious) > 0 && string(c.Secrets.SharedSecretPrevious) == string(c.Secrets.SharedSecret) {
		d.bad("shared_secret_previous", "it is the same as shared_secret", "remove it, or give the secret from before the change")
	}
	if s := c.Secrets.GoogleServiceAccount; s != "" {
		if _, err := fromBase64(s); err != nil {
			d.bad("google_cloud_serverless_authentication_service_account", err.Error(), "encode the JSON file with base64 -w0")
		}
	}
}

func (d *decoder) checkStore() {
	s := &d.cfg.Store
	if s.Type == "postgres" && s.ConnectionString == "" && !d.isSet("databroker_storage_connection_string_file") {
		d.bad("databroker_storage_type", "postgres needs a connection string", "set databroker_storage_connection_string: postgres://user@host/database")
	}
	if s.Type == "file" && s.ConnectionString != "" {
		if u, err := url.Parse(s.ConnectionString); err != nil || u.Scheme != "file" && u.Scheme != "" || u.Host != "" || u.Path == "" {
			d.bad(d.setOne("databroker_storage_connection_string", "databroker_storage_connection_string_file"), "the value is not file:///directory", "write file:///var/lib/postern")
		}
	}
	ids := map[string]bool{}
	for i, node := range s.ClusterNodes {
		path := indexed("databroker_cluster_nodes", i)
		if node.ID == "" {
			d.bad(path+".id", "the node has no id", "give every node a name of its own")
		}
		if ids[node.ID] && node.ID != "" {
			d.bad(path+".id", "the id is that of another node, too", "give every node a name of its own")
		}
		ids[node.ID] = true
		if u, err := url.Parse(node.GRPCAddress); err != nil || u.Scheme == "" || u.Host == "" {
			d.bad(path+".grpc_address", shorten(node.GRPCAddress)+" is not a URL", "write https://host:port")
		}
		if node.RaftAddress != "" {
			d.listener(path+".raft_address", node.RaftAddress, false)
		}
	}
	for _, ref := range []struct{ path, id string }{{"databroker_cluster_node_id", s.ClusterNodeID}, {"databroker_cluster_leader_id", s.ClusterLeaderID}} {
		if ref.id != "" && !ids[ref.id] {
			d.bad(ref.path, shorten(ref.id)+" is none of databroker_cluster_nodes", "name one of the nodes")
		}
	}
}

func (d *decoder) checkTelemetry() {
	t := &d.cfg.Telemetry
	for i, name := range t.AccessLogFields {
		if err := telemetry.CheckAccessField(name); err != nil {
			d.logField("access_log_fields", i, name, telemetry.AccessFieldNames())
		}
	}
	for i, name := range t.AuthorizeLogFields {
		if err := telemetry.CheckAuthorizeField(name); err != nil {
			d.logField("authorize_log_fields", i, name, telemetry.AuthorizeFieldNames())
		}
	}
	if t.MetricsBasicAuth != "" {
		b, err := fromBase64(t.MetricsBasicAuth)
		if err != nil || !strings.Contains(string(b), ":") {
			d.bad("metrics_basic_auth", "the value is not base64 of user:password", "encode it with base64 -w0")
		}
	}
	if v := t.OTelTracesSamplerArg; v != nil && (*v < 0 || *v > 1) {
		d.bad("otel_traces_sampler_arg", "the share is not from 0 to 1", "write 0.1 for every tenth request")
	}
	if v := t.OTelBSPScheduleDelay; v != nil && *v < 100 {
		d.bad("otel_bsp_schedule_delay", "the delay is below 100", "write milliseconds, such as 5000")
	}
	if v := t.OTelBSPMaxExportBatchSize; v != nil && *v < 1 {
		d.bad("otel_bsp_max_export_batch_size", "the size is below 1", "write a number such as 512")
	}
	for path, v := range map[string]*int64{"otel_exporter_otlp_timeout": t.OTelExporterOTLPTimeout, "otel_exporter_otlp_traces_timeout": t.OTelExporterOTLPTracesTimeout} {
		if v != nil && *v < 0 {
			d.bad(path, "the time is negative", "write milliseconds, such as 10000")
		}
	}
}

func (d *decoder) logField(key string, i int, name string, known []string) {
	hint := "use one of " + strings.Join(known, ", ") + ", headers.<Name>"
	if near := suggest(name, known); near != "" {
		hint = "did you mean " + near + "?"
	}
	d.problem(LevelLogged, KindUnknownKey, indexed(key, i), "the log field "+shorten(name)+" is unknown and left out", hint)
}

func (d *decoder) checkUpstream() {
	u := &d.cfg.Upstream
	for path, v := range map[string]*time.Duration{"dns_refresh_rate": u.DNSRefreshRate, "dns_failure_refresh_rate": u.DNSFailureRefreshRate} {
		if v != nil && *v < time.Millisecond {
			d.bad(path, "the time is below 1ms", "write a duration such as 30s")
		}
	}
	for i, r := range u.DNSResolvers {
		parsed, err := url.Parse(r)
		if err == nil {
			_, err = netip.ParseAddrPort(parsed.Host)
		}
		if err != nil || parsed.Scheme != "udp" && parsed.Scheme != "tcp" {
			d.bad(indexed("dns_resolvers", i), shorten(r)+" is not a resolver", "write udp://IP:port or tcp://IP:port")
		}
	}
	if a := u.BindSourceAddress; a != "" {
		if _, err := netip.ParseAddr(a); err != nil {
			d.bad("envoy_bind_config_source_address", shorten(a)+" is not an IP address", "write an address of this machine")
		}
	}
}

func (d *decoder) checkFeatures() {
	f := &d.cfg.Features
	for key, list := range map[string][]string{
		"mcp_allowed_client_id_domains":   f.MCPAllowedClientIDDomains,
		"mcp_allowed_as_metadata_domains": f.MCPAllowedASMetadataDomains,
	} {
		for i, host := range list {
			if host == "" {
				d.bad(indexed(key, i), "the entry is empty", "write a host, or *.host for its sub-domains")
			}
		}
	}
	if b := f.BlobStorage; b != nil && b.BucketURI != "" {
		scheme, _, ok := strings.Cut(b.BucketURI, "://")
		if !ok || !slices.Contains([]string{"gs", "s3", "azblob", "file"}, scheme) {
			d.bad("blob_storage.bucket_uri", shorten(b.BucketURI)+" is not the URI of a bucket", "write gs://, s3://, azblob:// or file://")
		}
	}
}

// policyAt compiles a policy document, or gives the one of an equal document,
// and takes over what is wrong with it.
func (d *decoder) policyAt(n *yaml.Node, path string) *policy.Policy {
	at := d.at(path)
	key, ok := policyKey(at.file, n)
	p := d.shared.find(key, ok, func() (*policy.Policy, bool) {
		p, warnings, err := policy.ParseNode(at.file, n, policy.Options{FoldCase: true, Path: path})
		take := func(found []policy.Problem, level Level) {
			for _, w := range found {
				d.add(Problem{File: w.File, Line: w.Line, Column: w.Column, Path: w.Path, Message: w.Message, Level: level})
			}
		}
		take(warnings, LevelWarning)
		if err != nil {
			if many, ok := err.(policy.Problems); ok {
				take(many, LevelFatal)
			} else {
				d.bad(path, err.Error(), "see the policy reference")
			}
			return nil, false
		}
		// What warns on a public route tells places, too.
		return p, len(warnings) == 0 && len(p.WarningsIfPublic()) == 0
	})
	return p.At(path, n.Line)
}
