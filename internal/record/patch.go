package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// ReadWriter is what Modify and Patch need of a store.
type ReadWriter interface {
	Reader
	Writer
}

// modifyAttempts bounds the retries of Modify. Each lost race means that
// somebody else's write succeeded, so this many in a row is a fault.
const modifyAttempts = 64

// Modify reads a record, lets change edit a copy, and writes it back if
// nobody else wrote meanwhile; otherwise it begins again. change may thus be
// called several times. If it returns an error, nothing is written and that
// error is returned. A missing record is ErrNotFound.
func Modify(ctx context.Context, s ReadWriter, by Actor, typ, id string, change func(*Record) error) (*Record, error) {
	for attempt := range modifyAttempts {
		if attempt > 0 {
			// Wait a little, each for another while, or the same one of many
			// would win again and again.
			timer := time.NewTimer(rand.N(time.Millisecond << min(attempt, 5)))
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return nil, ctx.Err()
			}
		}
		old, err := s.Get(ctx, typ, id)
		if err != nil {
			return nil, err
		}
		next := old.Clone()
		if err := change(next); err != nil {
			return nil, err
		}
		next.Type, next.ID, next.Version = typ, id, old.Version
		rec, err := s.Update(ctx, by, next)
		if !errors.Is(err, ErrConflict) {
			return rec, err
		}
	}
	return nil, fmt.Errorf("%w: %d attempts to change a %s were all overtaken; try again", ErrConflict, modifyAttempts, typ)
}

// Patch sets only the fields that mask names to what they are in data, and
// leaves the others as somebody else may have written them; a field missing
// in data is removed. Mask paths are field names joined by dots, in
// protobuf's spelling (oauth_token.access_token) or JSON's (oauthToken).
func Patch(ctx context.Context, s ReadWriter, by Actor, typ, id string, mask []string, data json.RawMessage) (*Record, error) {
	if len(mask) == 0 {
		return nil, fmt.Errorf("%w: the field mask is empty; name the fields to change", ErrInvalid)
	}
	return Modify(ctx, s, by, typ, id, func(rec *Record) error {
		merged, err := MergeFields(rec.Data, data, mask)
		rec.Data = merged
		return err
	})
}

// MergeFields returns the JSON object dst with the fields named by mask taken
// from src. Everything else in dst is kept as it is.
func MergeFields(dst, src json.RawMessage, mask []string) (json.RawMessage, error) {
	d, err := object(dst)
	if err != nil {
		return nil, fmt.Errorf("%w: stored data: %v", ErrInvalid, err)
	}
	from, err := object(src)
	if err != nil {
		return nil, fmt.Errorf("%w: patch: %v", ErrInvalid, err)
	}
	for _, path := range mask {
		names := strings.Split(path, ".")
		for i, name := range names {
			if names[i] = jsonName(name); names[i] == "" {
				return nil, fmt.Errorf("%w: field mask path %.80q has an empty part", ErrInvalid, path)
			}
		}
		if err := merge(d, from, names); err != nil {
			return nil, fmt.Errorf("%w: field mask path %.80q: %v", ErrInvalid, path, err)
		}
	}
	return json.Marshal(d)
}

func merge(dst, src map[string]json.RawMessage, names []string) error {
	name := names[0]
	value, ok := src[name]
	if len(names) == 1 {
		if ok {
			dst[name] = value
		} else {
			delete(dst, name)
		}
		return nil
	}
	inSrc, err := object(value)
	if err != nil {
		return err
	}
	inDst, err := object(dst[name])
	if err != nil {
		return err
	}
	if err := merge(inDst, inSrc, names[1:]); err != nil {
		return err
	}
	if len(inDst) == 0 && !ok {
		delete(dst, name)
		return nil
	}
	dst[name], err = json.Marshal(inDst)
	return err
}

// object decodes one level, so that what lies deeper keeps its exact bytes.
func object(data json.RawMessage) (map[string]json.RawMessage, error) {
	m := make(map[string]json.RawMessage)
	if len(data) == 0 || string(data) == "null" {
		return m, nil
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("not a JSON object")
	}
	return m, nil
}

// jsonName turns a protobuf field name into its JSON name: id_token becomes
// idToken. JSON names stay as they are.
func jsonName(name string) string {
	if !strings.Contains(name, "_") {
		return name
	}
	var b strings.Builder
	up := false
	for _, c := range []byte(name) {
		switch {
		case c == '_':
			up = true
			continue
		case up && 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		}
		up = false
		b.WriteByte(c)
	}
	return b.String()
}
