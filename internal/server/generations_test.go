package server_test

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// TestGenerationsAreLetGo: a stream that stays open over many changes does not
// keep the generation that it began under. Each change makes a table of all
// routes; were it kept, memory would grow by that.
func TestGenerationsAreLetGo(t *testing.T) {
	const routes, changes = 3000, 12
	var b strings.Builder
	for i := range routes {
		fmt.Fprintf(&b, "  - {from: https://r%d.localhost, response: {status: 200, body: x}, allow_public_unauthenticated_access: true}\n", i)
	}
	text := func(n int) string {
		return fmt.Sprintf("%s%s  - {from: https://n%d.localhost, response: {status: 200, body: x}, allow_public_unauthenticated_access: true}\n",
			strings.Replace(public, "to: @APP@", "to: @APP@, allow_websockets: true", 1), b.String(), n)
	}
	p := servertest.Start(t, text(0))
	heap := func() uint64 {
		var m runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	open := func() {
		t.Helper()
		conn, r, _, err := p.Agent().Upgrade("https://app.localhost/", "websocket")
		noErr(t, err)
		t.Cleanup(func() { conn.Close() })
		go io.Copy(io.Discard, r)
	}
	for n := range 3 { // warm
		open()
		p.Change(text(n + 1))
	}
	before := heap()
	for n := range changes {
		open()
		p.Change(text(n + 10))
	}
	grown := int64(heap()) - int64(before)
	t.Logf("%d KB for %d changes with a stream each over %d routes", grown>>10, changes, routes)
	// A generation of these routes is twice that. A connection keeps the
	// certificates that it was opened under.
	if grown > changes*640<<10 {
		t.Errorf("%d KB kept for %d changes", grown>>10, changes)
	}
}
