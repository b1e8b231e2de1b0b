package store

import (
	"context"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/internal/record"
)

// Encryption at rest.
//
// Records are sealed with random data keys. Data keys are kept in one record
// (the keyring), each wrapped by a key derived from shared_secret, with the
// id of the wrapping key in front. So changing shared_secret rewraps a few
// keys instead of all records: when a keyring is opened by a previous secret,
// its keys are wrapped anew by the current one, and a new data key is made
// for what is written from then on, which the previous secret never wrapped.
//
// One more random key, the names key, hides record ids and index values. It
// must stay the same as long as the store lives, since ids are looked up by
// their hidden form.
const (
	infoWrap   = "postern/1/record-encryption"
	infoWrapID = "postern/1/record-encryption/id"
	ringID     = "keyring"
	ringFormat = 1
	minSecret  = 16

	useData  = "data"
	useNames = "names"
)

// wrapper is what a shared secret becomes.
type wrapper struct {
	id   string
	aead cipher.AEAD
}

func newWrapper(secret []byte) (wrapper, error) {
	if len(secret) < minSecret {
		return wrapper{}, fmt.Errorf("the shared secret has %d bytes; use at least %d (32 random bytes: head -c32 /dev/urandom | base64)", len(secret), minSecret)
	}
	key, err := hkdf.Key(sha256.New, secret, nil, infoWrap, chacha20poly1305.KeySize)
	if err != nil {
		return wrapper{}, err
	}
	id, err := hkdf.Key(sha256.New, secret, nil, infoWrapID, 4)
	if err != nil {
		return wrapper{}, err
	}
	aead, err := chacha20poly1305.NewX(key)
	return wrapper{id: hex.EncodeToString(id), aead: aead}, err
}

// ringRecord is the keyring as kept.
type ringRecord struct {
	Format int          `json:"format"`
	Keys   []wrappedKey `json:"keys"`
}

type wrappedKey struct {
	ID      string    `json:"id"`
	Use     string    `json:"use"`
	By      string    `json:"by"`
	Sealed  []byte    `json:"sealed"`
	Created time.Time `json:"created"`
}

func (w wrapper) ad(k wrappedKey) []byte {
	return []byte("postern/1/keyring\x00" + k.Use + "\x00" + k.ID + "\x00" + w.id)
}

func (w wrapper) wrap(k *wrappedKey, key []byte) {
	k.By = w.id
	k.Sealed = sealWith(w.aead, nil, key, w.ad(*k))
}

func sealWith(aead cipher.AEAD, dst, plain, ad []byte) []byte {
	var nonce [chacha20poly1305.NonceSizeX]byte
	rand.Read(nonce[:])
	return aead.Seal(append(dst, nonce[:]...), nonce[:], plain, ad)
}

var errSeal = errors.New("the seal does not fit")

func openWith(aead cipher.AEAD, sealed, ad []byte) ([]byte, error) {
	if len(sealed) < chacha20poly1305.NonceSizeX+chacha20poly1305.Overhead {
		return nil, errSeal
	}
	plain, err := aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], ad)
	if err != nil {
		return nil, errSeal
	}
	return plain, nil
}

// keys is an opened keyring; immutable.
type keys struct {
	data    map[[4]byte]cipher.AEAD
	current [4]byte
	names   *names
}

// ring holds the opened keyring and reads it again when a record was sealed
// with a key that another node has made meanwhile.
type ring struct {
	s     record.Store
	wraps []wrapper
	keys  atomic.Pointer[keys]

	mu     sync.Mutex
	loaded time.Time
}

// reloadEvery bounds how often a record with an unknown key makes us read the
// keyring again.
const reloadEvery = time.Second

// openRing opens the store's keyring, making it in an empty store and
// rewrapping it where a previous secret opened it.
func openRing(ctx context.Context, s record.Store, secrets [][]byte) (*ring, error) {
	r := &ring{s: s}
	for _, secret := range secrets {
		w, err := newWrapper(secret)
		if err != nil {
			return nil, err
		}
		r.wraps = append(r.wraps, w)
	}
	if len(r.wraps) == 0 {
		return nil, errors.New("records are kept sealed, which needs a secret; configure shared_secret")
	}
	// Another node may do the same at the same time; whoever loses the
	// compare-and-set reads what the other wrote.
	for range 8 {
		err := r.load(ctx, true)
		if err == nil || !errors.Is(err, record.ErrConflict) {
			return r, err
		}
	}
	return nil, fmt.Errorf("%w: the keyring keeps being changed by others; start again", record.ErrUnavailable)
}

