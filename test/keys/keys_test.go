// Package keys shows that settings act. Every key that "postern config keys"
// calls acting stands in acts.yaml beside what shows it: mostly an example
// here, which is run twice against the whole program, with the setting and
// without it, and must come out differently.
package keys

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"postern/internal/server/servertest"
)

// example shows what a setting does.
type example struct {
	// keys that the example shows, separated by blanks.
	keys string
	// config is a configuration. Lines marked "# shown" hold the setting: they
	// are left out of the second run, for which shows must fail. Lines marked
	// "# instead" are in the second run only.
	config string
	// shows is nil if the program behaves as the setting wants.
	shows func(w *world) error
	// with changes how the program is started.
	with func(t *testing.T, o *servertest.Options)
}

// world is one run of an example.
type world struct {
	*servertest.Program
	t       *testing.T
	refused error // why the program did not start
	text    string
	vars    map[string]string
}

var examples []example

// all collects the examples of this package's files.
func all() []example {
	if examples == nil {
		for _, list := range [][]example{autocertExamples, doorExamples, listenerExamples, tlsExamples, routeExamples, rateExamples, upstreamExamples, dnsExamples(), breakerExamples(), balancingExamples, signInExamples, accessExamples, identityExamples, keepingExamples, pageExamples} {
			examples = append(examples, list...)
		}
	}
	return examples
}

const (
	app  = "https://app.localhost"
	user = app + "/"
)

func TestKeys(t *testing.T) {
	for _, e := range all() {
		t.Run(strings.ReplaceAll(e.keys, " ", "+"), func(t *testing.T) {
			t.Parallel()
			with, without := e.texts(t)
			if err := e.run(t, with); err != nil {
				t.Errorf("with the setting: %v", err)
			}
			if err := e.run(t, without); err == nil {
				t.Errorf("without the setting it comes out the same: this shows nothing\n%s", without)
			}
		})
	}
}

var marked = regexp.MustCompile(`(?m)^.*# (shown|instead)\n`)

func (e example) texts(t *testing.T) (with, without string) {
	text := strings.Trim(e.config, "\n") + "\n"
	keep := func(word string) string {
		return marked.ReplaceAllStringFunc(text, func(line string) string {
			if strings.HasSuffix(line, "# "+word+"\n") {
				return line
			}
			return ""
		})
	}
	with, without = keep("shown"), keep("instead")
	if with == without {
		t.Fatal("no line is marked # shown")
	}
	for _, key := range strings.Fields(e.keys) {
		name := key[strings.LastIndexByte(key, '.')+1:]
		if name = strings.TrimSuffix(name, "[]"); !strings.Contains(with, name) {
			t.Fatalf("the example of %s never mentions it", key)
		}
	}
	return with, without
}

func (e example) run(t *testing.T, text string) error {
	o := servertest.Options{Vars: map[string]string{}, Files: map[string]string{}}
	if e.with != nil {
		e.with(t, &o)
	}
	maps.Copy(o.Vars, material(t))
	for name, value := range material(t) {
		o.Files[strings.ToLower(name)+".pem"] = decoded(value)
	}
	p, err := servertest.Try(t, text, o)
	w := &world{Program: p, t: t, refused: err, text: text, vars: o.Vars}
	if err != nil && !strings.Contains(e.config, "# refused") {
		return fmt.Errorf("not started: %w", err)
	}
	err = e.shows(w)
	if w.refused == nil {
		err = errors.Join(err, p.Stop())
	}
	if err != nil && testing.Verbose() {
		t.Logf("%v\n%s", err, p.Log)
	}
	return err
}

// saw gives what the application saw of a request.
func (w *world) saw(target string, headers ...string) (servertest.Seen, error) {
	page, err := w.Agent().Request("GET", target, headers...)
	if err != nil {
		return servertest.Seen{}, err
	}
	return page.Echo()
}

// status asks and compares the status; location, if not "", too.
func (w *world) status(want int, target string, headers ...string) error {
	page, err := w.Agent().Request("GET", target, headers...)
	if err != nil {
		return err
	}
	return is(page.StatusCode, want)
}

// header asks and compares a header of the answer.
func (w *world) header(name, want, target string, headers ...string) error {
	page, err := w.Agent().Request("GET", target, headers...)
	if err != nil {
		return err
	}
	return is(strings.Join(page.Header.Values(name), "|"), want)
}

// signedIn is what the application sees of Ada.
func (w *world) signedIn() (*servertest.Agent, servertest.Seen, error) {
	a := w.Agent()
	page, err := a.Visit(user, servertest.Ada)
	if err != nil {
		return a, servertest.Seen{}, err
	}
	s, err := page.Echo()
	return a, s, err
}

// enters tells whether an account gets in.
func (w *world) enters(who servertest.Account) error {
	page, err := w.Agent().Visit(user, who)
	if err != nil {
		return err
	}
	return is(page.StatusCode, http.StatusOK)
}

func is[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

func holds(text, part string) error {
	if !strings.Contains(text, part) {
		return fmt.Errorf("there is no %q in %.1500q", part, text)
	}
	return nil
}

func lacks(text, part string) error {
	if strings.Contains(text, part) {
		return fmt.Errorf("there is %q in %.1500q", part, text)
	}
	return nil
}

// logged waits for a line of the log that holds all parts.
func (w *world) logged(parts ...string) (string, error) {
	found := ""
	err := servertest.Eventually(func() error {
		for line := range strings.Lines(w.Log.String()) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				found = line
				return nil
			}
		}
		return fmt.Errorf("no line of the log holds %q", parts)
	})
	return found, err
}

// Examples mostly wait, so more of them run at once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == fmt.Sprint(runtime.GOMAXPROCS(0)) {
		f.Value.Set("12")
	}
	os.Exit(m.Run())
}
