package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"time"
)

// tcpCheck connects, sends, and waits for bytes; without bytes to wait for,
// connecting is all. A TLS endpoint is spoken to through TLS.
type tcpCheck struct {
	send    []byte
	receive [][]byte
}

type tcpProber struct {
	t    *Target
	h    *host
	c    *healthCheck
	conn net.Conn // kept from the last check
}

func (p *tcpProber) connect(ctx context.Context) (net.Conn, error) {
	if p.h.endpoint.scheme == "https" {
		c, err := p.t.dialCheckTLS(ctx, p.h, p.c.altPort, nil)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	return p.t.dialPort(ctx, p.h, p.c.altPort)
}

func (p *tcpProber) probe(ctx context.Context) verdict {
	if p.conn == nil {
		c, err := p.connect(ctx)
		if err != nil {
			return verdict{reason: explain(err)}
		}
		p.conn = c
	}
	conn := p.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	v := p.talk(conn)
	inTime := stop()
	// A connection is kept only to be spoken on again; whether a new one can
	// be made is all that a check without receive tells.
	if !v.ok || !inTime || !p.c.reuse || len(p.c.tcp.receive) == 0 {
		p.close()
	}
	return v
}

func (p *tcpProber) talk(c net.Conn) verdict {
	if len(p.c.tcp.send) > 0 {
		if _, err := c.Write(p.c.tcp.send); err != nil {
			return verdict{reason: "sending failed: " + err.Error()}
		}
	}
	var got []byte
	buf := make([]byte, 1024)
	for !matches(got, p.c.tcp.receive) {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case matches(got, p.c.tcp.receive):
			return verdict{ok: true}
		case errors.Is(err, io.EOF):
			return verdict{reason: "the connection was closed before what receive names came"}
		case err != nil:
			return verdict{reason: "receiving failed: " + err.Error()}
		case len(got) > maxChecked:
			return verdict{reason: "what receive names did not come"}
		}
	}
	return verdict{ok: true}
}

func (p *tcpProber) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}
