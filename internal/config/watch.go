package config

import (
	"context"
	"crypto/sha256"
	"os"
	"time"
)

// How the Watcher looks.
const (
	// watchEvery is the time between looks at the files.
	watchEvery = time.Second
	// watchSettle is how long files must stay as they are before they are
	// read: a writer may be half-way.
	watchSettle = 200 * time.Millisecond
	// watchWhole is the number of looks after which every file is read again,
	// even those whose metadata is unchanged.
	watchWhole = 30
)

// Watcher loads a configuration again when what it was read from changes. It
// compares contents, through symbolic links and mounts, so it needs neither
// events from the file system nor a directory of its own.
type Watcher struct {
	path  string
	env   []string
	files map[string]*watched
	looks int
	hot   bool
}

// watched is what is known of one file.
type watched struct {
	hash [sha256.Size]byte
	info os.FileInfo // nil where it could not be asked
	at   time.Time   // when the content was read
}

// NewWatcher watches what cfg was read from, which must have come from
// LoadFile(path, env).
func NewWatcher(cfg *Config, path string, env []string) *Watcher {
	w := &Watcher{path: path, env: env, hot: true}
	w.follow(cfg)
	return w
}

// follow takes over the files of a configuration.
func (w *Watcher) follow(cfg *Config) {
	if cfg == nil {
		return
	}
	w.hot = cfg.Flag("config_hot_reload")
	w.files = map[string]*watched{}
	for _, f := range cfg.Files() {
		// Without metadata the next look reads the file and compares.
		w.files[f.Path] = &watched{hash: f.Hash}
	}
}

// Run waits for changes and for triggers (such as SIGHUP), loads again and
// gives the outcome to apply; the Config is nil where the problems are fatal.
// A trigger always loads, a change only while config_hot_reload is on. Run
// returns when ctx ends.
func (w *Watcher) Run(ctx context.Context, trigger <-chan struct{}, apply func(*Config, []Problem)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-trigger:
		case <-tick.C:
			if !w.hot || !w.changed() {
				continue
			}
			if !w.settle(ctx) {
				return
			}
		}
		cfg, problems := w.load(ctx)
		if ctx.Err() != nil {
			return
		}
		apply(cfg, problems)
	}
}

// load reads the configuration and takes over the files it names, even if it
// is not valid: its repair must be seen, too.
func (w *Watcher) load(ctx context.Context) (*Config, []Problem) {
	sources := []Source{}
	if w.path != "" {
		sources = append(sources, File(w.path))
	}
	cfg, problems := loadAll(ctx, diskReader, append(sources, Environment(w.env))...)
	hot, before := w.hot, w.files
	w.follow(cfg)
	if Fatal(problems) {
		// The last good configuration still says how to watch, and its files
		// are watched on: putting them back is a change.
		w.hot = hot
		for path, f := range before {
			if _, known := w.files[path]; !known {
				w.files[path] = f
				w.look(path, f, true)
			}
		}
		return nil, problems
	}
	return cfg, problems
}

// settle waits until the files stay as they are, but not for ever.
func (w *Watcher) settle(ctx context.Context) bool {
	for range 10 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(watchSettle):
		}
		if !w.changed() {
			break
		}
	}
	return true
}

// changed looks at all files and reports whether the content of one differs
// from what it was at the last look.
func (w *Watcher) changed() bool {
	w.looks++
	whole := w.looks%watchWhole == 0
	changed := false
	for path, f := range w.files {
		if w.look(path, f, whole) {
			changed = true
		}
	}
	return changed
}

// look reads a file if its metadata may have changed, and reports whether its
// content has.
func (w *Watcher) look(path string, f *watched, whole bool) bool {
	info, err := os.Stat(path)
	if err != nil {
		info = nil
	}
	if !whole && f.info != nil && info != nil && os.SameFile(f.info, info) &&
		f.info.Size() == info.Size() && f.info.ModTime().Equal(info.ModTime()) &&
		f.at.Sub(info.ModTime()) > 2*time.Second { // clocks of file systems are coarse
		return false
	}
	f.info, f.at = info, time.Now()
	var hash [sha256.Size]byte
	if b, err := diskReader(path); err == nil {
		hash = sha256.Sum256(b)
	}
	changed := hash != f.hash
	f.hash = hash
	return changed
}
