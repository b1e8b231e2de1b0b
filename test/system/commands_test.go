package system

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/rogpeppe/go-internal/testscript"

	"postern/internal/server/servertest"
)

// commands are the words that scripts add to testscript's own.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"ports":    cmdPorts,    // ports NAME...            free ports into the environment
	"secret":   cmdSecret,   // secret NAME...           32 random bytes, base64
	"ecdsakey": cmdECDSAKey, // ecdsakey FILE            a new P-256 key as PEM
	"expand":   cmdExpand,   // expand FILE...           @NAME@ becomes the variable's value
	"upstream": cmdUpstream, // upstream NAME            an echo server, its address in NAME
	"idp":      cmdIDP,      // idp dex|oidc NAME USERS REDIRECTS [LOGOUT] [TTL]
	"start":    cmdStart,    // start NAME [VAR=VALUE...] ARG...  postern in the background, until ready
	"end":      cmdStop,     // end NAME [SIGNAL]
	"signal":   cmdSignal,   // signal NAME SIGNAL
	"log":      cmdLog,      // log NAME REGEXP [TIME]   until its output matches (! log: must not)
	"visit":    cmdVisit,    // visit AGENT URL [EMAIL PASSWORD]  follow redirects, fill forms
	"request":  cmdRequest,  // request AGENT METHOD URL [HEADER...] one request, head and body to stdout
	"verify":   cmdVerify,   // verify AGENT JWKS-URL HEADER  the assertion in stdout's JSON, checked; claims to stdout
}

func theWorld(ts *testscript.TestScript) *world {
	w := ts.Value(worldKey{}).(*world)
	w.env = ts
	return w
}

func need(ts *testscript.TestScript, neg bool, args []string, min int, usage string) {
	if neg || len(args) < min {
		ts.Fatalf("usage: %s", usage)
	}
}

func cmdPorts(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "ports NAME...")
	for _, a := range args {
		port, err := servertest.Port()
		ts.Check(err)
		ts.Setenv(a, port)
	}
}

func cmdSecret(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "secret NAME...")
	for _, a := range args {
		b := make([]byte, 32)
		rand.Read(b)
		ts.Setenv(a, base64.StdEncoding.EncodeToString(b))
	}
}

func cmdECDSAKey(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "ecdsakey FILE")
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	der, err := x509.MarshalECPrivateKey(k)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
}

var placeholder = regexp.MustCompile(`@([A-Z][A-Z0-9_]*)@`)

func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "expand FILE...")
	for _, f := range args {
		s := placeholder.ReplaceAllStringFunc(ts.ReadFile(f), func(m string) string {
			v := ts.Getenv(strings.Trim(m, "@"))
			if v == "" {
				ts.Fatalf("%s: %s is not set", f, m)
			}
			return v
		})
		ts.Check(os.WriteFile(ts.MkAbs(f), []byte(s), 0o644))
	}
}

func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 1, "upstream NAME")
	srv := echo(strings.ToLower(args[0]))
	ts.Defer(srv.Close)
	ts.Setenv(args[0], srv.Listener.Addr().String())
}

func cmdIDP(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 4, "idp dex|oidc NAME USERS REDIRECTS [LOGOUT] [TTL]")
	logout, ttl := "", "3600"
	if len(args) > 4 {
		logout = args[4]
	}
	if len(args) > 5 {
		ttl = args[5]
	}
	issuer, err := theWorld(ts).startIDP(args[0], args[1], ts.MkAbs(args[2]), args[3], logout, ttl)
	ts.Check(err)
	ts.Setenv(args[1], issuer)
	port := issuer[len("http://127.0.0.1:"):]
	port, _, _ = strings.Cut(port, "/")
	ts.Setenv(args[1]+"_PORT", port)
}

var assignment = regexp.MustCompile(`^[A-Z][A-Z0-9_]*=`)

func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "start NAME [VARIABLE=VALUE...] ARG...")
	w := theWorld(ts)
	env := append(os.Environ(), "HOME="+ts.Getenv("HOME"), "XDG_DATA_HOME="+ts.Getenv("XDG_DATA_HOME"))
	rest := args[1:]
	for len(rest) > 0 && assignment.MatchString(rest[0]) {
		env, rest = append(env, rest[0]), rest[1:]
	}
	cmd := exec.Command(program, rest...)
	cmd.Dir, cmd.Env = ts.MkAbs("."), env
	p, err := startProcess(cmd)
	ts.Check(err)
	w.mu.Lock()
	w.procs[args[0]] = p
	w.mu.Unlock()
	health := ts.Getenv("HEALTH")
	err = eventually(60*time.Second, func() error {
		select {
		case <-p.done:
			return nil
		default:
		}
		res, err := http.Get("http://127.0.0.1:" + health + "/readyz")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != 200 {
			b, _ := io.ReadAll(res.Body)
			return fmt.Errorf("not ready: %s", b)
		}
		return nil
	})
	select {
	case <-p.done:
		ts.Fatalf("%s ended: %v\n%s", args[0], p.err, p.out.String())
	default:
	}
	if err != nil {
		ts.Fatalf("%s: %v\n%s", args[0], err, p.out.String())
	}
}

var signals = map[string]syscall.Signal{"HUP": syscall.SIGHUP, "TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "KILL": syscall.SIGKILL, "STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT}

