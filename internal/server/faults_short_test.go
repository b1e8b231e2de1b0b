//go:build !soak

package server_test

import "time"

// faultsFor is how long upstreams are mistreated.
const faultsFor = 4 * time.Second
