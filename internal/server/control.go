package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"postern/internal/certs/acme"
	"postern/internal/record"
	"postern/internal/session"
)

// The control API listens on a unix socket that only the process's own user
// (and root) may open: mode 0600, and the peer's uid is checked again on every
// connection, for systems where the mode of a socket is not. It carries JSON
// over HTTP/1.1. The command line (status, reload, sessions, users) is its client.

// Status is what a running server says about itself.
type Status struct {
	Version    string            `json:"version"`
	StartedAt  time.Time         `json:"started_at"`
	Generation uint64            `json:"generation"`
	Config     ConfigStatus      `json:"config"`
	Listeners  map[string]string `json:"listeners"`
	Routes     int               `json:"routes"`
	Storage    string            `json:"storage"`
	Checks     map[string]string `json:"checks"`
	// Upstreams are hosts that are unhealthy or ejected, the first hundred of
	// UpstreamsOut.
	Upstreams    []UpstreamTrouble `json:"upstreams,omitempty"`
	UpstreamsOut int               `json:"upstreams_out,omitempty"`
	// Certificates are those got by ACME, by host.
	Certificates []acme.HostStatus `json:"certificates,omitempty"`
}

// ConfigStatus tells which configuration serves and what was wrong with the
// last one offered.
type ConfigStatus struct {
	File     string    `json:"file,omitempty"`
	Checksum string    `json:"checksum"`
	LoadedAt time.Time `json:"loaded_at"`
	// Problems are those of Refused, the last configuration offered, unless it
	// was taken.
	Problems []string `json:"problems,omitempty"`
	Refused  *Refused `json:"refused,omitempty"`
	// Isolated are the routes that answer 503 because of mistakes in them.
	Isolated []Isolated `json:"isolated,omitempty"`
}

// SessionInfo is a session as an administrator sees it: no token, no handle.
type SessionInfo struct {
	ID        string    `json:"id"`
	UserID    string    `json:"user_id"`
	Email     string    `json:"email,omitempty"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
	Program   bool      `json:"program,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
	RemoteIP  string    `json:"remote_ip,omitempty"`
}

// AccountInfo is a local account kept as a record.
type AccountInfo struct {
	ID       string   `json:"id"`
	Email    string   `json:"email"`
	Name     string   `json:"name,omitempty"`
	Groups   []string `json:"groups,omitempty"`
	Disabled bool     `json:"disabled,omitempty"`
}

// controlActor signs what is changed through the socket.
func controlActor(uid uint32) record.Actor {
	return record.Actor{Kind: "operator", ID: fmt.Sprintf("uid:%d", uid), Via: "control"}
}

// control serves the control API of one server.
type control struct {
	s     *Server
	http  *http.Server
	ln    net.Listener
	path  string
	file  os.FileInfo // the socket, to tell it from one that took its place
	aside string      // where the socket waits to take the place of another; "" if it does not
}

// listenControl binds the socket at path. A socket left behind by a process
// that is gone is removed; one that answers is not.
func listenControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("control socket: %w; set control_address to a path in a directory that can be written", err)
	}
	if len(path) > 100 {
		return nil, fmt.Errorf("control socket: the path %s is longer than the 100 bytes that a unix socket may have; set control_address to a shorter one", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("control socket: another postern answers at %s; stop it, or set control_address or data_dir to another place", path)
	} else if fi, statErr := os.Lstat(path); statErr == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("control socket: there is something else at %s; set control_address to a path of its own", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("control socket: %s was left behind and cannot be removed: %w", path, err)
		}
	}
	old := unix.Umask(0o177)
	ln, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w; set control_address to a place that can be written, or to off", err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false) // it may be another's by then
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return ln, nil
}

type peerUID struct{}

// startControl serves the socket at path. With replace another process serves
// it still: this one waits beside it until take.
func startControl(s *Server, path string, replace bool) (*control, error) {
	c := &control{s: s, path: path}
	at := path
	if replace {
		c.aside = path + ".next"
		at = c.aside
	}
	ln, err := listenControl(at)
	if err != nil {
		return nil, err
	}
	c.ln = ln
	if c.file, err = os.Lstat(at); err != nil {
		ln.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", c.status)
	mux.HandleFunc("POST /v1/reload", c.reload)
	mux.HandleFunc("GET /v1/sessions", c.sessions)
	mux.HandleFunc("POST /v1/sessions/revoke", c.revoke)
	mux.HandleFunc("GET /v1/people", c.people)
	mux.HandleFunc("POST /v1/explain", c.explain)
	mux.HandleFunc("GET /v1/users", c.users)
	mux.HandleFunc("PUT /v1/users", c.putUser)
	mux.HandleFunc("DELETE /v1/users", c.deleteUser)
	c.http = &http.Server{
		Handler:           http.MaxBytesHandler(mux, 1<<20),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          nil,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			uid, err := uidOf(conn)
			if err != nil || uid != uint32(os.Geteuid()) && uid != 0 {
				conn.Close()
				return ctx
			}
			return context.WithValue(ctx, peerUID{}, uid)
		},
	}
	go c.http.Serve(ln)
	return c, nil
}