// load reads the keyring; if settle is set it also makes and rewraps.
func (r *ring) load(ctx context.Context, settle bool) error {
	rec, err := r.s.Get(ctx, record.KeyringType, ringID)
	var doc ringRecord
	switch {
	case errors.Is(err, record.ErrNotFound):
		types, err := r.s.Types(ctx)
		if err != nil {
			return err
		}
		if len(types) > 0 || !settle {
			return fmt.Errorf("%w: the records are there but the keys that open them are not; restore the store from a backup", record.ErrUnavailable)
		}
		rec = &record.Record{Type: record.KeyringType, ID: ringID}
		doc = ringRecord{Format: ringFormat}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(rec.Data, &doc); err != nil || doc.Format < 1 || len(doc.Keys) == 0 {
			return fmt.Errorf("%w: the keyring is unreadable; restore the store from a backup", record.ErrUnavailable)
		}
		if doc.Format > ringFormat {
			return fmt.Errorf("%w: the keyring has format %d, this version of Postern knows up to %d; run the newer version", record.ErrUnavailable, doc.Format, ringFormat)
		}
	}
	opened, stale, err := r.unwrap(&doc)
	if err != nil {
		return err
	}
	if settle && (stale || len(doc.Keys) == 0) {
		if len(doc.Keys) == 0 {
			r.mint(&doc, useNames)
		}
		r.mint(&doc, useData)
		next := rec.Clone()
		if next.Data, err = json.Marshal(doc); err != nil {
			return err
		}
		if _, err := r.s.Update(ctx, record.System("keyring"), next); err != nil {
			return err
		}
		if opened, _, err = r.unwrap(&doc); err != nil {
			return err
		}
	}
	r.keys.Store(opened)
	return nil
}

// mint adds a random key, wrapped by the current secret.
func (r *ring) mint(doc *ringRecord, use string) {
	var id [4]byte
	for {
		rand.Read(id[:])
		if !slices.ContainsFunc(doc.Keys, func(k wrappedKey) bool { return k.ID == hex.EncodeToString(id[:]) }) {
			break
		}
	}
	key := make([]byte, chacha20poly1305.KeySize)
	rand.Read(key)
	k := wrappedKey{ID: hex.EncodeToString(id[:]), Use: use, Created: time.Now().UTC().Truncate(time.Second)}
	r.wraps[0].wrap(&k, key)
	doc.Keys = append(doc.Keys, k)
}

// unwrap opens all keys of doc. If any needed a previous secret, it wraps them
// by the current one within doc and says stale.
func (r *ring) unwrap(doc *ringRecord) (_ *keys, stale bool, err error) {
	out := &keys{data: make(map[[4]byte]cipher.AEAD)}
	for i := range doc.Keys {
		k := &doc.Keys[i]
		at := slices.IndexFunc(r.wraps, func(w wrapper) bool { return w.id == k.By })
		if at < 0 {
			return nil, false, fmt.Errorf("the records are sealed with another shared_secret (its id is %.8s, the configured ones are %s); put the former secret into shared_secret_previous, or configure it again",
				k.By, r.ids())
		}
		w := r.wraps[at]
		key, err := openWith(w.aead, k.Sealed, w.ad(*k))
		if err != nil || len(key) != chacha20poly1305.KeySize {
			return nil, false, fmt.Errorf("%w: key %.8s of the keyring was altered; restore the store from a backup", record.ErrUnavailable, k.ID)
		}
		var id [4]byte
		if n, err := hex.Decode(id[:], []byte(k.ID[:min(len(k.ID), 8)])); err != nil || n != len(id) || len(k.ID) != 8 {
			return nil, false, fmt.Errorf("%w: the keyring is unreadable; restore the store from a backup", record.ErrUnavailable)
		}
		switch k.Use {
		case useNames:
			if out.names, err = newNames(key); err != nil {
				return nil, false, err
			}
		case useData:
			aead, err := chacha20poly1305.NewX(key)
			if err != nil {
				return nil, false, err
			}
			out.data[id], out.current = aead, id // the last one seals
		default:
			return nil, false, fmt.Errorf("%w: the keyring has a key for %.20q, unknown to this version of Postern; run the newer version", record.ErrUnavailable, k.Use)
		}
		if at != 0 {
			r.wraps[0].wrap(k, key)
			stale = true
		}
	}
	if len(doc.Keys) > 0 && (out.names == nil || len(out.data) == 0) {
		return nil, false, fmt.Errorf("%w: the keyring is incomplete; restore the store from a backup", record.ErrUnavailable)
	}
	return out, stale, nil
}

func (r *ring) ids() string {
	s := ""
	for i, w := range r.wraps {
		if i > 0 {
			s += ", "
		}
		s += w.id
	}
	return s
}

// reload reads the keyring again, at most once per reloadEvery.
func (r *ring) reload(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.loaded) < reloadEvery {
		return errSeal
	}
	r.loaded = time.Now()
	return r.load(ctx, false)
}
