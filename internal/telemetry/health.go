package telemetry

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
)

// CheckStatus is the state of one health check.
type CheckStatus string

// The states of a check. One that never reported is unknown.
const (
	StatusUnknown     CheckStatus = "UNKNOWN"
	StatusRunning     CheckStatus = "RUNNING"
	StatusTerminating CheckStatus = "TERMINATING"
)

// The checks of wire-contract.md §2 that the parts of Postern report.
const (
	CheckAuthenticate = "authenticate.service"
	CheckAuthorize    = "authorize.service"
	CheckProxy        = "proxy.service"
	CheckConfigBuild  = "config.databroker.build"
	CheckInitialSync  = "databroker.sync.initial"
	CheckStorage      = "storage.backend"
)

// Health is the registry of health checks and answers the health listener. It
// is safe for concurrent use.
type Health struct {
	mu       sync.Mutex
	required []string
	checks   map[string]check
}

type check struct {
	Status     CheckStatus       `json:"status"`
	Error      string            `json:"error,omitempty"`
	Attributes []HealthAttribute `json:"attributes,omitempty"`
}

// HealthAttribute is one detail of a check.
type HealthAttribute struct{ Key, Value string }

// NewHealth makes a registry that expects the named checks to report.
func NewHealth(required ...string) *Health {
	h := &Health{checks: map[string]check{}}
	h.Require(required...)
	return h
}

// Require adds checks that must report before the process counts as started.
func (h *Health) Require(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range names {
		if !slices.Contains(h.required, n) {
			h.required = append(h.required, n)
		}
	}
	slices.Sort(h.required)
}

// Report sets the state of a check. err nil means that it is well; otherwise
// the check fails until a later Report without an error. The text of err is
// served on the health listener: it must hold no secret.
func (h *Health) Report(name string, status CheckStatus, err error, attrs ...HealthAttribute) {
	c := check{Status: status, Attributes: attrs}
	if err != nil {
		c.Error = bounded(redactText(err.Error()))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[name] = c
}

// Terminate sets every check that runs to TERMINATING: the process drains, is
// alive, and wants no new work.
func (h *Health) Terminate() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for n, c := range h.checks {
		if c.Status == StatusRunning {
			c.Status = StatusTerminating
			h.checks[n] = c
		}
	}
}

// Started reports whether every required check has left unknown.
func (h *Health) Started() bool {
	return h.all(func(c check) bool { return c.Status != StatusUnknown })
}

// Ready reports whether every required check runs without an error.
func (h *Health) Ready() bool {
	return h.all(func(c check) bool { return c.Status == StatusRunning && c.Error == "" })
}

// Healthy reports whether every required check runs or terminates, without an
// error.
func (h *Health) Healthy() bool {
	return h.all(func(c check) bool {
		return (c.Status == StatusRunning || c.Status == StatusTerminating) && c.Error == ""
	})
}

// Statuses lists the checks with their states; names maps to status and error.
func (h *Health) Statuses() map[string]struct {
	Status CheckStatus
	Error  string
} {
	out := map[string]struct {
		Status CheckStatus
		Error  string
	}{}
	for n, c := range h.snapshot() {
		out[n] = struct {
			Status CheckStatus
			Error  string
		}{c.Status, c.Error}
	}
	return out
}

func (h *Health) all(good func(check) bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.required {
		c, ok := h.checks[n]
		if !ok {
			c.Status = StatusUnknown
		}
		if !good(c) {
			return false
		}
	}
	return true
}

// snapshot holds every check that reported or is required.
func (h *Health) snapshot() map[string]check {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make(map[string]check, len(h.checks)+len(h.required))
	for _, n := range h.required {
		out[n] = check{Status: StatusUnknown}
	}
	for n, c := range h.checks {
		out[n] = c
	}
	return out
}

// Handler answers /startupz, /readyz, /healthz and /status (wire-contract.md
// §2), GET and HEAD only.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	probe := func(good func() bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			status := http.StatusOK
			if !good() {
				status = http.StatusServiceUnavailable
			}
			writeJSON(w, r, status, h.snapshot())
		}
	}
	mux.HandleFunc("/startupz", probe(h.Started))
	mux.HandleFunc("/readyz", probe(h.Ready))
	mux.HandleFunc("/healthz", probe(h.Healthy))
	mux.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		required := slices.Clone(h.required)
		h.mu.Unlock()
		if required == nil {
			required = []string{}
		}
		writeJSON(w, r, http.StatusOK, struct {
			Statuses map[string]check `json:"statuses"`
			Checks   []string         `json:"checks"`
		}{h.snapshot(), required})
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed: use GET", http.StatusMethodNotAllowed)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "could not encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(append(b, '\n'))
	}
}
