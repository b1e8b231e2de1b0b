package pages

import (
	"bytes"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// ErrorKind is which page a refusal or failure shows. The zero value says
// only that something went wrong here.
type ErrorKind uint8

// The kinds, with the status each has unless ErrorPage.Status says otherwise.
const (
	Internal            ErrorKind = iota // 500
	BadRequest                           // 400
	Unauthenticated                      // 401
	Denied                               // 403, or 450 for a device
	NotFound                             // 404
	TooMany                              // 429
	BadAnswer                            // 502: the application broke off or answered nonsense
	Unreachable                          // 503: the application does not accept connections
	Unavailable                          // 503: what a decision rests on is not to be had
	Timeout                              // 504
	ClientCertificate                    // 495
	LoginLoop                            // 400: the third bounce
	SignInFailed                         // 400: sign-in cannot be finished
	ProviderUnavailable                  // 503: the identity provider does not answer
	Busy                                 // 503: the application is at the limit of a circuit breaker
	NoHealthy                            // 503: none of the application's servers is in use
	Untrusted                            // 502: the application did not prove that it is the right one
	Misconfigured                        // 503: the settings of the route hold a mistake
)

var kindStatus = [...]int{
	Internal: 500, BadRequest: 400, Unauthenticated: 401, Denied: 403, NotFound: 404, TooMany: 429,
	BadAnswer: 502, Unreachable: 503, Unavailable: 503, Timeout: 504, ClientCertificate: 495,
	LoginLoop: 400, SignInFailed: 400, ProviderUnavailable: 503,
	Busy: 503, NoHealthy: 503, Untrusted: 502, Misconfigured: 503,
}

// Source says who made an error; programs are answered in its dialect
// (wire-contract.md §1.4).
type Source uint8

// The three dialects.
const (
	FromPolicy   Source = iota // refused by a decision: JSON, gRPC, Kubernetes or robots.txt as the client likes
	FromProxy                  // no upstream, timeout, no route: JSON or gRPC
	FromEndpoint               // our own endpoints: JSON only for exactly "Accept: application/json"
)

// LoopCause is the likely cause of a sign-in loop.
type LoopCause uint8

// The causes that can be told apart.
const (
	LoopUnknown  LoopCause = iota
	LoopCookie             // the browser brought no cookie back
	LoopSession            // the cookie came, the session it names is not there
	LoopProvider           // the session is of another identity provider than the route wants
	LoopClock              // a link was judged too old or too new
)

// ErrorPage is a refusal or failure as the visitor may know it. It never
// holds an upstream address, a rule or a group, except in Denial, which the
// caller fills only on routes with show_error_details, and in Detail, which
// only administrators are shown.
type ErrorPage struct {
	Kind      ErrorKind
	Source    Source
	Status    int    // 0: the kind's own
	Reason    string // for programs, for example "Unauthenticated"; "": by status
	Message   string // one more sentence for the visitor, or ""
	RequestID string
	Time      time.Time // when it happened; zero hides it

	Application string // display name; "": Host stands in, then "this application"
	Host        string // the host asked for
	Who         string // e-mail or name of the person signed in; "": nobody is

	// Links; "" hides the button.
	RetryURL          string // for a GET it defaults to the address asked for
	PortalURL         string // the visitor's applications
	AccountURL        string // signed link to the account page, also DebugURL for programs
	OtherAccountURL   string // signs in as somebody else
	SignInURL         string
	SuggestedURL      string // NotFound: an application the visitor may open, and
	SuggestedName     string // its name or host
	ShowDetails       bool   // the route has show_error_details
	Denial            Denial // shown only with ShowDetails
	RetryAfter        time.Duration
	GRPCStatus        int           // for gRPC clients; 0: by status
	Brief             string        // what went wrong with the application, without a name: shown only with ShowDetails
	Detail            string        // the same with names: shown only to an Administrator
	Administrator     bool          // whoever asks administers this installation
	TimeoutKey        string        // Timeout, Busy: the configuration key that set the limit
	Waited            time.Duration // Timeout: how long the upstream was given
	Cause             LoopCause
	Attempts          int           // LoginLoop: how many bounces,
	Within            time.Duration // in how long
	CookieHost        string        // LoginLoop: whose cookie was not kept
	Issuers           []string      // ClientCertificate: the names of accepted CAs
	CertificateFailed bool          // ClientCertificate: one was sent and is not valid
}

func (p *ErrorPage) status() int {
	if p.Status != 0 {
		return p.Status
	}
	if int(p.Kind) < len(kindStatus) {
		return kindStatus[p.Kind]
	}
	return http.StatusInternalServerError
}

// reason is the word programs are given.
func (p *ErrorPage) reason(status int) string {
	if p.Reason != "" {
		return p.Reason
	}
	switch status {
	case http.StatusUnauthorized:
		return "Unauthenticated"
	case 450:
		return "Device Unauthorized"
	case 495:
		if p.CertificateFailed {
			return "Invalid Client Certificate"
		}
		return "Client Certificate Required"
	}
	if t := http.StatusText(status); t != "" {
		return t
	}
	return "Error"
}

// Error answers with a refusal or failure in the form the client understands.
// Nothing may have been written before.
func (r *Renderer) Error(w http.ResponseWriter, req *http.Request, p ErrorPage) {
	status := p.status()
	if p.RetryAfter > 0 {
		retryAfter(w, p.RetryAfter)
	}
	accept := strings.Join(req.Header.Values("Accept"), ", ")
	if p.Source == FromEndpoint {
		if accept == "application/json" {
			sendJSON(w, req, status, endpointError{Status: status, RequestID: p.RequestID, DebugURL: p.AccountURL, Description: p.describe(status)})
			return
		}
		r.errorHTML(w, req, status, p)
		return
	}
	switch client := ClientOf(req.URL.Path, req.UserAgent(), req.Header.Get("Content-Type"), accept); {
	case client == Kubernetes && p.Source == FromPolicy:
		sendJSON(w, req, status, kubernetesStatus{
			APIVersion: "v1", Kind: "Status", Status: "Failure",
			Message: p.describe(status), Reason: kubernetesReason(status), Code: status,
		})
	case client == Robots && p.Source == FromPolicy:
		SendRobots(w, req)
	case PrefersJSON(accept):
		if p.Source == FromPolicy {
			sendJSON(w, req, status, policyError{Error: p.reason(status), RequestID: p.RequestID})
		} else {
			sendJSON(w, req, status, proxyError{RequestID: p.RequestID, Status: status, StatusText: p.reason(status)})
		}
	case client == GRPCClient:
		sendGRPC(w, req, status, "application/grpc+json", &p)
	case client == GRPCWebClient:
		sendGRPC(w, req, status, "application/grpc-web+json", &p)
	default:
		if p.Source == FromPolicy {
			w.Header().Set("X-Pomerium-Intercepted-Response", "true")
		}
		r.errorHTML(w, req, status, p)
	}
}

// describe is one plain sentence for programs that show one.
func (p *ErrorPage) describe(status int) string {
	if p.Message != "" {
		return p.Message
	}
	return p.reason(status)
}

func (r *Renderer) errorHTML(w http.ResponseWriter, req *http.Request, status int, p ErrorPage) {
	g := r.errorGate(req, status, &p)
	r.page(w, req, status, "gate", view{Title: strings.TrimSuffix(g.Heading, "."), Page: g}, policyFor{})
}

// The JSON bodies of wire-contract.md §1.4. Field names are the contract.

type policyError struct {
	Error     string `json:"error"`
	RequestID string `json:"request_id"`
}

type proxyError struct {
	RequestID  string `json:"requestId"`
	Status     int    `json:"status"`
	StatusText string `json:"statusText"`
}

type endpointError struct {
	Status      int
	RequestID   string
	DebugURL    string `json:",omitempty"`
	Description string `json:"description,omitempty"`
}

type kubernetesStatus struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Status     string `json:"status"`
	Message    string `json:"message"`
	Reason     string `json:"reason"`
	Code       int    `json:"code"`
}

