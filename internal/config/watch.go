package config

import (
	"context"
	"crypto/sha256"
	"maps"
	"os"
	"slices"
	"time"
)

// How the Watcher looks.
const (
	// watchEvery is the time between looks at the files.
	watchEvery = time.Second
	// watchSettle is how long files must stay as they are before they are
	// read: a writer may be half-way.
	watchSettle = 200 * time.Millisecond
	// watchClosed is how long where the file system told that a writer is done.
	watchClosed = 50 * time.Millisecond
	// watchWhole is the number of looks after which every file is read again,
	// even those whose metadata is unchanged.
	watchWhole = 30
)

// Watcher loads a configuration again when what it was read from changes. It
// compares contents, through symbolic links and mounts, every second; events
// of the file system, where there are any, only make it look sooner.
type Watcher struct {
	path  string
	env   []string
	files map[string]*watched
	looks int
	hot   bool
	// last is the configuration whose routes may be taken over.
	last   *Config
	notice func(paths []string) (events <-chan struct{}, stop func())
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
	w := &Watcher{path: path, env: env, hot: true, last: cfg, notice: fileEvents}
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
// gives the outcome to apply.
// A trigger always loads, a change only while config_hot_reload is on. Run
// returns when ctx ends.
func (w *Watcher) Run(ctx context.Context, trigger <-chan struct{}, apply func(Loaded)) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	events, stop := w.events()
	defer func() { stop() }()
	for {
		settle := watchSettle
		select {
		case <-ctx.Done():
			return
		case <-trigger:
			settle = 0
		case <-events:
			settle = watchClosed
		case <-tick.C:
		}
		if settle > 0 {
			if !w.hot || !w.changed() {
				continue
			}
			if !w.settle(ctx, settle) {
				return
			}
		}
		loaded := w.load(ctx)
		if ctx.Err() != nil {
			return
		}
		// What is to be watched may be elsewhere now.
		stop()
		events, stop = w.events()
		apply(loaded)
	}
}

// events tells of changes of the files, as far as the file system does.
func (w *Watcher) events() (<-chan struct{}, func()) {
	if w.notice == nil {
		return nil, func() {}
	}
	return w.notice(slices.Collect(maps.Keys(w.files)))
}

// load reads the configuration and takes over the files it names, even if it
// is not valid: its repair must be seen, too.
func (w *Watcher) load(ctx context.Context) Loaded {
	cfg, problems := loadAll(ctx, w.last, diskReader, fileSources(w.path, w.env)...)
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
		return Loaded{Problems: problems, Checksum: cfg.checksum}
	}
	w.last = cfg
	return Loaded{Config: cfg, Problems: problems, Checksum: cfg.checksum}
}

// settle waits until the files stay as they are for a while, but not for ever.
func (w *Watcher) settle(ctx context.Context, while time.Duration) bool {
	for range 10 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(while):
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
	hash := diskHash(path)
	changed := hash != f.hash
	f.hash = hash
	return changed
}
