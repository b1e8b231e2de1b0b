package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"postern/internal/upstream/http1"
)

// failed makes an *Error of whatever went wrong, and aborts what had begun.
func (e *trip) failed(ctx context.Context, err error) error {
	typed := e.classify(ctx, err)
	if typed.Endpoint == "" {
		typed.Endpoint = e.result.Endpoint
	}
	e.result.Details = e.details(typed)
	if e.result.Began() && !e.result.Tunnel {
		e.x.Abort(typed)
	}
	return typed
}

func (e *trip) classify(ctx context.Context, err error) *Error {
	var typed *Error
	if errors.As(err, &typed) {
		return typed
	}
	// What cancelled the context is the cause of whatever else went wrong.
	switch cause := context.Cause(e.ctx); {
	case errors.Is(cause, errTimeout):
		return &Error{Kind: ErrTimeout, Key: "timeout", Err: cause,
			Detail: fmt.Sprintf("no response head within %v; raise timeout of the route or default_upstream_timeout", e.o.Timeout)}
	case errors.Is(cause, errIdle):
		return &Error{Kind: ErrTimeout, Key: "idle_timeout", Err: cause,
			Detail: fmt.Sprintf("no byte moved for %v; raise idle_timeout of the route", e.o.IdleTimeout)}
	}
	// Whatever we cut breaks the client's body, or a write to it, too.
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return &Error{Kind: ErrCut, Detail: cause.Error(), Err: cause}
	}
	if bodyErr := e.bodyFailure(); bodyErr != nil {
		return &Error{Kind: ErrClientGone, Detail: "the request body broke off: " + bodyErr.Error(), Err: bodyErr}
	}
	var client *clientError
	if errors.As(err, &client) {
		return &Error{Kind: ErrClientGone, Detail: client.Error(), Err: client.err}
	}
	if ctx.Err() != nil {
		return &Error{Kind: ErrClientGone, Detail: "the client ended the exchange", Err: context.Cause(ctx)}
	}
	var broken *http1.Malformed
	var connecting *connectError
	switch {
	case errors.As(err, &broken):
		return &Error{Kind: ErrBadResponse, Detail: broken.Reason, Err: err}
	case errors.As(err, &connecting) && isTimeout(err):
		return &Error{Kind: ErrTimeout, Err: err, Detail: fmt.Sprintf("no connection within %v", connectTimeout)}
	case errors.As(err, &connecting):
		return &Error{Kind: ErrUnreachable, Detail: explain(err), Err: err}
	case e.result.Head > 0 || isProtocolError(err):
		return &Error{Kind: ErrBadResponse, Detail: "the response broke off: " + err.Error(), Err: err}
	}
	return &Error{Kind: ErrUnreachable, Detail: "the connection ended before an answer: " + err.Error(), Err: err}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// isProtocolError reports whether Transport could not make sense of an answer
// (its errors have no types).
func isProtocolError(err error) bool {
	s := err.Error()
	return strings.Contains(s, "malformed") || strings.Contains(s, "response headers exceeded") ||
		strings.Contains(s, "PROTOCOL_ERROR") || strings.Contains(s, "COMPRESSION_ERROR") || strings.Contains(s, "FRAME_SIZE_ERROR") || strings.Contains(s, "frame too large")
}

// details says in the words of the access log how an exchange failed.
func (e *trip) details(err *Error) string {
	switch err.Kind {
	case ErrTimeout:
		switch {
		case err.Key == "idle_timeout":
			return "stream_idle_timeout"
		case err.Key == "":
			return "upstream_reset_before_response_started{connection_timeout}"
		}
		return "response_timeout"
	case ErrOverflow:
		return "upstream_reset_before_response_started{overflow}"
	case ErrClientGone:
		return "downstream_remote_disconnect"
	case ErrBadRequest:
		return "http1.codec_error"
	case ErrUpgradeRefused:
		return "upgrade_failed"
	case ErrCut:
		return "stream_cut"
	case ErrBadResponse:
		if e.result.Began() {
			return "upstream_reset_after_response_started{protocol_error}"
		}
		return "upstream_reset_before_response_started{protocol_error}"
	}
	if e.result.Began() {
		return "upstream_reset_after_response_started{connection_termination}"
	}
	if errors.Is(err.Err, errNoHosts) {
		return "no_healthy_upstream"
	}
	var connecting *connectError
	if errors.As(err.Err, &connecting) {
		return "upstream_reset_before_response_started{connection_failure}"
	}
	return "upstream_reset_before_response_started{connection_termination}"
}
