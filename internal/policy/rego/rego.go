// Package rego runs policies written in Rego (policy-language.md §11). It is
// the only home of Open Policy Agent, which is used as a library: its parser,
// compiler and evaluator, none of its server.
//
//	scripts := rego.New(rego.Options{})
//	p, warnings, err := scripts.Compile("policy.rego", text)
//	p.Evaluate(&input, &result)
//
// A script is compiled once and judged many times. It is bounded: in time, in
// size of text and of every value it makes, and in what it may reach. The
// functions that leave the process (http.send, net.lookup_ip_addr) or tell of
// it (opa.runtime) do not exist unless Options says so, so that a script that
// names one does not load. A script that fails, takes too long or answers
// twice is an evaluation error, never an allow.
package rego

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"

	"postern/internal/policy"
)

// Limits of one script and one evaluation.
const (
	// DefaultTimeout is how long one evaluation may take.
	DefaultTimeout = 100 * time.Millisecond
	// MaxScript is the largest script, in bytes.
	MaxScript = 1 << 20
	// MaxCompile is how long compiling one may take.
	MaxCompile = 10 * time.Second
	// MaxInput is the most that one request may give a script to look at, in
	// bytes: path, query, headers, certificates and arguments.
	MaxInput = 1 << 20
	// MaxRecord is the largest record that a script may look at, in bytes of
	// text and entries.
	MaxRecord = 1 << 20
	// MaxReasons and MaxReason bound the reasons of one rule, in number and
	// in bytes of each.
	MaxReasons, MaxReason = 64, 256
	// MaxPrint bounds the lines that one evaluation may print, and the bytes
	// of each; the rest is dropped.
	MaxPrint, MaxPrintLine = 64, 2048
)

// Options is what the scripts of one installation may do. The zero value
// allows the least.
type Options struct {
	// Timeout bounds one evaluation; 0 is DefaultTimeout.
	Timeout time.Duration
	// Network allows http.send, net.lookup_ip_addr and remote JSON schemas.
	Network bool
	// Runtime allows opa.runtime, which is empty here.
	Runtime bool
	// Print is given what scripts print, with the name of the script and the
	// line of the statement. It may be called by several goroutines at once.
	// nil: prints are dropped.
	Print func(script string, line int, text string)
	// AtOnce bounds how many evaluations run at the same time, which bounds
	// their memory; the others wait, within their time. 0: four a processor.
	AtOnce int
}

// Scripts compiles and runs scripts under one set of options.
type Scripts struct {
	opts         Options
	capabilities map[ast.RegoVersion]*ast.Capabilities
	// slots holds one token for every running evaluation.
	slots chan struct{}
}

// New gives a place to compile scripts in.
func New(o Options) *Scripts {
	guardOnce.Do(guardBuiltins)
	o.Timeout = cmp.Or(o.Timeout, DefaultTimeout)
	o.AtOnce = cmp.Or(o.AtOnce, 4*runtime.GOMAXPROCS(0))
	s := &Scripts{opts: o, slots: make(chan struct{}, o.AtOnce), capabilities: map[ast.RegoVersion]*ast.Capabilities{}}
	for _, v := range []ast.RegoVersion{ast.RegoV0, ast.RegoV1} {
		s.capabilities[v] = capabilities(v, o)
	}
	return s
}

// home is the package that a script answers from, and gets if it names none.
const home = "pomerium.policy"

// program is a compiled script.
type program struct {
	name     string
	added    int // lines before the user's text
	scripts  *Scripts
	compiler *ast.Compiler
	query    ast.Body
	builtins map[string]*topdown.Builtin
	store    storage.Store
}

// question asks for both rules in one evaluation, so that what they share is
// worked out once; a rule that is undefined leaves its list empty.
const question = "allow = [x | x = data." + home + ".allow]; deny = [x | x = data." + home + ".deny]"

var errOtherPackage = errors.New("the script is not in package " + home + ", so it answers nothing; remove its package line, or name that package")