func theProcess(ts *testscript.TestScript, name string) *process {
	w := theWorld(ts)
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.procs[name]
	if p == nil {
		ts.Fatalf("nothing called %s was started", name)
	}
	return p
}

func cmdStop(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 {
		ts.Fatalf("usage: end NAME [SIGNAL]")
	}
	sig := syscall.SIGTERM
	if len(args) > 1 {
		sig = signals[args[1]]
	}
	p := theProcess(ts, args[0])
	err := p.stop(sig)
	if sig != syscall.SIGKILL && (err != nil) != neg {
		ts.Fatalf("%s: %v\n%s", args[0], err, p.out.String())
	}
}

func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "signal NAME SIGNAL")
	ts.Check(theProcess(ts, args[0]).cmd.Process.Signal(signals[args[1]]))
}

func cmdLog(ts *testscript.TestScript, neg bool, args []string) {
	limit := 20 * time.Second
	if len(args) == 3 {
		var err error
		limit, err = time.ParseDuration(args[2])
		ts.Check(err)
	} else if len(args) != 2 {
		ts.Fatalf("usage: log NAME REGEXP [TIME]")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	p := theProcess(ts, args[0])
	if neg {
		if m := re.FindString(p.out.String()); m != "" {
			ts.Fatalf("the log of %s holds %q", args[0], m)
		}
		return
	}
	err = eventually(limit, func() error {
		if re.MatchString(p.out.String()) {
			return nil
		}
		return fmt.Errorf("the log of %s has nothing like %q:\n%s", args[0], args[1], p.out.String())
	})
	ts.Check(err)
}

func theAgent(ts *testscript.TestScript, name string) *agent {
	w := theWorld(ts)
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.agents[name]; a != nil {
		return a
	}
	a, err := newAgent(ts.Getenv("CA"))
	ts.Check(err)
	w.agents[name] = a
	return a
}

func show(w io.Writer, p *page) {
	fmt.Fprintf(w, "%s %d\n", p.Proto, p.StatusCode)
	names := make([]string, 0, len(p.Header))
	for k := range p.Header {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		for _, v := range p.Header[k] {
			fmt.Fprintf(w, "%s: %s\n", k, v)
		}
	}
	fmt.Fprintf(w, "\n%s\n", p.body)
}

func cmdVisit(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "visit AGENT URL [EMAIL PASSWORD]")
	email, password := "", ""
	if len(args) == 4 {
		email, password = args[2], args[3]
	}
	a := theAgent(ts, args[0])
	p, err := a.visit(args[1], email, password)
	ts.Check(err)
	fmt.Fprintf(ts.Stderr(), "%s\n", strings.Join(a.hops, "\n"))
	show(ts.Stdout(), p)
}

// cmdRequest sends one request. A header argument is "Name: value"; an
// argument that begins with @ is the body.
func cmdRequest(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 3, "request AGENT METHOD URL [HEADER...]")
	var body io.Reader
	var headers [][2]string
	for _, h := range args[3:] {
		if b, ok := strings.CutPrefix(h, "@"); ok {
			body = strings.NewReader(b)
			continue
		}
		k, v, _ := strings.Cut(h, ":")
		headers = append(headers, [2]string{k, strings.TrimSpace(v)})
	}
	req, err := http.NewRequest(args[1], args[2], body)
	ts.Check(err)
	for _, h := range headers {
		if strings.EqualFold(h[0], "host") {
			req.Host = h[1]
			continue
		}
		req.Header[h[0]] = append(req.Header[h[0]], h[1])
	}
	p, err := theAgent(ts, args[0]).do(req)
	ts.Check(err)
	show(ts.Stdout(), p)
}

// cmdVerify reads the echo upstream's JSON from the last stdout, takes the
// named header and checks it as an application would: by the JWKS, fresh.
func cmdVerify(ts *testscript.TestScript, neg bool, args []string) {
	need(ts, neg, args, 2, "verify AGENT JWKS-URL")
	out := ts.ReadFile("stdout")
	_, body, _ := strings.Cut(out, "\n\n")
	var seen struct{ Headers map[string][]string }
	ts.Check(json.Unmarshal([]byte(body), &seen))
	token := strings.Join(seen.Headers["X-Pomerium-Jwt-Assertion"], ",")
	if token == "" {
		ts.Fatalf("the upstream saw no X-Pomerium-Jwt-Assertion")
	}
	req, err := http.NewRequest("GET", args[1], nil)
	ts.Check(err)
	p, err := theAgent(ts, args[0]).do(req)
	ts.Check(err)
	var keys jose.JSONWebKeySet
	ts.Check(json.Unmarshal([]byte(p.body), &keys))
	sig, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	ts.Check(err)
	found := keys.Key(sig.Signatures[0].Header.KeyID)
	if len(found) != 1 {
		ts.Fatalf("the JWKS has %d keys with id %q", len(found), sig.Signatures[0].Header.KeyID)
	}
	claims, err := sig.Verify(found[0])
	ts.Check(err)
	var c struct{ Iat, Exp int64 }
	ts.Check(json.Unmarshal(claims, &c))
	if now := time.Now().Unix(); c.Exp <= now || c.Exp-c.Iat != 300 {
		ts.Fatalf("iat %d, exp %d, now %d: want five minutes of life and some of it left", c.Iat, c.Exp, now)
	}
	fmt.Fprintf(ts.Stdout(), "%s\n", claims)
}
