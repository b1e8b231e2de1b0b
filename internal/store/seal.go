package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"postern/internal/record"
	"postern/internal/store/engine"
)

// names hides ids and index values, always in the same way, so that they can
// be looked up by their hidden form.
//
// Ids come back out of lists and watches, so they are encrypted: a synthetic
// IV (the construction of RFC 5297, with HMAC-SHA-256 as the PRF and
// AES-256-CTR) is deterministic and authenticated. A session id is the heart
// of a handle and an id may be an e-mail address; hiding them costs about two
// microseconds. Index values (issuer and sid, user) are only compared, so
// they become a HMAC. Both are bound to the type. What the disk still shows:
// types, times, versions, sizes, names of indexes, and which records share an
// index value.
type names struct {
	mac, index []byte
	block      cipher.Block
}

const sivBytes = 16

func newNames(key []byte) (*names, error) {
	sub := func(purpose string) []byte {
		k, err := hkdf.Key(sha256.New, key, nil, "postern/1/record-names/"+purpose, 32)
		if err != nil {
			panic(err) // only for absurd lengths
		}
		return k
	}
	block, err := aes.NewCipher(sub("encrypt"))
	if err != nil {
		return nil, err
	}
	return &names{mac: sub("mac"), index: sub("index"), block: block}, nil
}

// tag is a HMAC over parts, each preceded by its length.
func tag(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	return h.Sum(nil)[:sivBytes]
}

func (n *names) hideID(typ, id string) string {
	out := append(tag(n.mac, typ, id), id...)
	cipher.NewCTR(n.block, out[:sivBytes]).XORKeyStream(out[sivBytes:], out[sivBytes:])
	return string(out)
}

func (n *names) showID(typ, hidden string) (string, error) {
	if len(hidden) <= sivBytes {
		return "", errSeal
	}
	iv, id := []byte(hidden[:sivBytes]), []byte(hidden[sivBytes:])
	cipher.NewCTR(n.block, iv).XORKeyStream(id, id)
	if !hmac.Equal(iv, tag(n.mac, typ, string(id))) {
		return "", errSeal
	}
	return string(id), nil
}

func (n *names) hideValue(typ, index, value string) string {
	return string(tag(n.index, typ, index, value))
}

// A sealed record is: format byte, id of the data key (4 bytes), nonce (24),
// ciphertext. Inside: namespace, index values, data. The associated data are
// key id, type and id, so that no record can stand in for another.
const sealFormat = 1

func sealAD(key [4]byte, typ, id string) []byte {
	ad := append(make([]byte, 0, len(typ)+len(id)+24), key[:]...)
	return engine.AppendString(engine.AppendString(ad, typ), id)
}

// seal turns a record into what the backend keeps.
func (k *keys) seal(rec *record.Record) *record.Record {
	out := &record.Record{Type: rec.Type, ID: k.names.hideID(rec.Type, rec.ID), Version: rec.Version, DeletedAt: rec.DeletedAt}
	if rec.Deleted() {
		return out
	}
	plain := engine.AppendBody(make([]byte, 0, len(rec.Data)+256), rec)
	for name, value := range rec.Index {
		if out.Index == nil {
			out.Index = make(map[string]string, len(rec.Index))
		}
		out.Index[name] = k.names.hideValue(rec.Type, name, value)
	}
	head := append([]byte{sealFormat}, k.current[:]...)
	out.Data = sealWith(k.data[k.current], head, plain, sealAD(k.current, rec.Type, rec.ID))
	return out
}

// errUnknownKey: the record may be sealed with a key made by another node.
var errUnknownKey = errors.New("it is sealed with an unknown key")

// open turns what the backend keeps back into a record. id is its id in clear.
func (k *keys) open(kept *record.Record, id string) (*record.Record, error) {
	out := &record.Record{Type: kept.Type, ID: id, Version: kept.Version, ModifiedAt: kept.ModifiedAt, DeletedAt: kept.DeletedAt}
	if kept.Deleted() {
		return out, nil
	}
	if len(kept.Data) < 5 || kept.Data[0] != sealFormat {
		return nil, errSeal
	}
	key := [4]byte(kept.Data[1:5])
	aead := k.data[key]
	if aead == nil {
		return nil, errUnknownKey
	}
	b, err := openWith(aead, kept.Data[5:], sealAD(key, kept.Type, id))
	if err != nil {
		return nil, err
	}
	if !engine.ReadBody(b, out) {
		return nil, errSeal
	}
	return out, nil
}

// open opens a kept record, whose id may be known ("" if not).
func (r *ring) open(ctx context.Context, kept *record.Record, id string) (*record.Record, error) {
	k := r.keys.Load()
	if id == "" {
		var err error
		if id, err = k.names.showID(kept.Type, kept.ID); err != nil {
			return nil, unopened(kept.Type, err)
		}
	}
	rec, err := k.open(kept, id)
	if errors.Is(err, errUnknownKey) && r.reload(ctx) == nil {
		rec, err = r.keys.Load().open(kept, id)
	}
	if err != nil {
		return &record.Record{Type: kept.Type, ID: id, Version: kept.Version, ModifiedAt: kept.ModifiedAt}, unopened(kept.Type, err)
	}
	return rec, nil
}

func unopened(typ string, err error) error {
	return fmt.Errorf("%w: a kept %s cannot be opened (%v); it was altered or damaged: restore the store from a backup, or delete the record", record.ErrUnavailable, typ, err)
}