// Compile reads a script. The error is a policy.Problems with the places in
// the user's text. A warning tells of a script that loads and cannot answer.
func (s *Scripts) Compile(name, text string) (*policy.Policy, []policy.Problem, error) {
	refuse := func(format string, args ...any) error {
		return policy.Problems{{File: name, Line: 1, Column: 1, Message: fmt.Sprintf(format, args...)}}
	}
	if len(text) > MaxScript {
		return nil, nil, refuse("the script has %d bytes; at most %d are read, so split it", len(text), MaxScript)
	}
	type result struct {
		policy   *policy.Policy
		warnings []policy.Problem
		err      error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if v := recover(); v != nil {
				r = result{err: refuse("the script breaks the compiler (%T); make it simpler", v)}
			}
			done <- r
		}()
		r.policy, r.warnings, r.err = s.compile(name, text)
	}()
	timer := time.NewTimer(MaxCompile)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.policy, r.warnings, r.err
	case <-timer.C:
		// The compiler cannot be stopped, only left behind.
		return nil, nil, refuse("the script takes longer than %v to compile; make it simpler", MaxCompile)
	}
}

func (s *Scripts) compile(name, text string) (*policy.Policy, []policy.Problem, error) {
	module, version, added, problems := s.parse(name, text)
	if problems != nil {
		return nil, nil, problems
	}
	p := &program{name: name, added: added, scripts: s, builtins: map[string]*topdown.Builtin{}, store: inmem.New()}
	declared := map[string]*ast.Builtin{}
	for _, f := range functions() {
		declared[f.Decl.Name] = f.Decl
		p.builtins[f.Decl.Name] = f
	}
	//lint:ignore SA1019 WithCapabilities alone would let scripts of one process see each other's functions
	p.compiler = ast.NewCompiler().
		WithCapabilities(s.capabilities[version]).
		WithBuiltins(declared).
		WithDefaultRegoVersion(version).
		WithEnablePrintStatements(true)
	p.compiler.Compile(map[string]*ast.Module{name: module})
	if p.compiler.Failed() {
		return nil, nil, problemsOf(name, p.compiler.Errors, added)
	}
	if module.Package.Path.String() != "data."+home {
		return policy.Custom(name, func(_ *policy.Input, res *policy.Result) { res.Err = fmt.Errorf("%s: %w", name, errOtherPackage) }),
			[]policy.Problem{{File: name, Line: 1, Column: 1, Message: errOtherPackage.Error()}}, nil
	}
	body, err := ast.ParseBodyWithOpts(question, ast.ParserOptions{RegoVersion: ast.RegoV1})
	if err == nil {
		p.query, err = p.compiler.QueryCompiler().Compile(body)
	}
	if err != nil {
		return nil, nil, problemsOf(name, err, added)
	}
	return policy.Custom(name, p.evaluate), nil, nil
}

// parse reads a script in the old syntax and, where that fails, in the new
// one (D3). added is the number of lines put before the user's text.
func (s *Scripts) parse(name, text string) (m *ast.Module, v ast.RegoVersion, added int, problems policy.Problems) {
	if strings.TrimSpace(text) == "" {
		return nil, 0, 0, policy.Problems{{File: name, Line: 1, Column: 1, Message: "the script is empty; write an allow or a deny rule"}}
	}
	if !hasPackage(text) {
		text, added = "package "+home+"\n"+text, 1
	}
	read := func(v ast.RegoVersion) (*ast.Module, error) {
		return ast.ParseModuleWithOpts(name, text, ast.ParserOptions{RegoVersion: v, Capabilities: s.capabilities[v]})
	}
	m, old := read(ast.RegoV0)
	if old == nil {
		return m, ast.RegoV0, added, nil
	}
	m, err := read(ast.RegoV1)
	if err == nil {
		return m, ast.RegoV1, added, nil
	}
	// Tell what the reader that came further says.
	first, second := problemsOf(name, old, added), problemsOf(name, err, added)
	if before(second[0], first[0]) {
		return nil, 0, 0, first
	}
	return nil, 0, 0, second
}

func before(a, b policy.Problem) bool {
	return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column)) < 0
}

// hasPackage tells whether the first word that is no comment is "package".
func hasPackage(text string) bool {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, _, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		return word == "package"
	}
	return false
}

