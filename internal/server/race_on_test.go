//go:build race

package server_test

// The race detector makes everything several times slower.
const manyReloads = 100
