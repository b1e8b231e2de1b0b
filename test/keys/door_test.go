package keys

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"time"

	"postern/internal/server/servertest"
)

// Keys of the door: hygiene, headers, limits, logs (configuration.md §2.11 to
// §2.13).
var doorExamples = []example{
	{keys: "timeout_read", config: `timeout_read: 200ms # shown`, shows: func(w *world) error {
		c, err := w.Agent().Dial("app.localhost", "http/1.1")
		if err != nil {
			return err
		}
		defer c.Close()
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: app.localhost\r\nContent-Length: 10\r\n\r\nhalf")
		return ends(c, 1500*time.Millisecond)
	}},
	{keys: "timeout_idle", config: `timeout_idle: 200ms # shown`, shows: func(w *world) error {
		c, err := w.Agent().Dial("app.localhost", "http/1.1")
		if err != nil {
			return err
		}
		defer c.Close()
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		io.Copy(io.Discard, res.Body)
		return ends(c, 1500*time.Millisecond)
	}},
	{keys: "timeout_write", config: `timeout_write: 200ms # shown`, shows: func(w *world) error {
		page, err := w.Agent().Request("GET", user+"?pause=1500ms")
		if err == nil && page.StatusCode == 200 {
			return errors.New("the stream lived on")
		}
		return nil
	}},
	{keys: "default_upstream_timeout", config: `default_upstream_timeout: 200ms # shown`, shows: func(w *world) error {
		return w.status(504, user+"?wait=1500ms")
	}},
	{keys: "set_response_headers", config: `set_response_headers: {X-Ours: yes-it-is} # shown`, shows: func(w *world) error {
		return errors.Join(w.header("X-Ours", "yes-it-is", user), w.header("X-Ours", "yes-it-is", app+"/.pomerium/"),
			w.header("X-Frame-Options", "", user))
	}},
	{keys: "allow_upgrades", config: `allow_upgrades: [chatter/2] # shown`, shows: func(w *world) error {
		return chats(w, "chatter/2")
	}},
	{keys: "normalize_path", config: `normalize_path: false # shown`, shows: sawPath("/a/../b", "/a/../b")},
	{keys: "merge_slashes", config: `merge_slashes: false # shown`, shows: sawPath("/a//b", "/a//b")},
	{keys: "path_with_escaped_slashes_action", config: `path_with_escaped_slashes_action: keep_unchanged # shown`, shows: sawPath("/a%2Fb", "/a%2Fb")},
	{keys: "headers_with_underscores_action", config: `headers_with_underscores_action: allow # shown`, shows: func(w *world) error {
		s, err := w.saw(user, "X_Under: score")
		return errors.Join(err, is(s.Header("X_under"), "score"))
	}},
	{keys: "skip_xff_append", config: `skip_xff_append: true # shown`, shows: func(w *world) error {
		s, err := w.saw(user, "X-Forwarded-For: 203.0.113.7")
		return errors.Join(err, is(s.Header("X-Forwarded-For"), "203.0.113.7"))
	}},
	{keys: "xff_num_trusted_hops", config: `xff_num_trusted_hops: 1 # shown`, shows: func(w *world) error {
		s, err := w.saw(user, "X-Forwarded-For: 203.0.113.7")
		return errors.Join(err, is(s.Header("X-Envoy-External-Address"), "203.0.113.7"))
	}},
	{keys: "trusted_proxies", config: `
xff_num_trusted_hops: 1
trusted_proxies: [192.0.2.0/24] # shown
access_log_fields: [ip]`, shows: func(w *world) error {
		if _, err := w.saw(user, "X-Forwarded-For: 203.0.113.7"); err != nil {
			return err
		}
		line, err := w.logged("http-request")
		return errors.Join(err, holds(line, `"127.0.0.1"`))
	}},
	{keys: "use_proxy_protocol", config: `
insecure_server: true
use_proxy_protocol: true # shown
access_log_fields: [ip]`, shows: func(w *world) error {
		c, err := net.Dial("tcp", w.Main)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "PROXY TCP4 203.0.113.9 127.0.0.1 4000 443\r\nGET / HTTP/1.1\r\nHost: app.localhost\r\nConnection: close\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		if err := is(res.StatusCode, 200); err != nil {
			return err
		}
		_, err = w.logged("http-request", "203.0.113.9")
		return err
	}},
	{keys: "codec_type", config: `codec_type: http3 # shown`, shows: func(w *world) error {
		page, err := w.AgentOverHTTP3().Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.ProtoMajor, 3)
	}},
	{keys: "codec_type", config: `codec_type: http1 # shown`, shows: func(w *world) error {
		page, err := w.Agent().Request("GET", user)
		if err != nil {
			return err
		}
		return is(page.Proto, "HTTP/1.1")
	}},
	{keys: "http3_advertise_port", config: `
codec_type: http3
http3_advertise_port: 8443 # shown`, shows: func(w *world) error {
		return w.header("Alt-Svc", `h3=":8443"; ma=86400`, user)
	}},
	{keys: "engine", config: `
# refused
engine: fast # shown`, shows: func(w *world) error {
		if w.refused == nil {
			return errors.New("the program started with an engine that it does not have")
		}
		return holds(w.refused.Error(), "engine")
	}},
	{keys: "log_level", config: `log_level: debug # shown`, shows: func(w *world) error {
		c, err := net.Dial("tcp", w.Main)
		if err != nil {
			return err
		}
		io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") // to a TLS listener
		c.Close()
		if _, err := w.saw(user); err != nil { // so that time has passed
			return err
		}
		if _, err := w.logged("http-request"); err != nil {
			return err
		}
		return holds(w.Log.String(), `"debug"`)
	}},
	{keys: "proxy_log_level", config: `proxy_log_level: error # shown`, shows: func(w *world) error {
		if _, err := w.saw(user); err != nil {
			return err
		}
		if _, err := w.logged("authorize check"); err != nil {
			return err
		}
		w.Stop()
		return lacks(w.Log.String(), "http-request")
	}},
	{keys: "access_log_fields", config: `access_log_fields: [method, headers.X-Team] # shown`, shows: func(w *world) error {
		if _, err := w.saw(user, "X-Team: stars"); err != nil {
			return err
		}
		line, err := w.logged("http-request")
		return errors.Join(err, holds(line, "stars"), lacks(line, `"path"`))
	}},
	{keys: "authorize_log_fields", config: `authorize_log_fields: [method, headers.X-Team] # shown`, shows: func(w *world) error {
		if _, err := w.saw(user, "X-Team: stars"); err != nil {
			return err
		}
		line, err := w.logged("authorize check")
		return errors.Join(err, holds(line, "stars"), lacks(line, `"path"`))
	}},
	{keys: "runtime_flags", config: `
runtime_flags: {routes_portal: false} # shown
routes:
  - {from: https://app.localhost, to: @APP@, allow_any_authenticated_user: true}`, shows: func(w *world) error {
		a, _, err := w.signedIn()
		if err != nil {
			return err
		}
		page, err := a.Request("GET", app+"/.pomerium/api/v1/routes")
		if err != nil {
			return err
		}
		return is(page.StatusCode, 404)
	}},
	{keys: "services", config: `services: proxy # refused # shown`, shows: func(w *world) error {
		if w.refused == nil {
			return errors.New("it started")
		}
		return holds(w.refused.Error(), "services")
	}},
	{keys: "routes routes[].from", config: `
routes:
  - {from: https://other.localhost, to: @APP@, allow_public_unauthenticated_access: true} # shown
  - {from: https://app.localhost, to: @APP@, allow_public_unauthenticated_access: true} # instead`, shows: func(w *world) error {
		return errors.Join(w.status(200, "https://other.localhost/"), w.status(404, user))
	}},
	{keys: "policy", config: `
policy: # shown
  - {from: https://app.localhost, response: {status: 299}, allow_public_unauthenticated_access: true} # shown
routes:
  - {from: https://app.localhost, to: @APP@, allow_public_unauthenticated_access: true}`, shows: func(w *world) error {
		return w.status(299, user) // items of policy come before routes
	}},
}

// ends tells whether the other end closes the connection in time.
func ends(c net.Conn, limit time.Duration) error {
	c.SetReadDeadline(time.Now().Add(limit))
	_, err := io.Copy(io.Discard, c)
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return errors.New("the connection stayed open")
	}
	return nil
}

// chats upgrades and expects the application's echo.
func chats(w *world, protocol string) error {
	c, r, _, err := w.Agent().Upgrade(user+"chat", protocol)
	if err != nil {
		return err
	}
	defer c.Close()
	io.WriteString(c, "hello\n")
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	return is(line, "hello\n")
}

// sawPath asks for a path as it is and expects the application to see want.
func sawPath(path, want string) func(w *world) error {
	return func(w *world) error {
		s, err := w.saw(app + path)
		return errors.Join(err, is(s.Path, want))
	}
}

var _ = servertest.Ada
