//go:build tools

// Package lint pins the linter that `make check` builds.
package lint

import _ "honnef.co/go/tools/cmd/staticcheck"