// take puts the socket in its place, in one step.
func (c *control) take() error {
	if c == nil || c.aside == "" {
		return nil
	}
	if err := os.Rename(c.aside, c.path); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	c.aside = ""
	return nil
}

func (c *control) close() {
	c.http.Close()
	at := c.path
	if c.aside != "" {
		at = c.aside
	}
	if fi, err := os.Lstat(at); err == nil && os.SameFile(fi, c.file) {
		os.Remove(at)
	}
}

// uidOf asks the kernel who is at the other end of a unix connection.
func uidOf(conn net.Conn) (uint32, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}

func actorOf(r *http.Request) record.Actor {
	uid, _ := r.Context().Value(peerUID{}).(uint32)
	return controlActor(uid)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
}

func (c *control) status(w http.ResponseWriter, r *http.Request) { answer(w, c.s.Status()) }

func (c *control) reload(w http.ResponseWriter, r *http.Request) {
	problems := c.s.Reload(r.Context())
	answer(w, map[string]any{"ok": len(problems) == 0, "problems": problems})
}

func (c *control) sessions(w http.ResponseWriter, r *http.Request) {
	list, err := c.list(r.Context(), r.URL.Query().Get("user"))
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	answer(w, list)
}

// list gives living sessions, newest first, of one user (id or e-mail) or all.
func (c *control) list(ctx context.Context, user string) ([]SessionInfo, error) {
	page, err := c.s.store.List(ctx, session.SessionType, record.Query{})
	if err != nil {
		return nil, err
	}
	users := map[string]string{}
	if up, err := c.s.store.List(ctx, session.UserType, record.Query{}); err == nil {
		for _, rec := range up.Records {
			if u, err := session.DecodeUser(rec); err == nil {
				users[u.ID] = u.Email
			}
		}
	}
	now := time.Now()
	out := []SessionInfo{}
	for _, rec := range page.Records {
		x, err := session.DecodeSession(rec)
		if err != nil || x.Expired(now) {
			continue
		}
		email := users[x.UserID]
		if user != "" && user != x.UserID && !strings.EqualFold(user, email) {
			continue
		}
		out = append(out, SessionInfo{ID: x.ID, UserID: x.UserID, Email: email, IssuedAt: x.IssuedAt, ExpiresAt: x.ExpiresAt,
			Program: x.Program, UserAgent: x.UserAgent, RemoteIP: x.RemoteIP})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].IssuedAt.After(out[j].IssuedAt) })
	return out, nil
}

func (c *control) revoke(w http.ResponseWriter, r *http.Request) {
	var q struct {
		IDs  []string `json:"ids"`
		User string   `json:"user"`
	}
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("the body is not the JSON that is expected: %w", err))
		return
	}
	ids := q.IDs
	if q.User != "" {
		list, err := c.list(r.Context(), q.User)
		if err != nil {
			refuse(w, http.StatusServiceUnavailable, err)
			return
		}
		for _, s := range list {
			ids = append(ids, s.ID)
		}
	}
	known := 0
	for _, id := range ids {
		if _, err := c.s.store.Get(r.Context(), session.SessionType, id); err == nil {
			known++
		}
	}
	if known > 0 {
		for batch := range slices.Chunk(ids, record.MaxBatch) {
			if err := c.s.store.Delete(r.Context(), actorOf(r), session.SessionType, batch...); err != nil {
				refuse(w, http.StatusServiceUnavailable, err)
				return
			}
		}
	}
	answer(w, map[string]int{"revoked": known})
}

func (c *control) users(w http.ResponseWriter, r *http.Request) {
	page, err := c.s.store.List(r.Context(), session.LocalAccountType, record.Query{})
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	out := []AccountInfo{}
	for _, rec := range page.Records {
		if a, err := session.DecodeLocalAccount(rec); err == nil {
			out = append(out, AccountInfo{ID: a.ID, Email: a.Email, Name: a.Name, Groups: a.Groups, Disabled: a.Disabled})
		}
	}
	answer(w, out)
}

// Client speaks to a running server through its control socket.
type Client struct{ http *http.Client }

// Dial makes a client for the socket at path.
func Dial(path string) *Client {
	return &Client{&http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, fmt.Errorf("no postern answers at %s: start it, or name its configuration with --config: %w", path, err)
			}
			return c, nil
		}}}}
}

// Call sends a request and decodes the answer into out, unless out is nil.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = strings.NewReader(string(b))
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://postern"+path, body)
	if err != nil {
		return err
	}
	res, err := c.http.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			return fmt.Errorf("no postern answers at its control socket: start it, or name its configuration with --config (%w)", op)
		}
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		var e struct{ Error string }
		if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&e) == nil && e.Error != "" {
			return errors.New(e.Error)
		}
		return fmt.Errorf("the server answered %s", res.Status)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}
