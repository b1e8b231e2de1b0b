package config

import (
	"time"

	"go.yaml.in/yaml/v3"
)

// RPC holds the settings of internal RPC (configuration.md §2.9), which
// nothing serves yet.
type RPC struct {
	_ struct{} `section:"2.9"`

	GRPCAddress       string        `key:"grpc_address" default:":443" status:"accepted" doc:"Listener, host:port, of internal RPC, where authorize or databroker runs."`
	GRPCInsecure      *bool         `key:"grpc_insecure" status:"accepted" doc:"Internal RPC without TLS."`
	GRPCClientTimeout time.Duration `key:"grpc_client_timeout" default:"10s" status:"accepted" doc:"Time for one internal call; 0 is read as 30s."`
}

// Features holds the settings of §2.16: what later rooms of the house obey.
type Features struct {
	_ struct{} `section:"2.16"`

	SSHAddress              string     `key:"ssh_address" status:"accepted" doc:"Listener, host:port, of the SSH door; off if unset."`
	SSHHostKeyFiles         []string   `key:"ssh_host_key_files" status:"accepted" doc:"Files of the SSH host keys, one per algorithm, readable by their owner only."`
	SSHHostKeys             []string   `key:"ssh_host_keys" secret:"true" status:"accepted" doc:"SSH host keys, one per algorithm."`
	SSHUserCAKeyFile        string     `key:"ssh_user_ca_key_file" form:"file" status:"accepted" doc:"File of the key that signs SSH user certificates; beats ssh_user_ca_key."`
	SSHUserCAKey            string     `key:"ssh_user_ca_key" secret:"true" status:"accepted" doc:"Key that signs SSH user certificates."`
	SSHRLSEnabled           bool       `key:"ssh_rls_enabled" status:"accepted" doc:"Rate-limit inbound SSH through a limit service."`
	SSHRLSAdditionalEntries []RLSEntry `key:"ssh_rls_additional_entries" env:"-" status:"accepted" doc:"Further descriptors sent to the limit service."`

	MCPAllowedClientIDDomains   []string `key:"mcp_allowed_client_id_domains" status:"accepted" doc:"Hosts allowed in client ids of MCP that are URLs; *.x is every sub-domain of x. An empty list refuses all."`
	MCPAllowedASMetadataDomains []string `key:"mcp_allowed_as_metadata_domains" status:"accepted" doc:"Hosts that may be asked in the discovery of authorization servers of MCP upstreams."`

	BlobStorage                 *BlobStorage `key:"blob_storage" status:"accepted" doc:"Where session recordings are kept."`
	SessionRecordingConcurrency uint32       `key:"session_recording_concurrency" default:"8" status:"accepted" doc:"Uploads of recordings at once."`
	EnvoyDynamicExtensions      []string     `key:"envoy_dynamic_extensions" status:"accepted" doc:"Shared objects for another data plane; understood and ignored."`
	AutoApplyChangesets         *bool        `key:"auto_apply_changesets" status:"accepted" doc:"Console behaviour; without effect in the proxy."`

	// RuntimeFlags holds every known flag, merged over the defaults.
	RuntimeFlags map[string]bool `key:"runtime_flags" form:"flags" status:"acts" doc:"Switches by name, merged over their defaults."`
}

// RLSEntry is a descriptor sent to a limit service.
type RLSEntry struct {
	Key   string `key:"key" status:"accepted" doc:"Key of the descriptor."`
	Value string `key:"value" status:"accepted" doc:"Value of the descriptor."`
}

// BlobStorage names a bucket for recordings.
type BlobStorage struct {
	BucketURI     string `key:"bucket_uri" status:"accepted" doc:"gs://, s3://, azblob:// or file:// URI of the bucket, with options in the query."`
	ManagedPrefix string `key:"managed_prefix" status:"accepted" doc:"Prefix in the bucket, assigned by the console."`
}

// flagDefaults are the runtime flags and their defaults (configuration.md §2.16).
var flagDefaults = map[string]bool{
	"add_extra_metrics_labels":               true,
	"allow_any_sign_out_redirect_uri":        false,
	"authorize_use_synced_data":              true,
	"config_hot_reload":                      true,
	"debug_admin_endpoints":                  false,
	"envoy_resource_manager":                 true,
	"grpc_databroker_keepalive":              true,
	"match_any_incoming_port":                true,
	"mcp":                                    true,
	"mcp_dynamic_client_registration":        false,
	"pomerium_jwt_endpoint":                  false,
	"refresh_session_at_id_token_expiration": true,
	"routes_portal":                          true,
	"set_envoy_concurrency_to_go_max_procs":  true,
	"ssh_allow_direct_tcpip":                 false,
	"ssh_routes_portal":                      false,
	"ssh_upstream_tunnel":                    false,
}

