package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/argon2"

	"postern/internal/session"
)

// argonParams are the costs of argon2id (RFC 9106): memory in KiB, passes and
// lanes.
type argonParams struct {
	memory  uint32
	passes  uint32
	threads uint8
}

// defaultArgon is the first choice of the OWASP password storage cheat sheet
// with a third pass: about 30 ms and 19 MiB on a small server.
var defaultArgon = argonParams{memory: 19 << 10, passes: 3, threads: 1}

// Bounds on what an operator may write: one attempt must not exhaust a server.
const (
	maxArgonMemory = 256 << 10 // KiB
	maxArgonPasses = 16
)

// HashPassword gives the PHC string ($argon2id$v=19$m=..,t=..,p=..$salt$hash)
// that local_users_file and account records hold.
func HashPassword(password string) (session.Token, error) {
	if len(password) < 8 || len(password) > maxPassword {
		return "", fmt.Errorf("the password has %d bytes: choose 8 to %d", len(password), maxPassword)
	}
	h, err := hashWith(password, defaultArgon)
	return session.Token(h), err
}

func hashWith(password string, p argonParams) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails (crypto/rand)
	sum := argon2.IDKey([]byte(password), salt, p.passes, p.memory, p.threads, 32)
	return formatPHC(p, salt, sum), nil
}

// unmatchable is a hash of no known password that costs as much to compare: a
// random sum, so that making it costs nothing.
func unmatchable(p argonParams) string {
	salt, sum := make([]byte, 16), make([]byte, 32)
	_, _ = rand.Read(salt)
	_, _ = rand.Read(sum)
	return formatPHC(p, salt, sum)
}

func formatPHC(p argonParams, salt, sum []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", p.memory, p.passes, p.threads, b64.EncodeToString(salt), b64.EncodeToString(sum))
}

type phc struct {
	params    argonParams
	salt, sum []byte
}

var errPHC = errors.New("is not an argon2id hash; make one with postern users")

func parsePHC(s string) (phc, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return phc{}, errPHC
	}
	var out phc
	for i, kv := range strings.Split(parts[3], ",") {
		name, value, _ := strings.Cut(kv, "=")
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n == 0 || i > 2 || name != []string{"m", "t", "p"}[i] {
			return phc{}, errPHC
		}
		switch name {
		case "m":
			out.params.memory = uint32(n)
		case "t":
			out.params.passes = uint32(n)
		case "p":
			if n > 16 {
				return phc{}, errPHC
			}
			out.params.threads = uint8(n)
		}
	}
	p := out.params
	if p.threads == 0 || p.memory < 8*uint32(p.threads) || p.memory > maxArgonMemory || p.passes > maxArgonPasses {
		return phc{}, errors.New("asks for more memory or passes than allowed; make one with postern users")
	}
	var err1, err2 error
	out.salt, err1 = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	out.sum, err2 = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	if err1 != nil || err2 != nil || len(out.salt) < 8 || len(out.salt) > 64 || len(out.sum) < 16 || len(out.sum) > 64 {
		return phc{}, errPHC
	}
	return out, nil
}

func matches(hash, password string) bool {
	h, err := parsePHC(hash)
	if err != nil {
		return false
	}
	sum := argon2.IDKey([]byte(password), h.salt, h.params.passes, h.params.memory, h.params.threads, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}

// hasher lets no more hashes run at once than it has slots; a few more may
// wait a moment, and the rest are sent away (decision 15).
type hasher struct {
	slots   chan struct{}
	waiting atomic.Int32
	patient int32
}

const hashPatience = time.Second

func newHasher(slots int) *hasher {
	return &hasher{slots: make(chan struct{}, slots), patient: int32(4 * slots)}
}

func (h *hasher) acquire(ctx context.Context) (release func(), err error) {
	release = func() { <-h.slots }
	select {
	case h.slots <- struct{}{}:
		return release, nil
	default:
	}
	if h.waiting.Add(1) > h.patient {
		h.waiting.Add(-1)
		return nil, &Throttled{RetryAfter: hashPatience, Busy: true}
	}
	defer h.waiting.Add(-1)
	timer := time.NewTimer(hashPatience)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return release, nil
	case <-timer.C:
		return nil, &Throttled{RetryAfter: hashPatience, Busy: true}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
