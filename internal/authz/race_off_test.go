//go:build !race

package authz

// Both are the test view's own iterators.
const allocationsPromised = 2
