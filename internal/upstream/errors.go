package upstream

import (
	"errors"
	"fmt"
)

// The kinds of failure; match with errors.Is. Each error of RoundTrip is an
// *Error of exactly one of them.
var (
	// ErrUnreachable: no connection could be made, or it broke before an
	// answer. 502 or 503.
	ErrUnreachable = errors.New("upstream unreachable")
	// ErrOverflow: a limit of circuit_breaker_thresholds is reached;
	// Error.Key names it. 503.
	ErrOverflow = errors.New("upstream is full")
	// ErrTimeout: a limit ran out; Error.Key names the setting. 504.
	ErrTimeout = errors.New("upstream timed out")
	// ErrClientGone: the client went away or its body broke off. No answer.
	ErrClientGone = errors.New("client went away")
	// ErrBadResponse: the upstream broke the protocol. 502.
	ErrBadResponse = errors.New("upstream sent a malformed response")
	// ErrBadRequest: the request cannot be forwarded as judged. 400.
	ErrBadRequest = errors.New("request cannot be forwarded")
	// ErrUpgradeRefused: the route does not allow the protocol. 403.
	ErrUpgradeRefused = errors.New("upgrade not allowed")
	// ErrCut: the context ended for a reason of ours: drained, revoked.
	ErrCut = errors.New("exchange cut")
)

// Error is why an exchange failed.
type Error struct {
	// Kind is one of the errors above.
	Kind error
	// Key is the setting whose limit ran out (timeout, idle_timeout,
	// max_requests ...), or "" where the limit is fixed.
	Key string
	// Detail is for the operator: it may name hosts and certificates.
	Detail string
	// Endpoint is where the request was sent, as configured.
	Endpoint string
	// Err is the cause.
	Err error
}

func (e *Error) Error() string {
	s := e.Kind.Error()
	if e.Endpoint != "" {
		s += " (" + e.Endpoint + ")"
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	return s
}

// Unwrap makes errors.Is and errors.As see the kind and the cause.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Public is a sentence for the visitor: it names no host and no address.
func (e *Error) Public() string {
	switch e.Kind {
	case ErrOverflow:
		return "The application is busy."
	case ErrTimeout:
		if e.Key == "" {
			return "The application could not be reached in time."
		}
		return fmt.Sprintf("The application did not answer in time (%s).", e.Key)
	case ErrBadResponse:
		return "The application sent an answer that could not be understood."
	case ErrBadRequest:
		return "This request cannot be forwarded."
	case ErrUpgradeRefused:
		return "This application is not open to this protocol."
	case ErrCut:
		return "This connection was ended."
	}
	return "The application could not be reached."
}
