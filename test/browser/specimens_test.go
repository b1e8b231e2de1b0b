package browser

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
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
		if req.URL.Path == "/guilty" {
			w.Header().Set("Content-Security-Policy", "default-src 'none'")
			io.WriteString(w, "<!doctype html><title>Guilty</title><script>1</script>")
			return
		}
		r.ServeAsset(w, req)
	}))
	defer srv.Close()
	b := newTab(t, startBrowser(t, ""))
	// A page that violates its policy is heard, or silence would mean nothing.
	b.open(srv.URL + "/guilty")
	if len(b.complained()) == 0 {
		t.Fatal("a violated content security policy went unnoticed")
	}
	for _, s := range pages.Samples() {
		b.open(srv.URL + "/specimen/" + s.Name)
		looks := []look{{"light", 1200}, {"dark", 320}}
		if os.Getenv("POSTERN_SCREENSHOTS") != "" {
			looks = everyLook
		}
		b.inspect("specimen-"+s.Name, looks...)
	}
	b.quiet()
}
