package upstream

import (
	"net/http"
	"sync"

	"postern/internal/exchange"
	"postern/internal/upstream/http1"
)

var errInterim = &http1.Malformed{Reason: "too many interim answers"}

// informer passes on the 1xx answers of a connection that Transport reads, from
// a goroutine of its own: others share that connection, and a client that
// reads nothing must not hold them up.
type informer struct {
	e *trip

	mu    sync.Mutex
	n     int
	over  bool
	queue chan interim // nil until the first
	done  chan struct{}
}

type interim struct {
	status int
	fields []exchange.Field
}

// add is called by Transport, perhaps after the exchange was given up.
func (i *informer) add(status int, h http.Header) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.n++; i.over || i.n > http1.MaxInterim {
		return errInterim
	}
	if status == http.StatusContinue {
		return nil // the client gets its own when its body is read
	}
	if i.queue == nil {
		i.queue, i.done = make(chan interim, http1.MaxInterim), make(chan struct{})
		go i.run(i.queue)
	}
	i.queue <- interim{status, endToEnd(h)}
	return nil
}

func (i *informer) run(queue <-chan interim) {
	defer close(i.done)
	failed := false
	for a := range queue {
		failed = failed || i.e.inform(a.status, a.fields) != nil
	}
}

// finish waits until all that came is sent.
func (i *informer) finish() {
	i.mu.Lock()
	i.over = true
	if i.queue != nil {
		close(i.queue)
	}
	i.mu.Unlock()
	if i.done != nil {
		<-i.done
	}
}
