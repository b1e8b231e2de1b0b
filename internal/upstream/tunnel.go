package upstream

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"postern/internal/exchange"
)

// halfOpenFor bounds silence in a tunnel of which one end has closed, where
// the route sets no idle timeout.
const halfOpenFor = 5 * time.Minute

// websocketGUID is the constant of RFC 6455 §1.3.
const websocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// tunnel carries bytes both ways after 101.
func (e *trip) tunnel(out *outgoing, a response) error {
	up, upgrade := a.tunnel()
	if up == nil {
		a.close()
		return &Error{Kind: ErrBadResponse, Detail: "status 101 on a connection that cannot be taken over"}
	}
	defer up.Close()
	if !strings.EqualFold(upgrade, out.upgrade) {
		return &Error{Kind: ErrBadResponse, Detail: fmt.Sprintf("asked to upgrade to %s, the upstream chose another protocol", out.upgrade)}
	}
	head := a.head()
	head.Length = -1
	if out.key != "" {
		// The client speaks HTTP/2, where a tunnel is a CONNECT: the proof of
		// the handshake is for us.
		sum := sha1.Sum([]byte(out.key + websocketGUID))
		if head.Get("Sec-WebSocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]) {
			return &Error{Kind: ErrBadResponse, Detail: "the WebSocket handshake of the upstream is wrong"}
		}
		head.Status = http.StatusOK
		head.Del("Sec-WebSocket-Accept")
	}
	if e.o.OnResponse != nil {
		if err := e.o.OnResponse(&head); err != nil {
			return &Error{Kind: ErrBadResponse, Detail: err.Error(), Err: err}
		}
	}
	if head.Status == http.StatusSwitchingProtocols {
		head.Set("Connection", "Upgrade")
		head.Set("Upgrade", out.upgrade)
	}
	written := e.writes()
	if err := e.ctx.Err(); err != nil {
		written()
		return err
	}
	e.result.Status = head.Status
	conn, err := e.x.Tunnel(head.Status, exchange.Fields(head.Fields))
	written()
	if err != nil {
		return &clientError{err}
	}
	e.result.Tunnel = true
	e.result.Details = "via_upstream"
	return e.pipe(conn, up)
}

// pipe copies until both directions ended, one failed, or the context ends.
func (e *trip) pipe(client, up io.ReadWriteCloser) error {
	defer client.Close()
	closeBoth := func() {
		client.Close()
		up.Close()
	}
	stop := context.AfterFunc(e.ctx, closeBoth)
	defer stop()

	var received, sent atomic.Int64
	results := make(chan error, 2)
	go func() { results <- e.copyHalf(up, client, &received) }()
	go func() { results <- e.copyHalf(client, up, &sent) }()
	first := <-results
	if first != nil {
		closeBoth()
	} else if e.o.IdleTimeout <= 0 {
		e.touch()
		e.setIdle(halfOpenFor)
	}
	<-results
	e.result.RequestBytes = received.Load()
	e.result.ResponseBytes = sent.Load()
	if cause := context.Cause(e.ctx); cause != nil {
		return cause
	}
	// A tunnel has no proper end at this level: whoever closes first, even by
	// a reset, has ended it.
	return nil
}

// copyHalf copies one direction and passes its end on.
func (e *trip) copyHalf(dst io.WriteCloser, src io.Reader, n *atomic.Int64) error {
	var buf patient
	defer buf.free()
	for {
		b := buf.next()
		got, err := src.Read(b)
		if got > 0 {
			e.touch()
			if _, err := dst.Write(b[:got]); err != nil {
				return err
			}
			n.Add(int64(got))
			buf.took(got)
		}
		if err == io.EOF {
			cw, ok := dst.(interface{ CloseWrite() error })
			if !ok {
				return errors.ErrUnsupported // then the end of one is the end of both
			}
			return cw.CloseWrite()
		}
		if err != nil {
			return err
		}
	}
}
