// Package conformance holds the program against clients, servers and tools that
// nobody here wrote. docs/conformance.md says what is run and what came out.
package conformance

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"postern/internal/server/servertest"
)

// parser is a web server whose reading of HTTP/1.1 differs from ours and from
// that of the others. It answers 200 with method and target as it understood
// them, and keeps these.
type parser struct {
	name, addr string
	seen       func() []string
}

// asked is the form in which a parser keeps a request.
const asked = "asked "

// listen is a free port that the parser is to take.
func freePort(t *testing.T) string {
	t.Helper()
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func startGo(t *testing.T) *parser {
	var mu sync.Mutex
	var seen []string
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		mu.Lock()
		seen = append(seen, r.Method+" "+r.RequestURI)
		mu.Unlock()
		fmt.Fprintf(w, "%s%s %s\n", asked, r.Method, r.RequestURI)
	})}
	go s.Serve(ln)
	t.Cleanup(func() { s.Close() })
	return &parser{"go", ln.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), seen...)
	}}
}

const nodeProgram = `
const http = require('http'), fs = require('fs');
const [port, log] = process.argv.slice(2);
http.createServer((req, res) => {
  req.on('data', () => {});
  req.on('end', () => {
    fs.appendFileSync(log, req.method + ' ' + req.url + '\n');
    res.end('asked ' + req.method + ' ' + req.url + '\n');
  });
}).listen(+port, '127.0.0.1');
`

func startNode(t *testing.T) *parser {
	dir, port := t.TempDir(), freePort(t)
	log := filepath.Join(dir, "log")
	file := filepath.Join(dir, "server.js")
	write(t, file, nodeProgram)
	start(t, port, exec.Command("node", file, port, log))
	return &parser{"node", "127.0.0.1:" + port, func() []string { return linesOf(log) }}
}

func startNginx(t *testing.T) *parser {
	dir, port := t.TempDir(), freePort(t)
	log := filepath.Join(dir, "log")
	write(t, filepath.Join(dir, "empty"), "")
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  log_format asked "$request_method $request_uri";
  access_log %[1]s/log asked;
  client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
  server {
    listen 127.0.0.1:%[2]s;
    merge_slashes off;
    location / { return 200 "asked $request_method $request_uri\n"; }
  }
}
`, dir, port))
	bin, err := exec.LookPath("nginx")
	if err != nil {
		bin = "/usr/sbin/nginx"
	}
	start(t, port, exec.Command(bin, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", filepath.Join(dir, "error.log")))
	return &parser{"nginx", "127.0.0.1:" + port, func() []string { return linesOf(log) }}
}

// start runs a server until the test ends, and waits until it listens.
func start(t *testing.T, port string, cmd *exec.Cmd) {
	t.Helper()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v; run make deps", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	if err := servertest.Eventually(func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		t.Fatalf("%s does not listen: %v", cmd.Path, err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func linesOf(file string) []string {
	b, _ := os.ReadFile(file)
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// say sends bytes, ends its direction if half, and reads all that comes back.
func say(c net.Conn, in string, half bool) (answers []string, err error) {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(c, in); err == nil && half {
		_ = c.(interface{ CloseWrite() error }).CloseWrite()
	}
	r := bufio.NewReader(c)
	for {
		if _, err := r.Peek(1); err != nil {
			return answers, nil //nolint: the end, in whatever way
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return answers, fmt.Errorf("what comes back is no response: %w", err)
		}
		b, err := io.ReadAll(res.Body)
		if res.StatusCode < 200 {
			continue
		}
		line := fmt.Sprint(res.StatusCode)
		if strings.HasPrefix(string(b), asked) {
			line += " " + strings.TrimSpace(string(b)[len(asked):])
		}
		answers = append(answers, line)
		if err != nil {
			return answers, nil
		}
	}
}
