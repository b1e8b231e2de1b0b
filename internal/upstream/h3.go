package upstream

import "errors"

// newH3Link makes the HTTP/3 connections of one host.
func newH3Link(t *Target, h *host) (link, error) {
	return nil, errors.New("HTTP/3 upstreams are not served yet")
}
