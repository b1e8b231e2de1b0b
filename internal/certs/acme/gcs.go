package acme

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// gcs is a bucket of Google Cloud Storage, by its JSON API. Credentials are
// the application default ones: GOOGLE_APPLICATION_CREDENTIALS, gcloud's, or
// the machine's. STORAGE_EMULATOR_HOST names another server without
// credentials, as for Google's own clients.
type gcs struct {
	base   string // scheme and host
	bucket string

	once   sync.Once
	open   bool // no credentials
	client *http.Client
	err    error
}

const gcsScope = "https://www.googleapis.com/auth/devstorage.read_write"

func newGCS(u storageURL) (*gcs, error) {
	g := &gcs{base: "https://storage.googleapis.com", bucket: u.bucket}
	if host := os.Getenv("STORAGE_EMULATOR_HOST"); host != "" {
		if !strings.Contains(host, "://") {
			host = "http://" + host
		}
		g.base, g.open = strings.TrimSuffix(host, "/"), true
	}
	return g, nil
}

// http gives the client; the credentials are looked for once.
func (g *gcs) http(ctx context.Context) (*http.Client, error) {
	g.once.Do(func() {
		plain := &http.Client{Timeout: time.Minute}
		if g.open {
			g.client = plain
			return
		}
		ctx := context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, plain)
		source, err := google.DefaultTokenSource(ctx, gcsScope)
		if err != nil {
			g.err = fmt.Errorf("there are no Google credentials: %w; set GOOGLE_APPLICATION_CREDENTIALS", err)
			return
		}
		g.client = &http.Client{Timeout: time.Minute, Transport: &oauth2.Transport{Source: source}}
	})
	return g.client, g.err
}

type gcsObject struct {
	Name       string    `json:"name"`
	Generation string    `json:"generation"`
	Updated    time.Time `json:"updated"`
}

func (g *gcs) do(ctx context.Context, method, target string, body []byte) (*http.Response, []byte, error) {
	client, err := g.http(ctx)
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, g.base+target, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxObject))
	switch {
	case err != nil:
		return res, nil, err
	case res.StatusCode == http.StatusNotFound:
		return res, b, fs.ErrNotExist
	case res.StatusCode == http.StatusPreconditionFailed:
		return res, b, errTaken
	case res.StatusCode/100 != 2:
		return res, b, fmt.Errorf("the bucket store answers %s for the bucket %s: %.200s", res.Status, g.bucket, b)
	}
	return res, b, nil
}

func (g *gcs) object(key string) string {
	return "/storage/v1/b/" + url.PathEscape(g.bucket) + "/o/" + url.PathEscape(key)
}

func (g *gcs) get(ctx context.Context, key string) ([]byte, objectInfo, error) {
	res, b, err := g.do(ctx, "GET", g.object(key)+"?alt=media", nil)
	if err != nil {
		return nil, objectInfo{}, fmt.Errorf("%s: %w", key, err)
	}
	at, _ := http.ParseTime(res.Header.Get("Last-Modified"))
	return b, objectInfo{res.Header.Get("X-Goog-Generation"), at}, nil
}

func (g *gcs) put(ctx context.Context, key string, value []byte, over string) (string, error) {
	q := url.Values{"uploadType": {"media"}, "name": {key}}
	switch over {
	case anyTag:
	case noTag:
		q.Set("ifGenerationMatch", "0")
	default:
		q.Set("ifGenerationMatch", over)
	}
	if value == nil {
		value = []byte{}
	}
	_, b, err := g.do(ctx, "POST", "/upload/storage/v1/b/"+url.PathEscape(g.bucket)+"/o?"+q.Encode(), value)
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	var o gcsObject
	err = json.Unmarshal(b, &o)
	return o.Generation, err
}

func (g *gcs) remove(ctx context.Context, key string) error {
	_, _, err := g.do(ctx, "DELETE", g.object(key), nil)
	return err
}

func (g *gcs) list(ctx context.Context, prefix string) ([]string, error) {
	var out []string
	for token := ""; ; {
		q := url.Values{"prefix": {prefix}, "pageToken": {token}, "fields": {"items(name),nextPageToken"}}
		_, b, err := g.do(ctx, "GET", "/storage/v1/b/"+url.PathEscape(g.bucket)+"/o?"+q.Encode(), nil)
		if err != nil {
			return nil, err
		}
		var page struct {
			Items         []gcsObject `json:"items"`
			NextPageToken string      `json:"nextPageToken"`
		}
		if err := json.Unmarshal(b, &page); err != nil {
			return nil, err
		}
		for _, o := range page.Items {
			out = append(out, o.Name)
		}
		if token = page.NextPageToken; token == "" {
			return out, nil
		}
	}
}
