//go:build race

package authz

// The race detector makes pools forget at random.
const allocationsPromised = 16
