package config

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// outcome is one reload.
type outcome struct {
	cfg      *Config
	problems []Problem
}

// watching runs a Watcher on path in a bubble with its own clock.
func watching(t *testing.T, path string, test func(trigger chan<- struct{}, outcomes <-chan outcome)) {
	synctest.Test(t, func(t *testing.T) {
		cfg, problems := LoadFile(path, nil)
		if cfg == nil {
			t.Fatal(show(problems))
		}
		ctx, cancel := context.WithCancel(context.Background())
		trigger, outcomes, done := make(chan struct{}), make(chan outcome, 100), make(chan struct{})
		go func() {
			w := NewWatcher(cfg, path, nil)
			w.notice = nil // events come by the clock of the machine
			w.Run(ctx, trigger, func(l Loaded) { outcomes <- outcome{l.Config, l.Problems} })
			close(done)
		}()
		test(trigger, outcomes)
		cancel()
		<-done
	})
}

// settled lets the Watcher look a few times and gives what it loaded.
func settled(outcomes <-chan outcome) []outcome {
	time.Sleep(5 * time.Second) // of the bubble
	synctest.Wait()
	var out []outcome
	for {
		select {
		case o := <-outcomes:
			out = append(out, o)
		default:
			return out
		}
	}
}

func oneLevel(t *testing.T, outcomes []outcome, want string) {
	t.Helper()
	if len(outcomes) != 1 || outcomes[0].cfg == nil {
		t.Fatalf("%d reloads", len(outcomes))
	}
	if got := outcomes[0].cfg.Telemetry.LogLevel; got != want {
		t.Fatalf("log_level is %s, not %s", got, want)
	}
}

func TestWatcherSeesWritesAndRenames(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "config.yaml", "log_level: info\n")
	watching(t, path, func(_ chan<- struct{}, outcomes <-chan outcome) {
		if got := settled(outcomes); len(got) != 0 {
			t.Fatalf("%d reloads without a change", len(got))
		}
		write(t, dir, "config.yaml", "log_level: debug\n") // in place, as through a bind mount
		oneLevel(t, settled(outcomes), "debug")
		write(t, dir, "config.yaml.new", "log_level: warn\n") // as editors do
		if err := os.Rename(filepath.Join(dir, "config.yaml.new"), path); err != nil {
			t.Fatal(err)
		}
		oneLevel(t, settled(outcomes), "warn")
		// The same length and time of change, other content.
		info, _ := os.Stat(path)
		write(t, dir, "config.yaml", "log_level: info\n")
		if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		oneLevel(t, settled(outcomes), "info")
		// Touching is no change.
		if err := os.Chtimes(path, time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := settled(outcomes); len(got) != 0 {
			t.Fatalf("%d reloads after touching", len(got))
		}
	})
}

func TestWatcherSeesSymlinkSwaps(t *testing.T) {
	// As Kubernetes mounts a ConfigMap: config.yaml -> ..data/config.yaml, ..data -> a version.
	dir := t.TempDir()
	for version, level := range map[string]string{"v1": "info", "v2": "debug"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, version), "config.yaml", "log_level: "+level+"\n")
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("v1", "..data")
	link("..data/config.yaml", "config.yaml")
	watching(t, filepath.Join(dir, "config.yaml"), func(_ chan<- struct{}, outcomes <-chan outcome) {
		settled(outcomes)
		link("v2", "..data_tmp")
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		oneLevel(t, settled(outcomes), "debug")
	})
}

func TestWatcherSeesReferencedFiles(t *testing.T) {
	dir := material(t)
	path := write(t, dir, "config.yaml", strings.ReplaceAll("shared_secret_file: DIR/secret\ncertificates: [{cert: DIR/tls.crt, key: DIR/tls.key}]\n"+
		inRoute("tls_custom_ca_file: DIR/ca.crt\nkubernetes_service_account_token_file: DIR/token"), "DIR", dir))
	watching(t, path, func(_ chan<- struct{}, outcomes <-chan outcome) {
		settled(outcomes)
		for name, text := range map[string]string{"secret": b64("a different secret of 32 bytes!!"), "ca.crt": readFile(t, dir+"/other.crt"), "token": "new"} {
			write(t, dir, name, text)
			if got := settled(outcomes); len(got) != 1 || got[0].cfg == nil {
				t.Errorf("%s: %d reloads", name, len(got))
			}
		}
		// A certificate and its key change one after the other: one reload
		// when both are there, or a bad one before it.
		cert, key := newCertificate(t, "three.example.com")
		write(t, dir, "tls.crt", cert)
		write(t, dir, "tls.key", key)
		got := settled(outcomes)
		if len(got) == 0 || got[len(got)-1].cfg == nil || string(got[len(got)-1].cfg.Certs.Pairs[0].CertPEM) != cert {
			t.Errorf("the renewed certificate is not loaded: %d reloads", len(got))
		}
	})
}

func TestWatcherKeepsLookingAfterABadChange(t *testing.T) {
	dir := material(t)
	good := "shared_secret_file: " + dir + "/secret\nlog_level: debug\n"
	path := write(t, dir, "config.yaml", good)
	watching(t, path, func(_ chan<- struct{}, outcomes <-chan outcome) {
		settled(outcomes)
		bad := func(text, file string) {
			t.Helper()
			write(t, dir, file, text)
			if got := settled(outcomes); len(got) != 1 || got[0].cfg != nil || !Fatal(got[0].problems) {
				t.Fatalf("a bad change: %d reloads", len(got))
			}
		}
		bad("log_level: [\n", "config.yaml")
		bad("log_level: nonsense\n", "config.yaml")
		write(t, dir, "config.yaml", good)
		oneLevel(t, settled(outcomes), "debug")
		bad("short", "secret")
		write(t, dir, "secret", secret32)
		oneLevel(t, settled(outcomes), "debug")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if got := settled(outcomes); len(got) != 1 || got[0].cfg != nil {
			t.Fatalf("a removed file: %d reloads", len(got))
		}
		write(t, dir, "config.yaml", good)
		oneLevel(t, settled(outcomes), "debug")
		// What a bad document names is watched, too: its repair may be there.
		bad("shared_secret_file: "+dir+"/later\nlog_level: warn\n", "config.yaml")
		write(t, dir, "later", secret32)
		oneLevel(t, settled(outcomes), "warn")
	})
}

func TestHotReloadOffLeavesTheTrigger(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "config.yaml", "runtime_flags: {config_hot_reload: false}\n")
	watching(t, path, func(trigger chan<- struct{}, outcomes <-chan outcome) {
		write(t, dir, "config.yaml", "runtime_flags: {config_hot_reload: false}\nlog_level: debug\n")
		if got := settled(outcomes); len(got) != 0 {
			t.Fatalf("%d reloads although they are off", len(got))
		}
		trigger <- struct{}{}
		oneLevel(t, settled(outcomes), "debug")
		trigger <- struct{}{} // always, even without a change
		oneLevel(t, settled(outcomes), "debug")
	})
}
