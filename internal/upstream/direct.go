package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"sync"
	"time"

	"postern/internal/upstream/http1"
)

// continueFor is how long an upstream may take to say 100 (Continue) before
// the body goes out unasked (RFC 9110 §10.1.1).
const continueFor = time.Second

// errSpeaksHTTP1: an upstream chose HTTP/1.1 where Transport would have spoken
// HTTP/2. Nothing was sent.
var errSpeaksHTTP1 = errors.New("the upstream chose HTTP/1.1")

var headBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, 4<<10)
	return &b
}}

// direct sends a request over HTTP/1.1, in this goroutine, and waits for the
// head of the answer.
func (e *trip) direct(h *host, l *links, out *outgoing) (response, error) {
	a := &direct{e: e, reuse: &l.idle, isHead: e.isHead}
	if out.upgrade != "" {
		a.reuse = nil // such a connection is for one exchange
	}
	buf := headBuffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 2*smallBody {
			headBuffers.Put(buf)
		}
	}()
	request, err := out.appendHead((*buf)[:0])
	if err != nil {
		return nil, err
	}
	if out.size != 0 {
		if a.sender, _ = e.upload.(*sender); a.sender == nil {
			a.sender = &sender{src: e.x.Body(), out: out, touched: e.touch, ended: e.startHeadClock}
			e.setUpload(a.sender)
		}
		if out.size > 0 && out.size <= smallBody && !out.expect {
			if err := a.sender.readFirst(); err != nil {
				return nil, &clientError{err}
			}
			request = append(request, a.sender.kept...)
		}
	} else {
		e.startHeadClock()
	}
	*buf = request[:0]
	for try := 0; ; try++ {
		if a.conn, err = e.connection(h, l, a.reuse != nil && try == 0); err != nil {
			return nil, err
		}
		nothing, err := e.ask(a, out, request)
		if err == nil {
			return a, nil
		}
		a.conn.Close()
		// A connection that was closed while it rested tells when it is used.
		// The request goes out again only if it cannot have been acted upon,
		// or changes nothing, and its body is still at hand.
		if !a.conn.Used() || !nothing || e.ctx.Err() != nil || a.sender != nil && a.sender.done != nil {
			return nil, err
		}
	}
}

// ask sends a request and reads the head of the answer. After an error,
// nothing says that the request may be sent again.
func (e *trip) ask(a *direct, out *outgoing, request []byte) (nothing bool, err error) {
	c := a.conn
	c.Begin()
	a.Answer.Status = 0
	if n, err := c.Write(request); err != nil {
		// It may have answered, and closed, without waiting for the end.
		if n == 0 || c.ReadHead(&a.Answer, http1.Expect{Head: e.isHead}) != nil || a.Status < 200 {
			return n == 0, err
		}
		c.Fail() // half a request is on it
		e.spoke()
		return false, nil
	}
	stream := a.sender != nil && !a.sender.whole
	waiting := stream && out.expect
	if stream && !waiting {
		a.sender.start(c)
	}
	for {
		if waiting {
			e.deadline(c, time.Now().Add(continueFor))
		}
		err := c.ReadHead(&a.Answer, http1.Expect{Head: e.isHead, Upgrade: out.upgrade != ""})
		if waiting {
			e.deadline(c, time.Time{})
			if err == nil && a.Status >= 200 {
				e.spoke()
				return false, nil // and the body is never asked for
			}
			if err == nil && a.Status == http.StatusContinue || err != nil && isTimeout(err) && e.ctx.Err() == nil {
				waiting = false
				a.sender.start(c)
				continue
			}
		}
		if err != nil {
			return a.sender == nil && a.Status == 0 && idempotent(out.method) && !isMalformed(err), err
		}
		if a.Status >= 200 || a.Status == http.StatusSwitchingProtocols {
			e.spoke()
			return false, nil
		}
		e.touch()
		// The client gets its own 100 when its body is read.
		if a.Status != http.StatusContinue {
			if err := e.inform(a.Status, a.Fields); err != nil {
				return false, err
			}
		}
	}
}

func isMalformed(err error) bool {
	var m *http1.Malformed
	return errors.As(err, &m)
}

// idempotent methods may be sent twice (RFC 9110 §9.2.2); PUT and DELETE are
// left out, as everybody does.
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// connection gives a connection to a host: one that rests, if again allows that
// and there is one, or a new one.
func (e *trip) connection(h *host, l *links, again bool) (c *http1.Conn, err error) {
	if again {
		c = l.idle.take()
	}
	if c == nil {
		if c, err = e.t.dialHTTP1(e.ctx, h); err != nil {
			return nil, err
		}
	}
	if !e.setConn(c) {
		c.Close()
		return nil, context.Cause(e.ctx)
	}
	return c, nil
}

// dialHTTP1 makes a connection that speaks HTTP/1.1.
func (t *Target) dialHTTP1(ctx context.Context, h *host) (*http1.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := t.connect(ctx, h, nil)
	if err != nil {
		return nil, err
	}
	if h.endpoint.scheme != "https" {
		return http1.NewConn(raw), nil
	}
	c := tls.Client(raw, t.tlsConfigFor(h, []string{"http/1.1"}))
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, &connectError{&tlsError{err}}
	}
	return http1.NewConn(c), nil
}
