package upstream

import (
	"os"
	"strings"
	"syscall"
)

const (
	ipBindAddressNoPort = 24 // IP_BIND_ADDRESS_NO_PORT, linux/in.h
	ipv6Freebind        = 78 // IPV6_FREEBIND, linux/in6.h
)

// bindOptions sets what a socket needs before it is bound.
func bindOptions(network string, c syscall.RawConn, b Bind) error {
	if !strings.HasPrefix(network, "tcp") && !strings.HasPrefix(network, "udp") {
		return nil
	}
	var err error
	if controlErr := c.Control(func(fd uintptr) {
		if b.Source.IsValid() {
			// The port is chosen on connecting: then it need only be unique for
			// the destination. A kernel that does not know this loses nothing.
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_IP, ipBindAddressNoPort, 1)
		}
		if b.Free {
			level, option := syscall.SOL_IP, syscall.IP_FREEBIND
			if network == "tcp6" {
				level, option = syscall.SOL_IPV6, ipv6Freebind
			}
			err = os.NewSyscallError("setsockopt(IP_FREEBIND)", syscall.SetsockoptInt(int(fd), level, option, 1))
		}
	}); controlErr != nil {
		return controlErr
	}
	return err
}
