//go:build soak

package server_test

import "time"

const faultsFor = 2 * time.Minute
