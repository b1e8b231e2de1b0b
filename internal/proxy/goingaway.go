package proxy

import "sync"

// tunnels are the open tunnels of a server, so that WebSockets can be told at
// once that it is about to end, rather than at the end of the drain.
type tunnels struct {
	mu      sync.Mutex
	open    map[*cuttable]struct{}
	leaving bool
}

// goingAwayText is what a WebSocket hears besides status 1001.
const goingAwayText = "the server is going away; connect again"

func (t *tunnels) add(c *cuttable) {
	if t == nil || !c.websocket {
		return
	}
	t.mu.Lock()
	leaving := t.leaving
	if !leaving {
		if t.open == nil {
			t.open = map[*cuttable]struct{}{}
		}
		t.open[c] = struct{}{}
	}
	t.mu.Unlock()
	if leaving {
		c.cut(goingAwayClosure, goingAwayText)
	}
}

func (t *tunnels) remove(c *cuttable) {
	if t == nil || c == nil {
		return
	}
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
}

// LeaveUDP ends HTTP/3: idle connections close, others once their requests are
// answered, and WebSockets are told to come again.
func (s *Server) LeaveUDP() {
	s.mu.Lock()
	var open []*quicConn
	for _, q := range s.quic {
		open = append(open, q)
	}
	s.mu.Unlock()
	t := &s.tunnels
	t.mu.Lock()
	var told []*cuttable
	for c := range t.open {
		if st, ok := c.Conn.(*streamConn); ok && st.info != nil && st.info.quic != nil {
			told = append(told, c)
		}
	}
	t.mu.Unlock()
	for _, c := range told {
		c.cut(goingAwayClosure, goingAwayText)
	}
	for _, q := range open {
		q.drain()
	}
}

// GoAway sends a close frame with status 1001 (RFC 6455 §7.4.1) to every open
// WebSocket, and to those still being opened. Other streams are left alone.
func (s *Server) GoAway() {
	t := &s.tunnels
	t.mu.Lock()
	t.leaving = true
	open := t.open
	t.open = nil
	t.mu.Unlock()
	for c := range open {
		c.cut(goingAwayClosure, goingAwayText)
	}
}
