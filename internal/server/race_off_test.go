//go:build !race

package server_test

const manyReloads = 1000
