package route

import "strings"

// Own says which of Postern's own paths a request is for. Own paths come
// before routes and never reach an upstream (configuration.md §3.4,
// wire-contract.md §2).
type Own uint8

const (
	// OwnNone: not one of ours.
	OwnNone Own = iota
	// OwnInternal: /ping, /healthz, /.pomerium, /.well-known/pomerium and what
	// is below the last two; on every host.
	OwnInternal
	// OwnSignIn: /oauth2/callback and, on a dedicated sign-in host, "/" and
	// /robots.txt.
	OwnSignIn
	// OwnMCP: the OAuth metadata of MCP hosts.
	OwnMCP
)

// IsInternalPath reports whether a canonical path is reserved on every host.
func IsInternalPath(path string) bool {
	if len(path) < 5 {
		return false
	}
	switch path[1] {
	case 'p':
		return path == "/ping"
	case 'h':
		return path == "/healthz"
	case '.':
		return isOrBelow(path, "/.pomerium") || isOrBelow(path, "/.well-known/pomerium")
	}
	return false
}

func isOrBelow(path, dir string) bool {
	return strings.HasPrefix(path, dir) && (len(path) == len(dir) || path[len(dir)] == '/')
}

// signInRole says what a host serves of sign-in.
type signInRole uint8

const (
	notSignIn signInRole = iota
	// sharedSignIn is an application's host that also serves sign-in.
	sharedSignIn
	// dedicatedSignIn is the host of authenticate_service_url.
	dedicatedSignIn
)

func ownPath(path string, role signInRole, mcp bool) Own {
	switch {
	case IsInternalPath(path):
		return OwnInternal
	case role != notSignIn && isOrBelow(path, "/oauth2/callback"):
		return OwnSignIn
	case role == dedicatedSignIn && (path == "/" || path == "/robots.txt"):
		return OwnSignIn
	case mcp && (path == "/.well-known/oauth-authorization-server" ||
		strings.HasPrefix(path, "/.well-known/oauth-protected-resource")):
		return OwnMCP
	}
	return OwnNone
}
