package config

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// fileEvents tells when one of the files may have changed: a writer closed
// it, another file or link took its name, or that of a link on the way to it
// (as Kubernetes exchanges the content of a volume). It looks at directories,
// because what is replaced has another inode. Without inotify, or without
// room for one more watch, there are no events; nothing rests on them.
func fileEvents(paths []string) (events <-chan struct{}, stop func()) {
	none := func() {}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, none
	}
	names := map[int32]map[string]bool{} // by watch, what matters in the directory
	for _, path := range paths {
		for _, at := range entries(path) {
			dir, name := filepath.Split(at)
			const mask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_DELETE | unix.IN_ONLYDIR
			wd, err := unix.InotifyAddWatch(fd, dir, mask)
			if err != nil {
				continue
			}
			if names[int32(wd)] == nil {
				names[int32(wd)] = map[string]bool{}
			}
			names[int32(wd)][name] = true
		}
	}
	// The poller of the runtime waits, so that closing ends the reading.
	f := os.NewFile(uintptr(fd), "inotify")
	out := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			if err != nil {
				return
			}
			if matters(buf[:n], names) {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, func() { f.Close(); <-done }
}

// matters reports whether inotify events name something looked for, or tell
// that some were lost.
func matters(b []byte, names map[int32]map[string]bool) bool {
	for len(b) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(b))
		mask := binary.NativeEndian.Uint32(b[4:])
		size := int(binary.NativeEndian.Uint32(b[12:]))
		if size < 0 || size > len(b)-unix.SizeofInotifyEvent {
			return true
		}
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], []byte{0})
		if mask&unix.IN_Q_OVERFLOW != 0 || names[wd][string(name)] {
			return true
		}
		b = b[unix.SizeofInotifyEvent+size:]
	}
	return false
}

// maxLinks bounds how many symbolic links lead to a file.
const maxLinks = 40

// entries are the directory entries by which a path is found: the file, and
// every symbolic link on the way.
func entries(path string) []string {
	var out []string
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	at, rest := "/", strings.Split(strings.Trim(abs, "/"), "/")
	for links := 0; len(rest) > 0 && links < maxLinks; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(next)
		if err != nil {
			if len(rest) == 0 {
				out = append(out, next)
			}
			at = next
			continue
		}
		links++
		out = append(out, next)
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(filepath.Clean(target), "/"), "/"), rest...)
	}
	return out
}