// RouteExtra holds route settings of upstreams of a special kind; most act
// only once their doors are there.
type RouteExtra struct {
	_ struct{} `section:"3.11"`

	KubernetesToken     string `key:"kubernetes_service_account_token" secret:"true" status:"acts" doc:"Token for a Kubernetes API server, which is told the user by impersonation headers."`
	KubernetesTokenFile string `key:"kubernetes_service_account_token_file" form:"file" status:"acts" doc:"File holding the token; not together with kubernetes_service_account_token."`
	GoogleServerless    bool   `key:"enable_google_cloud_serverless_authentication" status:"accepted" doc:"Send a Google identity token to the upstream."`

	_ struct{} `section:"3.12"`

	MCP              *MCP              `key:"mcp" status:"accepted" doc:"Makes the route an MCP server or an MCP client."`
	UpstreamTunnel   *UpstreamTunnel   `key:"upstream_tunnel" status:"accepted" doc:"Who may serve the route over reverse SSH; needs the flag ssh_upstream_tunnel."`
	SessionRecording *SessionRecording `key:"session_recording" status:"accepted" doc:"Recording of SSH sessions."`

	_ struct{} `section:"ours"`

	PolicyTests  *yaml.Node `key:"policy_tests" form:"cases" status:"acts" doc:"Cases (request, user, expect), as in a policy test file, put to the route's own policies at load and by validate. One that fails refuses the configuration."`
	ShadowPolicy *yaml.Node `key:"shadow_policy" form:"node" status:"acts" doc:"Policy document that is judged on live traffic as if it stood in the place of policy. It decides nothing; what it would have decided is in the authorize log (shadow-allow, shadow-deny) and in the metrics postern_policy_shadow_*_total."`
}

// MCP makes a route an MCP server or client (configuration.md §3.12).
type MCP struct {
	Server *MCPServer `key:"server" status:"accepted" doc:"The upstream is an MCP server; {} will do."`
	Client *MCPClient `key:"client" status:"accepted" doc:"The upstream is an application that calls MCP servers; {} will do."`
}

// MCPServer describes an MCP upstream.
type MCPServer struct {
	Path                   string          `key:"path" default:"/" status:"accepted" doc:"Path told in the list of servers."`
	MaxRequestBytes        *uint32         `key:"max_request_bytes" default:"4096" status:"accepted" doc:"How much of a request body is inspected."`
	AuthorizationServerURL string          `key:"authorization_server_url" status:"accepted" doc:"Issuer used where discovery finds none; https."`
	UpstreamOAuth2         *UpstreamOAuth2 `key:"upstream_oauth2" status:"accepted" doc:"OAuth client of this upstream; found by discovery as far as unset."`
}

// UpstreamOAuth2 is the OAuth client of an MCP upstream.
type UpstreamOAuth2 struct {
	ClientID               string            `key:"client_id" status:"accepted" doc:"OAuth client id."`
	ClientSecret           string            `key:"client_secret" secret:"true" status:"accepted" doc:"OAuth client secret."`
	Endpoint               *OAuth2Endpoint   `key:"endpoint" aliases:"oauth2_endpoint" status:"accepted" doc:"Where the authorization server is."`
	Scopes                 []string          `key:"scopes" status:"accepted" doc:"Scopes asked for."`
	AuthorizationURLParams map[string]string `key:"authorization_url_params" status:"accepted" doc:"Extra parameters of the authorization request."`
}

// OAuth2Endpoint says where an authorization server is.
type OAuth2Endpoint struct {
	AuthURL   string `key:"auth_url" status:"accepted" doc:"Authorization endpoint."`
	TokenURL  string `key:"token_url" status:"accepted" doc:"Token endpoint."`
	AuthStyle string `key:"auth_style" enum:"|header|params" prefix:"oauth2_auth_style_in" status:"accepted" doc:"How the client shows its secret: header or params; tried if unset."`
}

// MCPClient marks a route whose upstream calls MCP servers.
type MCPClient struct{}

// UpstreamTunnel says who may serve a route over reverse SSH.
type UpstreamTunnel struct {
	SSHPolicy     *yaml.Node `key:"ssh_policy" form:"node" status:"accepted" doc:"Policy document for those who serve the route."`
	SSHPolicyRego []string   `key:"ssh_policy_rego" status:"accepted" doc:"The same in Rego."`
}

// SessionRecording switches the recording of SSH sessions.
type SessionRecording struct {
	Enabled bool `key:"enabled" status:"accepted" doc:"Record sessions on this route."`
}
