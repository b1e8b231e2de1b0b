package rego

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"postern/internal/policy"
	"postern/internal/policy/policytest"
)

// patient gives tests on a busy machine their time.
func patient(o Options) *Scripts {
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	return New(o)
}

func compile(t testing.TB, s *Scripts, text string) *policy.Policy {
	t.Helper()
	p, _, err := s.Compile("policy.rego", text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func judge(p *policy.Policy, in *policy.Input) policy.Result {
	var res policy.Result
	p.Evaluate(in, &res)
	return res
}

func TestCases(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	s := patient(Options{})
	var out bytes.Buffer
	code := policytest.Run(files, policytest.Options{Rego: func(name, text string) (*policy.Policy, error) {
		p, _, err := s.Compile(name, text)
		return p, err
	}}, &out)
	if code != 0 {
		t.Error(out.String())
	}
}

func TestOtherPackageWarns(t *testing.T) {
	_, warnings, err := patient(Options{}).Compile("p.rego", "package a\nallow := true")
	if err != nil || len(warnings) != 1 || !strings.Contains(warnings[0].Message, "pomerium.policy") {
		t.Error(warnings, err)
	}
}

// TestSmallBounds holds single steps that would make a value without end.
func TestSmallBounds(t *testing.T) {
	s := patient(Options{})
	in := &policy.Input{Path: strings.Repeat("x", 4096)}
	for _, expr := range []string{
		`bits.lsh(1, 1000000000000)`,
		`sprintf("%999999999d", [1])`,
		`sprintf("%*d", [99999999, 1])`,
		`sprintf(concat("", [x | numbers.range(1, 4000)[_]; x := "%[1]s"]), [input.http.path])`,
		`replace(input.http.path, "", input.http.path)`,
		`strings.replace_n({"x": input.http.path}, input.http.path)`,
		`regex.replace(input.http.path, "x", input.http.path)`,
		`concat("", [x | numbers.range(1, 4000)[_]; x := input.http.path])`,
		`format_int(1e9000, 10)`,
		`round(1e9000)`,
		`1e9000 % 7`,
	} {
		text := "allow { r := " + expr + "; r != null }"
		if res := judge(compile(t, s, text), in); res.Err == nil || res.Allow.Value {
			t.Errorf("%s: no error", expr)
		}
	}
	// The same functions in ordinary use.
	if res := judge(compile(t, s, `
allow {
	bits.lsh(1, 10) == 1024
	sprintf("%05d %s", [42, "x"]) == "00042 x"
	concat(",", ["a", "b"]) == "a,b"
	concat(",", {"a"}) == "a"
	replace("aaa", "a", "b") == "bbb"
	strings.replace_n({"a": "b"}, "aa") == "bb"
	regex.replace("abc", "b+", "x") == "axc"
	json.marshal({"a": [1, {"b": null}]}) == "{\"a\":[1,{\"b\":null}]}"
	round(1.5e3) == 1500
	10 % 7 == 3
}`), in); res.Err != nil || !res.Allow.Value {
		t.Errorf("ordinary use: %+v", res)
	}
}

func TestTooManyReasons(t *testing.T) {
	s := patient(Options{})
	for _, text := range []string{
		`allow := [true, [sprintf("r%d", [i]) | i := numbers.range(1, 65)[_]]]`,
		`allow := [true, [concat("", [x | numbers.range(1, 257)[_]; x := "a"])]]`,
	} {
		if res := judge(compile(t, s, text), &policy.Input{}); res.Err == nil || res.Allow.Value {
			t.Errorf("%s: %+v", text, res)
		}
	}
}

// TestTime holds evaluations that do not end by themselves: one that looks up
// and one that does not, because it is inside a single comparison.
func TestTime(t *testing.T) {
	loop := `allow { count([1 | numbers.range(1, 100000)[a]; numbers.range(1, 100000)[b]; a == b; a < 0]) == 1 }`
	for name, text := range map[string]string{"loop": loop} {
		s := New(Options{Timeout: 20 * time.Millisecond, AtOnce: 2})
		p := compile(t, s, text)
		for range 4 { // more often than there are slots
			if res := judge(p, &policy.Input{}); res.Err == nil || res.Allow.Value {
				t.Errorf("%s: %+v", name, res)
			}
		}
		// Slots come back, so that others can go on.
		for range cap(s.slots) {
			s.slots <- struct{}{}
		}
	}
}

// TestBusy: with every slot taken a request waits for its time and is refused.
func TestBusy(t *testing.T) {
	s := New(Options{Timeout: 10 * time.Millisecond, AtOnce: 1})
	s.slots <- struct{}{}
	res := judge(compile(t, s, "allow := true"), &policy.Input{})
	if !errors.Is(res.Err, errTimeout) {
		t.Errorf("%+v", res)
	}
}

// TestLeftBehind: an evaluation whose request has gone on sees nothing of it.
func TestLeftBehind(t *testing.T) {
	s := New(Options{Timeout: 20 * time.Millisecond, AtOnce: 1})
	p := compile(t, s, `
slow { count([1 | numbers.range(1, 20000)[a]; numbers.range(1, 20000)[b]; a == b + 50000]) == 0 }
allow { slow; get_databroker_record("t", "i") == null }`)
	asked := make(chan struct{}, 1)
	res := judge(p, &policy.Input{RecordByID: func(string, string) (map[string]any, error) {
		asked <- struct{}{}
		return nil, nil
	}})
	if res.Err == nil {
		t.Fatal("the script is not slow enough to tell anything")
	}
	s.slots <- struct{}{} // it has ended
	select {
	case <-asked:
		t.Error("a record was read after the request had gone on")
	default:
	}
}

func TestLargeRequests(t *testing.T) {
	p := compile(t, patient(Options{}), "allow := true")
	if res := judge(p, &policy.Input{RawQuery: strings.Repeat("a", MaxInput+1)}); res.Err == nil {
		t.Error("a large query is shown to the script")
	}
	many := func(yield func(string, string) bool) {
		for i := range 1 << 30 {
			if !yield(fmt.Sprint("X-", i), strings.Repeat("v", 1000)) {
				return
			}
		}
	}
	if res := judge(p, &policy.Input{EachHeader: many}); res.Err == nil {
		t.Error("endless headers are shown to the script")
	}
	deep := map[string]any{}
	for range 100 {
		deep = map[string]any{"a": deep}
	}
	if res := judge(p, &policy.Input{MCP: &policy.MCPCall{Method: "tools/call", Arguments: deep}}); res.Err == nil {
		t.Error("deep arguments are shown to the script")
	}
	q := compile(t, patient(Options{}), `deny { get_databroker_record("t", "i").a == 1 } allow := true`)
	if res := judge(q, &policy.Input{RecordByID: func(string, string) (map[string]any, error) { return deep, nil }}); res.Err == nil {
		t.Error("a deep record is shown to the script")
	}
}

func TestLargeScript(t *testing.T) {
	s := patient(Options{})
	for name, text := range map[string]string{
		"large":  "allow := true\n" + strings.Repeat("# comment\n", MaxScript/10),
		"nested": "allow { x := " + strings.Repeat("[", 200_000) + strings.Repeat("]", 200_000) + " }",
	} {
		if _, _, err := s.Compile("p.rego", text); err == nil {
			t.Errorf("%s: loads", name)
		} else if len(err.Error()) > 4000 {
			t.Errorf("%s: the message has %d bytes", name, len(err.Error()))
		}
	}
}

// TestRecordAway: what cannot be read must not make a deny rule false.
func TestRecordAway(t *testing.T) {
	away := errors.New("the store is away")
	res := judge(compile(t, patient(Options{}), `
allow := true
deny { get_databroker_record("t", "blocked").blocked }`),
		&policy.Input{RecordByID: func(string, string) (map[string]any, error) { return nil, away }})
	if res.Err == nil || res.Allowed() || !strings.Contains(res.Err.Error(), away.Error()) {
		t.Errorf("%+v", res)
	}
}

func TestPrint(t *testing.T) {
	var mu sync.Mutex
	var got []string
	s := patient(Options{Print: func(script string, line int, text string) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprintf("%s:%d: %s", script, line, text))
	}})
	judge(compile(t, s, "# one\nallow {\n\tprint(\"path is\", input.http.path)\n}"), &policy.Input{Path: "/x"})
	if !slices.Equal(got, []string{"policy.rego:3: path is /x"}) {
		t.Error(got)
	}
	got = nil
	judge(compile(t, s, `allow { numbers.range(1, 1000)[x]; print(x); x < 0 }`), &policy.Input{})
	if len(got) != MaxPrint {
		t.Errorf("%d lines", len(got))
	}
	judge(compile(t, patient(Options{}), `allow { print("nobody listens") }`), &policy.Input{})
}

