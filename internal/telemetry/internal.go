package telemetry

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// guardLoopback answers requests on a loopback address only where their Host
// is an IP address or localhost, and others with 403. A page on the web that
// points its own name at 127.0.0.1 can make a browser on this machine ask an
// internal listener, but the browser then names that page's host. Listeners on
// other addresses were opened on purpose and are asked by many names.
func guardLoopback(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if onLoopback(r) && !namesThisMachine(r.Host) {
			http.Error(w, "this listener answers by IP address or localhost only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// onLoopback reports whether the connection ends at a loopback address. What
// cannot be told counts as loopback.
func onLoopback(r *http.Request) bool {
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if tcp, ok := local.(*net.TCPAddr); ok {
		return tcp.IP.IsLoopback()
	}
	return true
}

func namesThisMachine(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	_, err := netip.ParseAddr(host)
	return err == nil || host == "localhost"
}

// BasicAuth is the user and password that a listener asks for, kept as hashes.
// The zero BasicAuth asks for nothing.
type BasicAuth struct {
	set        bool
	user, pass [sha256.Size]byte
}

// ParseBasicAuth reads metrics_basic_auth: standard base64 of user:password;
// "" asks for nothing.
func ParseBasicAuth(s string) (BasicAuth, error) {
	if s == "" {
		return BasicAuth{}, nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return BasicAuth{}, errors.New("metrics_basic_auth is not base64: write the base64 of user:password")
	}
	user, pass, ok := strings.Cut(string(b), ":")
	if !ok {
		return BasicAuth{}, errors.New("metrics_basic_auth has no colon: write the base64 of user:password")
	}
	return BasicAuth{true, sha256.Sum256([]byte(user)), sha256.Sum256([]byte(pass))}, nil
}

// Guard asks for the user and password before next answers.
func (a BasicAuth) Guard(next http.Handler) http.Handler {
	if !a.set {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, pass, ok := r.BasicAuth()
		u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(pass))
		good := subtle.ConstantTimeCompare(u[:], a.user[:]) & subtle.ConstantTimeCompare(p[:], a.pass[:])
		if !ok || good != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="metrics"`)
			http.Error(w, "user and password needed", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// NewInternalServer makes the HTTP server of an internal listener (health,
// metrics), with bounds that a stranger cannot stretch and, on loopback, a
// check of the Host header.
func NewInternalServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           guardLoopback(h),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}
