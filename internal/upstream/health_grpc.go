package upstream

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// grpcCheck calls grpc.health.v1.Health/Check; only SERVING is good.
type grpcCheck struct {
	service, authority string
	metadata           []headerOption
}

type grpcProber struct {
	c         *grpcCheck
	transport roundTripCloser
	scheme    string
	addr      string
	authority string
}

func newGRPCProber(t *Target, h *host, c *healthCheck) *grpcProber {
	p := &grpcProber{c: c.grpc, scheme: h.endpoint.urlScheme(), addr: h.endpoint.addr, authority: c.grpc.authority}
	if p.authority == "" {
		p.authority = t.checkHost(h)
	}
	codec := "HTTP2"
	if h.endpoint.scheme == "h3" {
		codec = "HTTP3"
	}
	p.transport = t.checkTransport(h, c, codec)
	return p
}

func (p *grpcProber) probe(ctx context.Context) verdict {
	message := healthRequest(p.c.service)
	req := (&http.Request{
		Method: http.MethodPost,
		URL:    &url.URL{Scheme: p.scheme, Host: p.addr, Path: "/grpc.health.v1.Health/Check"},
		Host:   p.authority,
		Header: http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {checkAgent}},
		Body:   io.NopCloser(bytes.NewReader(message)), ContentLength: int64(len(message)),
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(message)), nil },
	}).WithContext(ctx)
	for _, o := range p.c.metadata {
		o.apply(req.Header)
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return verdict{reason: explain(err)}
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return verdict{reason: fmt.Sprintf("status %d", resp.StatusCode)}
	}
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "application/grpc") {
		return verdict{reason: "the answer is not gRPC"}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return verdict{reason: "the answer broke off: " + err.Error()}
	}
	status, message2 := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if status == "" { // an answer of trailers only
		status, message2 = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	switch status {
	case "0":
	case "5":
		return verdict{reason: "the service is unknown (gRPC status 5)"}
	case "12":
		return verdict{reason: "the upstream has no health service (gRPC status 12)"}
	default:
		return verdict{reason: strings.TrimSpace(fmt.Sprintf("gRPC status %.20s %.200s", status, message2))}
	}
	serving, err := healthStatus(body)
	switch {
	case err != nil:
		return verdict{reason: err.Error()}
	case serving != 1:
		return verdict{reason: "the service is " + servingWord(serving)}
	}
	return verdict{ok: true}
}

func (p *grpcProber) close() { p.transport.CloseIdleConnections() }

// healthRequest is the gRPC message HealthCheckRequest{service = 1}.
func healthRequest(service string) []byte {
	var body []byte
	if service != "" {
		body = append(body, 1<<3|2) // field 1, length-delimited
		body = binary.AppendUvarint(body, uint64(len(service)))
		body = append(body, service...)
	}
	frame := make([]byte, 5, 5+len(body)) // not compressed, length
	binary.BigEndian.PutUint32(frame[1:], uint32(len(body)))
	return append(frame, body...)
}

var errHealthAnswer = errors.New("the answer is not a message of the gRPC health service")

// healthStatus reads the status of a HealthCheckResponse{status = 1}, 0 if it
// is not there, in its gRPC frame.
func healthStatus(frame []byte) (uint64, error) {
	if len(frame) < 5 || frame[0] != 0 || uint64(binary.BigEndian.Uint32(frame[1:])) != uint64(len(frame)-5) {
		return 0, errHealthAnswer
	}
	status := uint64(0)
	for b := frame[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return 0, errHealthAnswer
		}
		b = b[n:]
		var skip uint64
		switch tag & 7 {
		case 0:
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return 0, errHealthAnswer
			}
			if tag>>3 == 1 {
				status = v
			}
			b = b[n:]
		case 1:
			skip = 8
		case 2:
			v, n := binary.Uvarint(b)
			if n <= 0 {
				return 0, errHealthAnswer
			}
			b, skip = b[n:], v
		case 5:
			skip = 4
		default:
			return 0, errHealthAnswer
		}
		if skip > uint64(len(b)) {
			return 0, errHealthAnswer
		}
		b = b[skip:]
	}
	return status, nil
}

func servingWord(status uint64) string {
	switch status {
	case 0:
		return "UNKNOWN"
	case 2:
		return "NOT_SERVING"
	case 3:
		return "SERVICE_UNKNOWN"
	}
	return fmt.Sprintf("in the unknown state %d", status)
}
