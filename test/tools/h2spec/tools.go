//go:build tools

// Package tools pins h2spec, the conformance tests of HTTP/2
// (docs/conformance.md).
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
