// Package browser looks at Postern through a real browser: headless Chromium
// drives the demo as a person would, and an accessibility checker reads every
// page on the way. It is a module of its own, so that the browser's driver is
// no dependency of the product.
//
// POSTERN_SCREENSHOTS=directory keeps a picture of every page in light and
// dark, wide and narrow. POSTERN_PROGRAM=file tests a binary that is there.
package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"postern/internal/server/servertest"
)

// axe is the source of axe-core.
var axe string

var program string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	b, err := os.ReadFile("../tools/npm/node_modules/axe-core/axe.min.js")
	if err != nil {
		return fail(fmt.Errorf("axe-core is missing, run test/deps.sh: %w", err))
	}
	axe = string(b)
	if program = os.Getenv("POSTERN_PROGRAM"); program != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "postern-browser")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "postern")
	build := exec.Command("go", "build", "-o", program, "./cmd/postern")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return fail(fmt.Errorf("building postern: %w\n%s", err, out))
	}
	return m.Run()
}

// demo is a running demonstration.
type demo struct {
	CAFile   string            `json:"ca_file"`
	URLs     map[string]string `json:"urls"`
	Accounts []struct{ Email, Password string }
}

func (d *demo) account(name string) (email, password string) {
	for _, a := range d.Accounts {
		if strings.HasPrefix(a.Email, name+"@") {
			return a.Email, a.Password
		}
	}
	return "", ""
}

func startDemo(t *testing.T) *demo {
	t.Helper()
	port, err := servertest.Port()
	if err != nil {
		t.Fatal(err)
	}
	address := "127.0.0.1:" + port
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready.json")
	cmd := exec.Command(program, "demo", "--data-dir", filepath.Join(dir, "data"), "--listen", address, "--ready-file", ready)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the demo: %v", err)
			}
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			t.Error("the demo did not end")
		}
		if t.Failed() {
			t.Logf("the demo said:\n%s", out.String())
		}
	})
	limit := time.After(60 * time.Second)
	for {
		var d demo
		if b, err := os.ReadFile(ready); err == nil && json.Unmarshal(b, &d) == nil {
			return &d
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the demo ended: %v\n%s", err, out.String())
		case <-limit:
			t.Fatal("the demo is not ready after a minute")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// startBrowser starts Chromium with a fresh home that trusts caFile, if any.
func startBrowser(t *testing.T, caFile string, more ...chromedp.ExecAllocatorOption) context.Context {
	t.Helper()
	home := t.TempDir()
	if caFile != "" {
		db := filepath.Join(home, ".pki", "nssdb")
		if err := os.MkdirAll(db, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"-N", "--empty-password"}, {"-A", "-t", "C,,", "-n", "ca", "-i", caFile}} {
			if out, err := exec.Command("certutil", append([]string{"-d", "sql:" + db}, args...)...).CombinedOutput(); err != nil {
				t.Fatalf("certutil %v: %v\n%s", args, err, out)
			}
		}
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("/usr/bin/chromium"), chromedp.NoSandbox,
		chromedp.UserDataDir(filepath.Join(home, "profile")), chromedp.Env("HOME="+home),
		chromedp.Flag("disable-background-networking", true), chromedp.WindowSize(1200, 900),
		chromedp.WSURLReadTimeout(60*time.Second))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), append(options, more...)...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	// The first run starts the browser; tabs come and go.
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("Chromium does not start: %v", err)
	}
	return ctx
}

// tab is one window of the browser, with what its pages complained about.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu         sync.Mutex
	complaints []string
}

func newTab(t *testing.T, browser context.Context) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	chromedp.ListenTarget(ctx, func(ev any) {
		b.mu.Lock()
		defer b.mu.Unlock()
		switch e := ev.(type) {
		case *runtime.EventExceptionThrown:
			b.complaints = append(b.complaints, "exception: "+e.ExceptionDetails.Error())
		case *runtime.EventConsoleAPICalled:
			if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
				b.complaints = append(b.complaints, fmt.Sprintf("console %s: %v", e.Type, e.Args))
			}
		case *cdplog.EventEntryAdded:
			// A refusal is a page with a status of 4xx: Chromium notes that.
			if e.Entry.Source != cdplog.SourceNetwork && (e.Entry.Level == cdplog.LevelError || e.Entry.Level == cdplog.LevelWarning) {
				b.complaints = append(b.complaints, fmt.Sprintf("%s %s: %s (%s)", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
			}
		}
	})
	b.do(cdplog.Enable(), runtime.Enable())
	return b
}

// do runs actions, with half a minute for all of them.
func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	// The first run of a tab must not be tied to the timeout.
	if chromedp.FromContext(b.ctx).Target == nil {
		if err := chromedp.Run(b.ctx); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := chromedp.Run(ctx, actions...); err != nil {
		var at, text string
		_ = chromedp.Run(b.ctx, chromedp.Location(&at), chromedp.Text("body", &text, chromedp.ByQuery))
		b.t.Fatalf("%v\nat %s:\n%s", err, at, text)
	}
}

