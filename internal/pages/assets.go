package pages

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

//go:embed assets/*
var assetFiles embed.FS

// assetRoot is where assets live on every host (wire-contract.md §2).
const assetRoot = "/.pomerium/"

// asset is one file as it is sent.
type asset struct {
	contentType, etag string
	body              []byte
	hashed            bool // the name holds the content's hash: never changes
}

var assetTypes = map[string]string{
	".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
	".svg": "image/svg+xml", ".ico": "image/x-icon", ".png": "image/png",
}

// buildAssets lists every path under which something is served and fills in
// the hashed paths that pages link to.
func buildAssets(b *brandView, brandStyle string) map[string]asset {
	out := map[string]asset{}
	add := func(name string, body []byte) (hashedPath string) {
		stem, ext, _ := strings.Cut(name, ".")
		sum := sha256.Sum256(body)
		hash := hex.EncodeToString(sum[:8])
		a := asset{contentType: assetTypes["."+ext], etag: `"` + hash + `"`, body: body}
		out[assetRoot+name] = a
		a.hashed = true
		hashedPath = assetRoot + stem + "-" + hash + "." + ext
		out[hashedPath] = a
		return hashedPath
	}
	for _, name := range []string{"index.css", "index.js", "favicon.svg", "favicon.ico", "apple-touch-icon.png"} {
		body, err := assetFiles.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // the file list above is embedded
		}
		path := add(name, body)
		switch name {
		case "index.css":
			b.Style = path
		case "index.js":
			b.Script = path
		}
	}
	if brandStyle != "" {
		b.BrandStyle = add("brand.css", []byte(brandStyle))
	}
	return out
}

// AssetPaths lists the exact paths that ServeAsset answers, sorted: the
// well-known names and, for those that pages link to, names that hold the
// content's hash. They need no sign-in.
func (r *Renderer) AssetPaths() []string {
	paths := make([]string, 0, len(r.assets))
	for p := range r.assets {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths
}

// IsAsset says whether ServeAsset has something at path.
func (r *Renderer) IsAsset(path string) bool {
	_, ok := r.find(path)
	return ok
}

// find looks a path up. A hash that is not ours (a page from a replica with
// another version or branding) gets the current file, uncached, so that
// nobody sees a bare page while a change spreads.
func (r *Renderer) find(path string) (asset, bool) {
	if a, ok := r.assets[path]; ok {
		return a, true
	}
	for _, stem := range [...]string{"index-", "brand-"} {
		rest, ok := strings.CutPrefix(path, assetRoot+stem)
		if !ok {
			continue
		}
		hash, ext, _ := strings.Cut(rest, ".")
		if len(hash) != 16 || strings.Trim(hash, "0123456789abcdef") != "" {
			continue
		}
		a, ok := r.assets[assetRoot+strings.TrimSuffix(stem, "-")+"."+ext]
		return a, ok
	}
	return asset{}, false
}

// ServeAsset answers for stylesheet, script and icons. Hashed names may be
// kept for a year; the well-known names are checked again after five minutes.
func (r *Renderer) ServeAsset(w http.ResponseWriter, req *http.Request) {
	a, ok := r.find(req.URL.Path)
	if !ok {
		send(w, req, http.StatusNotFound, "text/plain; charset=utf-8", []byte("There is nothing here.\n"))
		return
	}
	h := w.Header()
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		send(w, req, http.StatusMethodNotAllowed, "text/plain; charset=utf-8", []byte("Use GET.\n"))
		return
	}
	h.Set("ETag", a.etag)
	h.Set("X-Content-Type-Options", "nosniff")
	// An SVG opened by itself is a document: let it do nothing.
	h.Set("Content-Security-Policy", "default-src 'none'")
	switch _, exact := r.assets[req.URL.Path]; {
	case a.hashed:
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	case exact:
		h.Set("Cache-Control", "public, max-age=300")
	default:
		h.Set("Cache-Control", "no-store")
	}
	if strings.Contains(req.Header.Get("If-None-Match"), a.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", a.contentType)
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	w.WriteHeader(http.StatusOK)
	if req.Method != http.MethodHead {
		_, _ = io.Copy(w, bytes.NewReader(a.body))
	}
}
