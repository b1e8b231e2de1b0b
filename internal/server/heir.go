package server

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"postern/internal/config"
	"postern/internal/store/handover"
)

// heir is the new process's side of an upgrade (see upgrade.go): the steps that
// the old process asks for. A nil heir is a process that began by itself.
type heir struct {
	bequest                              bequest
	conn                                 net.Conn
	ln                                   *handover.OneConn
	prepared, opened, serving, committed *step

	mu      sync.Mutex
	records http.Handler
	reload  func() []string
}

// step is one rendezvous: the old process asks, this one answers, once.
type step struct {
	asked  chan struct{}
	ask    sync.Once
	given  io.Reader // what came with the question
	done   chan struct{}
	finish sync.Once
	err    error
}

func newStep() *step { return &step{asked: make(chan struct{}), done: make(chan struct{})} }

func (p *step) answer(err error) { p.finish.Do(func() { p.err = err; close(p.done) }) }

// newHeir reads what an old process left; nil if there is none.
func newHeir(env []string) (*heir, error) {
	text := environ(env)[upgradeVar]
	if text == "" {
		return nil, nil
	}
	h := &heir{prepared: newStep(), opened: newStep(), serving: newStep(), committed: newStep()}
	if err := json.Unmarshal([]byte(text), &h.bequest); err != nil {
		return nil, fmt.Errorf("%s is not to be set by hand: %w", upgradeVar, err)
	}
	unix.CloseOnExec(h.bequest.Link)
	f := os.NewFile(uintptr(h.bequest.Link), "predecessor")
	if f == nil {
		return nil, fmt.Errorf("%s is not to be set by hand: it names no open descriptor", upgradeVar)
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("%s is not to be set by hand: %w", upgradeVar, err)
	}
	h.conn, h.ln = conn, handover.NewOneConn(conn)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /prepared", h.handle(h.prepared, nil))
	mux.HandleFunc("POST /store", h.handle(h.opened, func(r io.Reader) io.Reader { return r }))
	mux.HandleFunc("POST /serve", h.handle(h.serving, nil))
	mux.HandleFunc("POST /commit", h.handle(h.committed, nil))
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		reload := h.reload
		h.mu.Unlock()
		if reload == nil {
			http.Error(w, "not serving yet", http.StatusServiceUnavailable)
		} else if problems := reload(); len(problems) > 0 {
			http.Error(w, strings.Join(problems, "\n"), http.StatusConflict)
		}
	})
	mux.HandleFunc("/records/", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		records := h.records
		h.mu.Unlock()
		if records == nil {
			http.Error(w, "not open yet", http.StatusServiceUnavailable)
			return
		}
		records.ServeHTTP(w, r)
	})
	go handover.Serve(context.Background(), h.ln, mux)
	return h, nil
}

func (h *heir) handle(p *step, take func(io.Reader) io.Reader) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p.ask.Do(func() {
			if take != nil {
				p.given = take(r.Body)
			}
			close(p.asked)
		})
		select {
		case <-p.done:
		case <-r.Context().Done():
			return
		}
		if p.err != nil {
			http.Error(w, p.err.Error(), http.StatusServiceUnavailable)
		}
	}
}

// await waits until the old process asks for a step.
func (h *heir) await(ctx context.Context, p *step) error {
	select {
	case <-p.asked:
		return nil
	case <-h.ln.Done():
		return errors.New("the old process ended, or gave the upgrade up")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fail answers every step that is left, and waits for that to be heard.
func (h *heir) fail(err error) {
	if h == nil || err == nil {
		return
	}
	for _, p := range []*step{h.prepared, h.opened, h.serving, h.committed} {
		p.answer(err)
	}
	select {
	case <-h.ln.Done(): // the old process has heard it
	case <-time.After(2 * time.Second):
	}
}

// replaces tells whether the control socket at path is the old process's.
func (h *heir) replaces(path string) bool {
	return h != nil && h.bequest.Control != "" && h.bequest.Control == path
}

// inherit takes the sockets over.
func (h *heir) inherit(g *given) error {
	for _, x := range h.bequest.Sockets {
		if err := g.add(x.Name, x.Addr, x.FD); err != nil {
			return err
		}
	}
	return nil
}

// prepare says that the configuration is good, and waits for the records.
func (h *heir) prepare(ctx context.Context, cfg *config.Config) (secret []byte, carried io.Reader, err error) {
	if was, is := h.bequest.Storage, storagePlace(cfg); was != is {
		err := fmt.Errorf("the records were in %s and are now to be in %s; that needs a restart", place(was), place(is))
		return nil, nil, err
	}
	h.prepared.answer(nil)
	if err := h.await(ctx, h.opened); err != nil {
		return nil, nil, err
	}
	r := bufio.NewReader(h.opened.given)
	line, err := r.ReadString('\n')
	if err == nil {
		secret, err = hex.DecodeString(strings.TrimSpace(line))
	}
	if err != nil {
		return nil, nil, fmt.Errorf("what the old process hands over cannot be read: %w; restart instead", err)
	}
	return secret, r, nil
}

func place(p [2]string) string {
	return strings.TrimSpace(p[0] + " " + p[1])
}
