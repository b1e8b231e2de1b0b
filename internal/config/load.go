package config

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Source is one place that settings come from. Later sources win over
// earlier ones: a document replaces whole top-level keys, an environment
// single ones.
type Source interface {
	// Name is shown in problems.
	Name() string
	read(ctx context.Context, fs fileReader, before *routesBefore) (*layer, []Problem)
}

// layer is what a source says.
type layer struct {
	name     string
	document *docLayer
	env      environ
	// identity is what the checksum is made of.
	identity []byte
}

// LoadFile reads the configuration at path, or only the environment if path is
// empty, under the given environment (as os.Environ gives it).
func LoadFile(path string, env []string) (*Config, []Problem) {
	l := Reload(nil, path, env)
	return l.Config, l.Problems
}

// Loaded is what a load came to.
type Loaded struct {
	// Config is nil if one of the problems is fatal.
	Config   *Config
	Problems []Problem
	// Checksum identifies what was read, whether it is valid or not.
	Checksum uint64
}

// Reload is LoadFile where an earlier configuration is known, or nil. The
// outcome is the same; routes that did not change are taken over.
func Reload(earlier *Config, path string, env []string) Loaded {
	cfg, problems := loadAll(context.Background(), earlier, diskReader, fileSources(path, env)...)
	l := Loaded{Problems: problems, Checksum: cfg.checksum}
	l.Config, _ = judged(cfg, problems)
	return l
}

func fileSources(path string, env []string) []Source {
	sources := []Source{}
	if path != "" {
		sources = append(sources, File(path))
	}
	return append(sources, Environment(env))
}

// Load reads, merges and checks the sources, later ones over earlier ones. The
// problems are all there are, in the order of sources and positions. The
// Config is nil if one of them is fatal. What stops the start but not the
// load is told by StartProblems.
func Load(ctx context.Context, sources ...Source) (*Config, []Problem) {
	return load(ctx, diskReader, sources...)
}

func load(ctx context.Context, read fileReader, sources ...Source) (*Config, []Problem) {
	return judged(loadAll(ctx, nil, read, sources...))
}

func judged(cfg *Config, problems []Problem) (*Config, []Problem) {
	if Fatal(problems) {
		return nil, problems
	}
	return cfg, problems
}

// loadAll gives the Config even where problems are fatal, for the watcher,
// which must know what files such a configuration names.
func loadAll(ctx context.Context, earlier *Config, read fileReader, sources ...Source) (*Config, []Problem) {
	d := newDecoder()
	files := newFileSet(read)
	before := routesOf(earlier)
	var layers []*layer
	for _, s := range sources {
		l, problems := s.read(ctx, files.read, before)
		d.problems = append(d.problems, problems...)
		if l == nil {
			l = &layer{name: s.Name()}
		}
		layers = append(layers, l)
		d.cfg.sources = append(d.cfg.sources, l.name)
	}
	malformed := Fatal(d.problems)
	for i, l := range layers {
		clear(d.overruled)
		for _, later := range layers[i+1:] {
			later.overrule(d.overruled)
		}
		if l.document != nil {
			d.document(l.name, l.document)
		}
		l.env.decode(d)
	}
	d.cfg.set = lastSet(d.cfg.set)
	if !malformed {
		// Without a document there is nothing to check, and complaints about
		// what it lacks would mislead.
		d.resolveFiles(files)
		d.check()
		d.resolveMeaning()
	}
	d.makeRoutes(files, before, !malformed)
	d.noteKeys()
	d.cfg.files = files.list()
	d.cfg.checksum = checksum(layers, d.cfg.files)
	problemFiles := append(slices.Clone(d.cfg.sources), environment+" POLICY", environment+" ROUTES")
	sortProblems(d.problems, problemFiles)
	return d.cfg, d.problems
}

func listRank(list string) int {
	if list == "policy" {
		return 0
	}
	return 1
}

// lastSet keeps the last place of every key that was set.
func lastSet(set []setKey) []setKey {
	last := make(map[string]int, len(set))
	for i, s := range set {
		last[s.path] = i
	}
	out := set[:0:0]
	for i, s := range set {
		if last[s.path] == i {
			out = append(out, s)
		}
	}
	return out
}

// overrule notes what this layer sets.
func (l *layer) overrule(paths map[string]bool) {
	if l.document != nil {
		for _, name := range l.document.keys() {
			paths[name] = true
		}
	}
	for _, p := range l.env.paths() {
		paths[p] = true
	}
}

// checksum hashes everything a configuration was read from.
func checksum(layers []*layer, files []WatchedFile) uint64 {
	h := sha256.New()
	put := func(b []byte) {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(b)))
		h.Write(size[:])
		h.Write(b)
	}
	for _, l := range layers {
		put(l.identity)
	}
	for _, f := range files {
		put([]byte(f.Path))
		put(f.Hash[:])
	}
	return binary.BigEndian.Uint64(h.Sum(nil)) >> 11 // 53 bits: a metric is a float64 and must show it exactly
}

// File is the document at a path; its extension tells the format.
func File(path string) Source { return fileSource(path) }

type fileSource string

func (f fileSource) Name() string { return string(f) }

func (f fileSource) read(ctx context.Context, fs fileReader, before *routesBefore) (*layer, []Problem) {
	name := string(f)
	format, err := formatOf(name)
	if err != nil {
		return nil, []Problem{{File: name, Message: err.Error()}}
	}
	text, err := fs(name)
	if err != nil {
		return nil, []Problem{{File: name, Message: "the file cannot be read: " + reason(err), Hint: "check the path and who may read it"}}
	}
	return Text(name, format, text).read(ctx, fs, before)
}

// Text is a document in memory.
func Text(name string, format Format, text []byte) Source {
	return textSource{name, format, text}
}

type textSource struct {
	name   string
	format Format
	text   []byte
}

func (t textSource) Name() string { return t.name }

func (t textSource) read(_ context.Context, _ fileReader, before *routesBefore) (*layer, []Problem) {
	document, problems := parseDocument(t.name, t.format, t.text, before)
	if Fatal(problems) {
		return nil, problems
	}
	return &layer{name: t.name, document: document, identity: t.text}, problems
}

// Environment is the settings among variables of the form NAME=value.
func Environment(env []string) Source { return envSource(env) }

type envSource []string

func (e envSource) Name() string { return environment }

func (e envSource) read(context.Context, fileReader, *routesBefore) (*layer, []Problem) {
	l := &layer{name: environment, env: readEnviron(e)}
	var b strings.Builder
	for _, v := range l.env.vars {
		fmt.Fprintf(&b, "%s=%q\n", v.name, v.value)
	}
	for _, list := range routeLists {
		fmt.Fprintf(&b, "%s=%q\n", list.env, l.env.routes[list.name])
	}
	l.identity = []byte(b.String())
	return l, nil
}

// reason gives the cause of a file error without repeating the path.
func reason(err error) string {
	if pe, ok := err.(*os.PathError); ok {
		return pe.Err.Error()
	}
	return err.Error()
}
