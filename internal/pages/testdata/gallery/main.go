// Gallery serves every page with made-up contents, to look at while working on
// templates or stylesheet:
//
//	go run ./internal/pages/testdata/gallery -listen 127.0.0.1:8090
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"

	"postern/internal/pages"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8090", "address to serve on")
	plain := flag.Bool("plain", false, "without the sample branding")
	primary := flag.String("primary", "", "primary colour, #RRGGBB")
	flag.Parse()
	b := pages.SampleBranding()
	if *plain {
		b = pages.Branding{}
	}
	b.PrimaryColor = *primary
	r, err := pages.New(b)
	if err != nil {
		log.Fatal(err)
	}
	for _, note := range r.Notes() {
		log.Print(note)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.pomerium/", r.ServeAsset)
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		for _, s := range pages.Samples() {
			fmt.Fprintf(w, "<p><a href=%q>%s</a></p>\n", "/"+s.Name, s.Name)
		}
	})
	for _, s := range pages.Samples() {
		mux.HandleFunc("/"+s.Name, func(w http.ResponseWriter, req *http.Request) { s.Render(r, w, req) })
	}
	log.Printf("gallery at http://%s/", *listen)
	log.Fatal(http.ListenAndServe(*listen, mux))
}
