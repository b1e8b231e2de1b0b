// Package xconnect turns on extended CONNECT (RFC 8441), and with it WebSockets
// over HTTP/2, in the HTTP/2 server of net/http. Import it for that effect:
//
//	import _ "postern/internal/proxy/xconnect"
//
// That server takes part only if GODEBUG holds http2xconnect=1, which it reads
// once, while it is initialised. So the setting must be there before, and it
// is: of the packages whose imports are ready, the one with the least import
// path is initialised first (Go specification, "Program initialization"). This
// package imports os alone, and net/http imports packages below vendor/, which
// comes after it. TestExtendedConnectIsOffered in package proxy notices if that
// should ever change.
//
// An http2xconnect that the environment sets already, to whatever, is kept.
package xconnect

import "os"

// Setting is what the environment holds for the HTTP/2 server.
var Setting = set()

func set() string {
	const name, on = "http2xconnect=", "http2xconnect=1"
	v := os.Getenv("GODEBUG")
	for i := 0; i+len(name) <= len(v); i++ {
		if v[i:i+len(name)] == name {
			return v
		}
	}
	if v != "" {
		v += ","
	}
	v += on
	_ = os.Setenv("GODEBUG", v)
	return v
}
