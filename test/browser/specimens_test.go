package browser

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"postern/internal/pages"
)

// TestSpecimens reads every page in every state worth looking at.
func TestSpecimens(t *testing.T) {
	r, err := pages.New(pages.SampleBranding())
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]pages.Specimen{}
	for _, s := range pages.Samples() {
		samples[s.Name] = s
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if s, ok := samples[strings.TrimPrefix(req.URL.Path, "/specimen/")]; ok {
			s.Render(r, w, req)
			return
		}
		r.ServeAsset(w, req)
	}))
	defer srv.Close()
	b := newTab(t, startBrowser(t, ""))
	for _, s := range pages.Samples() {
		b.open(srv.URL + "/specimen/" + s.Name)
		looks := []look{{"light", 1200}, {"dark", 320}}
		if testing.Verbose() {
			looks = everyLook
		}
		b.inspect("specimen-"+s.Name, looks...)
	}
	b.quiet()
}
