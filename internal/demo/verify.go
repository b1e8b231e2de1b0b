package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// assertionHeader carries the signed statement of who is there.
const assertionHeader = "X-Pomerium-Jwt-Assertion"

// claims are what the sample application reads from the assertion
// (wire-contract.md §4.2).
type claims struct {
	Issuer   string   `json:"iss"`
	Audience string   `json:"aud"`
	Subject  string   `json:"sub"`
	Email    string   `json:"email"`
	Name     string   `json:"name"`
	Groups   []string `json:"groups"`
	IssuedAt int64    `json:"iat"`
	Expires  int64    `json:"exp"`
}

// check is one step of the verification, as the page shows it: a sentence
// with something literal in it.
type check struct {
	title               string
	before, code, after string
	ok                  bool
}

// verifier checks assertions the way any application would: by the key set
// that Postern publishes, fetched over the network and kept for a minute.
type verifier struct {
	client *http.Client
	jwks   string

	mu      sync.Mutex
	keys    jose.JSONWebKeySet
	fetched time.Time
}

func (v *verifier) keySet(ctx context.Context) (jose.JSONWebKeySet, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if time.Since(v.fetched) < time.Minute {
		return v.keys, nil
	}
	req, err := http.NewRequestWithContext(ctx, "GET", v.jwks, nil)
	if err != nil {
		return v.keys, err
	}
	res, err := v.client.Do(req)
	if err != nil {
		return v.keys, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return v.keys, fmt.Errorf("%s answered %s", v.jwks, res.Status)
	}
	var keys jose.JSONWebKeySet
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&keys); err != nil {
		return v.keys, err
	}
	v.keys, v.fetched = keys, time.Now()
	return keys, nil
}

// verify runs the four checks that the sample page shows. Claims count only
// if all of them hold.
func (v *verifier) verify(r *http.Request) (claims, []check, bool) {
	var c claims
	var out []check
	add := func(title, before, code, after string, ok bool) bool {
		out = append(out, check{title, before, code, after, ok})
		return ok
	}
	token := r.Header.Get(assertionHeader)
	if !add("The signed note arrived", "In the header ", assertionHeader, ".", token != "") {
		return c, out, false
	}
	algorithm, id, err := v.signature(r.Context(), token, &c)
	if err != nil {
		add("The signature is right", err.Error()+".", "", "", false)
		return claims{}, out, false
	}
	add("The signature is right", algorithm+", key ", id, " from the published key set.", true)
	host := r.Header.Get("X-Forwarded-Host")
	if host == "" {
		host = r.Host
	}
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ok := add("It is meant for this address", "It names ", c.Audience, ".", c.Audience == host)
	now := time.Now()
	issued, ends := time.Unix(c.IssuedAt, 0), time.Unix(c.Expires, 0)
	fresh := now.Before(ends) && now.After(issued.Add(-time.Minute))
	age := max(now.Sub(issued), 0).Round(time.Second)
	ok = add("It is fresh", fmt.Sprintf("Issued %s ago, good for %s.", words(age), words(ends.Sub(now))), "", "", fresh) && ok
	if !ok {
		return claims{}, out, false
	}
	return c, out, true
}

// words says a short time as people do.
func words(d time.Duration) string {
	n := int(max(d, 0).Round(time.Second) / time.Second)
	seconds := fmt.Sprintf("%d seconds", n%60)
	if n%60 == 1 {
		seconds = "1 second"
	}
	switch {
	case n < 60:
		return seconds
	case n%60 == 0:
		return fmt.Sprintf("%d min", n/60)
	}
	return fmt.Sprintf("%d min %d s", n/60, n%60)
}

func (v *verifier) signature(ctx context.Context, token string, c *claims) (algorithm, id string, err error) {
	sig, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256, jose.RS256})
	if err != nil || len(sig.Signatures) != 1 {
		return "", "", errors.New("the note is not a signed token")
	}
	keys, err := v.keySet(ctx)
	if err != nil {
		return "", "", fmt.Errorf("the key set could not be read: %w", err)
	}
	head := sig.Signatures[0].Header
	found := keys.Key(head.KeyID)
	if len(found) != 1 {
		return "", "", errors.New("no published key has the id that the note names")
	}
	payload, err := sig.Verify(found[0])
	if err != nil {
		return "", "", errors.New("the signature does not belong to the note")
	}
	if err := json.Unmarshal(payload, c); err != nil {
		return "", "", errors.New("the note holds something else than claims")
	}
	id = strings.ToLower(head.KeyID)
	if len(id) > 12 {
		id = id[:4] + "\u2026" + id[len(id)-4:]
	}
	return head.Algorithm, id, nil
}
