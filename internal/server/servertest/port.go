package servertest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Port gives a free TCP and UDP port of 127.0.0.1 that nobody else gets while
// this process lives. It lies below the range that the kernel hands out
// (ip_local_port_range begins at 32768), so that neither an outgoing
// connection nor a listener on port 0 can take it before its user binds it,
// and a file lock keeps other test processes away from it.
func Port() (string, error) {
	dir := filepath.Join(os.TempDir(), "postern-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", err
	}
	for range 1000 {
		port := fmt.Sprint(12000 + rand.IntN(20000))
		fd, err := syscall.Open(filepath.Join(dir, port), syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o666)
		if err != nil {
			return "", err
		}
		// The descriptor stays open, and with it the lock, until the process ends.
		if syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB) == nil && free("127.0.0.1:"+port) {
			return port, nil
		}
		syscall.Close(fd)
	}
	return "", fmt.Errorf("no free port found between 12000 and 32000; too many programs listen there")
}

func free(addr string) bool {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	pc.Close()
	return true
}
