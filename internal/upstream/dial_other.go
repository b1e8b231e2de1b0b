//go:build !linux

package upstream

import (
	"errors"
	"syscall"
)

func bindOptions(_ string, _ syscall.RawConn, b Bind) error {
	if b.Free {
		return errors.New("envoy_bind_config_freebind needs Linux; remove it")
	}
	return nil
}
