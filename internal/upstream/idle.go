package upstream

import (
	"sync"
	"time"

	"postern/internal/upstream/http1"
)

// idleConns are the unused HTTP/1.1 connections to one host, the last used
// one on top: under little load few connections do the work, and the others
// grow old and close.
type idleConns struct {
	mu      sync.Mutex
	list    []idleConn
	reaper  *time.Timer // runs while the list is not empty
	retired bool
}

type idleConn struct {
	c     *http1.Conn
	since time.Time
}

// take gives a connection that is still open and silent, or nil.
func (p *idleConns) take() *http1.Conn {
	for {
		p.mu.Lock()
		n := len(p.list)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.list[n-1].c
		p.list[n-1] = idleConn{}
		p.list = p.list[:n-1]
		p.mu.Unlock()
		if c.Quiet() {
			return c
		}
		c.Close()
	}
}

// put keeps a connection for another request. It reports false if the host is
// retired: then the caller closes it.
func (p *idleConns) put(c *http1.Conn) bool {
	c.Rest()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return false
	}
	p.list = append(p.list, idleConn{c, time.Now()})
	if p.reaper == nil {
		p.reaper = time.AfterFunc(idleFor, p.reap)
	}
	return true
}

// close closes all unused connections, and with retire also those that come
// back later.
func (p *idleConns) close(retire bool) {
	p.mu.Lock()
	list := p.list
	p.list, p.retired = nil, p.retired || retire
	if p.reaper != nil {
		p.reaper.Stop()
		p.reaper = nil
	}
	p.mu.Unlock()
	for _, i := range list {
		i.c.Close()
	}
}

// reap closes what was unused for idleFor.
func (p *idleConns) reap() {
	p.mu.Lock()
	var old []idleConn
	n := 0
	for n < len(p.list) && time.Since(p.list[n].since) >= idleFor {
		n++
	}
	old = append(old, p.list[:n]...)
	p.list = append(p.list[:0], p.list[n:]...)
	if len(p.list) == 0 {
		p.reaper = nil
	} else {
		p.reaper = time.AfterFunc(idleFor-time.Since(p.list[0].since), p.reap)
	}
	p.mu.Unlock()
	for _, i := range old {
		i.c.Close()
	}
}
