package proxy

import (
	"context"
	"time"
)

// lastRequests is how long a retiring server waits for what its clients have
// on the way to it, before it closes connections that do nothing.
const lastRequests = 5 * time.Second

// Retire drains without a scratch, for a server whose place another has taken
// already. Clients are told with their next answer not to come back on this
// connection (Connection: close, GOAWAY). One without a request in
// lastRequests is closed; requests and tunnels may finish until ctx ends, as in
// Shutdown. Whoever gave the listeners must have stopped accepting.
func (s *Server) Retire(ctx context.Context) error {
	s.retiring.Store(true)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(lastRequests); time.Now().Before(end) && s.Connections() > 0; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s.Shutdown(ctx)
		}
	}
	return s.Shutdown(ctx)
}