// problemsOf gives the compiler's messages with the places in the user's text.
func problemsOf(name string, err error, added int) policy.Problems {
	var list ast.Errors
	if !errors.As(err, &list) || len(list) == 0 {
		return policy.Problems{{File: name, Line: 1, Column: 1, Message: strings.ReplaceAll(err.Error(), "\n", " ")}}
	}
	var out policy.Problems
	for i, e := range list {
		if i == maxProblems {
			break
		}
		p := policy.Problem{File: name, Line: 1, Column: 1, Message: e.Message}
		if e.Code != "" && !strings.HasPrefix(e.Message, e.Code) {
			p.Message = e.Code + ": " + e.Message
		}
		if e.Location != nil {
			p.Line, p.Column = max(e.Location.Row-added, 1), max(e.Location.Col, 1)
		}
		if d, ok := e.Details.(*ast.ParserErrorDetail); ok && d != nil {
			if line := strings.TrimSpace(d.Line); line != "" && len(line) < 200 {
				p.Message += ": " + line
			}
		}
		out = append(out, p)
	}
	return out
}

const maxProblems = 20

// run is one evaluation. It may outlive its request: a function of the library
// that does not look up cannot be stopped, only left behind.
type run struct {
	mu       sync.Mutex
	input    *policy.Input // nil once the request has gone on
	now      time.Time
	printed  int
	answered chan struct{}
	rows     topdown.QueryResultSet
	err      error
}

var errTimeout = errors.New("the script did not answer in time; make it simpler")

// evaluate judges one request.
func (p *program) evaluate(in *policy.Input, res *policy.Result) {
	fail := func(err error) { res.Err = fmt.Errorf("%s: %w", p.name, err) }
	value, err := inputOf(in)
	if err != nil {
		fail(err)
		return
	}
	timer := time.NewTimer(p.scripts.opts.Timeout)
	defer timer.Stop()
	select {
	case p.scripts.slots <- struct{}{}:
	case <-timer.C:
		fail(fmt.Errorf("too many scripts run at once: %w", errTimeout))
		return
	}
	cancel := topdown.NewCancel()
	ctx, stop := context.WithTimeout(context.Background(), p.scripts.opts.Timeout)
	defer stop()
	r := &run{input: in, now: in.Now, answered: make(chan struct{})}
	go p.ask(ctx, r, value, cancel)
	select {
	case <-r.answered:
	case <-timer.C:
		cancel.Cancel()
		r.mu.Lock()
		r.input = nil
		r.mu.Unlock()
		fail(errTimeout)
		return
	}
	if r.err != nil {
		fail(r.err)
		return
	}
	if len(r.rows) != 1 {
		fail(fmt.Errorf("the script gave %d answers", len(r.rows)))
		return
	}
	if res.Allow, err = answerOf(r.rows[0]["allow"]); err != nil {
		fail(fmt.Errorf("allow: %w", err))
		return
	}
	if res.Deny, err = answerOf(r.rows[0]["deny"]); err != nil {
		fail(fmt.Errorf("deny: %w", err))
	}
}

// ask runs the query in a goroutine of its own.
func (p *program) ask(ctx context.Context, r *run, input ast.Value, cancel topdown.Cancel) {
	defer func() {
		if v := recover(); v != nil {
			r.err = fmt.Errorf("the script broke its evaluator: %T", v)
		}
		<-p.scripts.slots
		close(r.answered)
	}()
	txn, err := p.store.NewTransaction(ctx)
	if err != nil {
		r.err = err
		return
	}
	defer p.store.Abort(ctx, txn)
	r.rows, r.err = topdown.NewQuery(p.query).
		WithCompiler(p.compiler).
		WithStore(p.store).
		WithTransaction(txn).
		WithInput(ast.NewTerm(input)).
		WithBuiltins(p.builtins).
		WithCancel(cancel).
		WithTime(r.now).
		WithPrintHook(printer{p, r}).
		Run(context.WithValue(ctx, runKey{}, r))
	r.err = shorten(r.err)
}

// shorten keeps what an error of a script may bring into logs small.
func shorten(err error) error {
	if err == nil {
		return nil
	}
	if text := err.Error(); len(text) > 1000 {
		return errors.New(string(bytes.ToValidUTF8([]byte(text[:1000]), nil)) + "...")
	}
	return err
}

// runKey finds the run of an evaluation in the context that the library hands
// to functions; there is no other way to reach them.
type runKey struct{}