// TestNetworkAllowed: with the option, and only with it, a script may call out.
func TestNetworkAllowed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	defer server.Close()
	text := `allow { http.send({"method": "GET", "url": "` + server.URL + `"}).status_code == 204 }`
	if _, _, err := patient(Options{}).Compile("p", text); err == nil {
		t.Error("http.send exists without the option")
	}
	if res := judge(compile(t, patient(Options{Network: true}), text), &policy.Input{}); !res.Allow.Value {
		t.Errorf("%+v", res)
	}
}

// TestRemoteSchemas: no schema is fetched for a script.
func TestRemoteSchemas(t *testing.T) {
	asked := false
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked = true; w.Write([]byte(`{}`)) }))
	defer server.Close()
	for _, ref := range []string{server.URL + "/s.json", "file:///etc/passwd"} {
		res := judge(compile(t, patient(Options{}), `allow { json.match_schema({}, {"$ref": "`+ref+`"})[0] }`), &policy.Input{})
		if asked || res.Allow.Value {
			t.Errorf("%s: fetched %v, %+v", ref, asked, res)
		}
	}
}

func TestVerifyUserCertificate(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	caPub, caKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, _ := ssh.NewPublicKey(pub)
	ca, _ := ssh.NewPublicKey(caPub)
	signer, _ := ssh.NewSignerFromKey(caKey)
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	cert := &ssh.Certificate{Key: key, CertType: ssh.UserCert, ValidPrincipals: []string{"root"},
		ValidAfter: uint64(now.Add(-time.Hour).Unix()), ValidBefore: uint64(now.Add(time.Hour).Unix())}
	if err := cert.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca)))
	other := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	wire := base64.StdEncoding.EncodeToString(ca.Marshal())
	for authorities, want := range map[string]bool{
		`"` + line + `"`:                    true,
		`"` + wire + `"`:                    true,
		`["` + other + `", "` + line + `"]`: true,
		`{"` + line + `"}`:                  true,
		`["` + other + `"]`:                 false,
		`[]`:                                false,
		`[7, null]`:                         false,
		`{"a": "` + line + `"}`:             false,
	} {
		p := compile(t, patient(Options{}), `allow { ssh_verify_user_cert(input.ssh.username, input.ssh.publickey, `+authorities+`) }`)
		in := &policy.Input{Now: now, ClientIP: netip.MustParseAddr("192.0.2.1"), SSH: &policy.SSHInput{Username: "root", PublicKey: cert.Marshal()}}
		if res := judge(p, in); res.Err != nil || res.Allow.Value != want {
			t.Errorf("%s: %+v", authorities, res)
		}
		in.SSH.Username = "ada"
		if judge(p, in).Allow.Value {
			t.Errorf("%s: another name is let in", authorities)
		}
		in.SSH.Username, in.Now = "root", now.Add(2*time.Hour)
		if judge(p, in).Allow.Value {
			t.Errorf("%s: let in after its end", authorities)
		}
	}
}

// TestAtOnce: one compiled script serves many requests at the same time.
func TestAtOnce(t *testing.T) {
	p := compile(t, patient(Options{}), `allow := [true, [input.session.user_id]]`)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			user := fmt.Sprint("user", i)
			if res := judge(p, &policy.Input{UserID: user}); !slices.Contains(res.Allow.Reasons.Names(), user) {
				t.Errorf("%s: %+v", user, res)
			}
		})
	}
	wg.Wait()
}