func kubernetesReason(status int) string {
	switch status {
	case 401, 450, 495:
		return "Unauthorized"
	case 403:
		return "Forbidden"
	case 404:
		return "NotFound"
	}
	return ""
}

func sendJSON(w http.ResponseWriter, req *http.Request, status int, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	if err := enc.Encode(v); err != nil { // structs of strings and numbers: cannot happen
		body.Reset()
		body.WriteString("{}\n")
	}
	send(w, req, status, "application/json", body.Bytes())
}

// sendGRPC answers as a gRPC response of headers alone: the HTTP status is
// kept and the gRPC status is derived from it.
func sendGRPC(w http.ResponseWriter, req *http.Request, status int, contentType string, p *ErrorPage) {
	h := w.Header()
	code := p.GRPCStatus
	if code == 0 {
		code = grpcStatus(status)
	}
	h.Set("Grpc-Status", strconv.Itoa(code))
	h.Set("Grpc-Message", grpcMessage(p.reason(status)))
	send(w, req, status, contentType, nil)
}

func grpcStatus(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// grpcMessage percent-encodes as the gRPC over HTTP/2 specification asks:
// everything but printable ASCII, and "%".
func grpcMessage(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		}
	}
	return b.String()
}

// SendRobots tells crawlers to stay away.
func SendRobots(w http.ResponseWriter, req *http.Request) {
	send(w, req, http.StatusOK, "text/plain; charset=utf-8", []byte("User-agent: *\nDisallow: /\n"))
}

// retryAfter sets Retry-After in whole seconds, rounded up.
func retryAfter(w http.ResponseWriter, d time.Duration) {
	if d > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(d.Seconds())), 10))
	}
}
