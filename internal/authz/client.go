package authz

import (
	"strings"

	"postern/internal/exchange"
	"postern/internal/policy"
)

// Client is the kind of client, by which a refusal is written
// (wire-contract.md §1.4).
type Client uint8

// The kinds of client.
const (
	ClientBrowser    Client = iota // HTML
	ClientJSON                     // prefers JSON to HTML
	ClientGRPC                     // application/grpc
	ClientGRPCWeb                  // application/grpc-web
	ClientKubernetes               // kubectl and kin
)

// ClientOf tells what kind of client sent a request.
func ClientOf(v exchange.View) Client {
	if strings.Contains(v.Header("User-Agent"), "kubernetes/") {
		return ClientKubernetes
	}
	kind, _, _ := strings.Cut(v.Header("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	switch {
	case strings.HasPrefix(kind, "application/grpc-web"):
		return ClientGRPCWeb
	case kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+"):
		return ClientGRPC
	}
	if accept := v.Header("Accept"); accept != "" && strings.Contains(strings.ToLower(accept), "json") && !policy.AcceptsHTML(accept) {
		return ClientJSON
	}
	return ClientBrowser
}

// GRPCStatus is the gRPC code for an HTTP status (wire-contract.md §1.4).
func GRPCStatus(httpStatus int) int {
	switch httpStatus {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}