func (b *tab) open(url string) { b.t.Helper(); b.do(chromedp.Navigate(url)) }

// until waits until the expression is true. Pages may come and go meanwhile.
func (b *tab) until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 30*time.Second)
	defer cancel()
	for {
		var ok bool
		if err := chromedp.Run(ctx, chromedp.Evaluate(expression, &ok)); err == nil && ok {
			return
		}
		select {
		case <-ctx.Done():
			var at string
			_ = chromedp.Run(b.ctx, chromedp.Location(&at))
			b.t.Fatalf("not in half a minute: %s\nat %s:\n%s", expression, at, b.text())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// at waits until the page at an address that begins with prefix is there.
func (b *tab) at(prefix string) {
	b.t.Helper()
	b.until(fmt.Sprintf("location.href.startsWith(%q) && document.readyState === 'complete'", prefix))
}

func (b *tab) text() string {
	b.t.Helper()
	var s string
	b.do(chromedp.Evaluate("document.body.innerText", &s))
	return s
}

// says fails unless the page shows each of the words.
func (b *tab) says(words ...string) {
	b.t.Helper()
	text := b.text()
	for _, w := range words {
		if !strings.Contains(strings.ToLower(text), strings.ToLower(w)) {
			b.t.Fatalf("the page does not say %q but\n%s", w, text)
		}
	}
}

// signIn fills the form of local accounts.
func (b *tab) signIn(email, password string) {
	b.t.Helper()
	b.do(chromedp.WaitVisible("#password", chromedp.ByQuery),
		chromedp.Evaluate(`document.querySelector("#email").value = ""`, nil),
		chromedp.SendKeys("#email", email, chromedp.ByQuery),
		chromedp.SendKeys("#password", password, chromedp.ByQuery),
		chromedp.Click("button[type=submit]", chromedp.ByQuery))
}

// complained gives what pages complained about since the last time.
func (b *tab) complained() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.complaints
	b.complaints = nil
	return out
}

// quiet fails if a page complained: a violated policy, an error of a script.
func (b *tab) quiet() {
	b.t.Helper()
	for _, c := range b.complained() {
		b.t.Errorf("a page complained: %s", c)
	}
}

// look is one way of seeing a page.
type look struct {
	scheme string
	width  int64
}

var everyLook = []look{{"light", 1200}, {"dark", 1200}, {"light", 320}, {"dark", 320}}

// inspect reads the page that is open in each look with the accessibility
// checker, checks that nothing needs sideways scrolling, and keeps pictures.
func (b *tab) inspect(name string, looks ...look) {
	b.t.Helper()
	pictures := os.Getenv("POSTERN_SCREENSHOTS")
	// Only the tab in front draws.
	b.do(page.BringToFront(), chromedp.Evaluate(axe+"\n;0", nil))
	for _, l := range looks {
		label := fmt.Sprintf("%s, %s, %d wide", name, l.scheme, l.width)
		var found struct {
			Passed     int
			Violations []struct {
				ID, Impact, Help string
				Nodes            []struct{ HTML, FailureSummary string }
			}
		}
		var overflow string
		b.do(emulation.SetDeviceMetricsOverride(l.width, 900, 1, l.width < 760),
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: l.scheme}, {Name: "prefers-reduced-motion", Value: "reduce"}}),
			chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then(r => ({passed: r.passes.length, violations: r.violations.map(v =>
				({id: v.id, impact: v.impact, help: v.help, nodes: v.nodes.map(n => ({html: n.html, failureSummary: n.failureSummary}))}))}))`,
				&found, func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }),
			chromedp.Evaluate(`(() => { const w = document.documentElement; if (w.scrollWidth <= innerWidth) return "";
				const wide = [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1);
				return w.scrollWidth + " px: " + wide.slice(0, 3).map(e => e.outerHTML.slice(0, 120)).join(" | ") })()`, &overflow))
		if found.Passed < 10 {
			b.t.Errorf("%s: only %d rules apply to the page: the checker did not see it", label, found.Passed)
		}
		for _, v := range found.Violations {
			nodes := ""
			for _, n := range v.Nodes {
				nodes += "\n    " + n.HTML + "\n      " + n.FailureSummary
			}
			if v.Impact == "serious" || v.Impact == "critical" {
				b.t.Errorf("%s: %s (%s): %s%s", label, v.ID, v.Impact, v.Help, nodes)
			} else {
				b.t.Logf("%s: %s (%s): %s%s", label, v.ID, v.Impact, v.Help, nodes)
			}
		}
		if overflow != "" {
			b.t.Errorf("%s: the page scrolls sideways, %s", label, overflow)
		}
		if pictures != "" {
			var png []byte
			b.do(chromedp.FullScreenshot(&png, 100))
			file := filepath.Join(pictures, fmt.Sprintf("%s-%s-%d.png", name, l.scheme, l.width))
			if err := os.WriteFile(file, png, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	b.do(emulation.ClearDeviceMetricsOverride(), emulation.SetEmulatedMedia())
}
