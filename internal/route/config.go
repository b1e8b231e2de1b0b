package route

// RouteConfig holds the settings that say which requests a route is for. The
// tags are the declaration that package config parses and documents.
type RouteConfig struct {
	_ struct{} `section:"3.1"`

	From string `key:"from" status:"acts" doc:"Where the route is reached: https://host[:port], tcp+https://host:port, udp+https://host:port, ssh://name; * in the host is a wildcard that crosses dots."`

	_ struct{} `section:"3.3"`

	Prefix             string `key:"prefix" status:"acts" doc:"Matches paths that start with this string."`
	Path               string `key:"path" status:"acts" doc:"Matches exactly this path; beats prefix."`
	Regex              string `key:"regex" form:"regex" status:"acts" doc:"RE2 that must match the entire path; beats path and prefix."`
	RegexPriorityOrder *int64 `key:"regex_priority_order" status:"acts" doc:"Order among routes from API and console, higher first; without effect among routes of a file."`

	_ struct{} `section:"3.7"`

	TLSDownstreamServerName string `key:"tls_downstream_server_name" status:"acts" doc:"Server name (SNI) expected of clients where it differs from the host of from."`

	_ struct{} `section:"3.11"`

	ID          string `key:"id" status:"acts" doc:"Identity of the route in logs and records; derived from from, matcher and action if unset."`
	Name        string `key:"name" status:"acts" doc:"Display name, also the name in metrics and logs."`
	Description string `key:"description" status:"acts" doc:"Text shown in the routes portal."`
	LogoURL     string `key:"logo_url" status:"acts" doc:"Picture shown in the routes portal."`
}
