package keys

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/server/servertest"
)

// Keys of records (§2.8).
var keepingExamples = []example{
	{keys: "databroker_storage_type", config: `databroker_storage_type: file # shown` + signedInRoute(), shows: func(w *world) error {
		// A session outlives the process.
		a, _, err := w.signedIn()
		if err != nil {
			return err
		}
		if err := w.Stop(); err != nil {
			return err
		}
		next := servertest.Start(w.t, w.text, servertest.Options{Dir: w.Dir, Vars: map[string]string{"APP": w.App.URL}})
		w.Main = next.Main
		page, err := a.Request("GET", user)
		if err != nil {
			return err
		}
		return errors.Join(is(page.StatusCode, 200), next.Stop())
	}},
	{keys: "max_stale", config: `max_stale: 1ns # shown`, shows: func(w *world) error {
		// Every copy is older than that: not ready to decide.
		page, err := fetch("http://"+w.Program.Status().Listeners["health"]+"/readyz", nil)
		return errors.Join(err, is(page.status, 503))
	}},
	{keys: "databroker_storage_connection_string", config: `
databroker_storage_type: file
databroker_storage_connection_string: file://@DIR@/there # shown`, shows: keptThere},
	{keys: "databroker_storage_connection_string_file", config: `
databroker_storage_type: file
databroker_storage_connection_string_file: @DIR@/dsn # shown`, shows: keptThere,
		with: func(t *testing.T, o *servertest.Options) { o.Files["dsn"] = "file://@DIR@/there\n" }},
}

func keptThere(w *world) error {
	entries, err := os.ReadDir(filepath.Join(w.Dir, "there"))
	if err == nil && len(entries) == 0 {
		err = errors.New("nothing is kept there")
	}
	return err
}
