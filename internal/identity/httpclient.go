package identity

import (
	"errors"
	"io"
	"net/http"
	"time"
)

// Limits of one call to a provider: every read is capped (CVE-2026-26998 is
// what happens otherwise).
const (
	callTimeout = 10 * time.Second
	maxAnswer   = 1 << 20 // bytes
)

var errAnswerTooLong = errors.New("the provider's answer is longer than 1 MiB")

// newClient gives a client that bounds time and size of answers and follows
// no redirect: metadata, keys and tokens live where discovery says.
func newClient(rt http.RoundTripper) *http.Client {
	if rt == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 8
		t.MaxResponseHeaderBytes = 64 << 10
		rt = t
	}
	return &http.Client{
		Transport: capped{rt},
		Timeout:   callTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

type capped struct{ next http.RoundTripper }

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength > maxAnswer {
		resp.Body.Close()
		return nil, errAnswerTooLong
	}
	resp.Body = &cappedBody{resp.Body, maxAnswer}
	return resp, nil
}

type cappedBody struct {
	io.ReadCloser
	left int64
}

// Read fails, rather than ends, when there is more than is allowed, so that a
// cut answer is never taken for a whole one.
func (b *cappedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		var one [1]byte
		if n, err := b.ReadCloser.Read(one[:]); n == 0 && err != nil {
			return 0, err
		}
		return 0, errAnswerTooLong
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	return n, err
}
