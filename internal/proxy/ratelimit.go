package proxy

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"
)

// Limiter counts requests against rate limits, in the memory of this process.
// Make one for the life of the process: a limit that a change of configuration
// leaves alone goes on where it was. It is safe for concurrent use.
//
// Each counter is one point in time: when its bucket will be full again (the
// generic cell rate algorithm, ITU-T I.371). A counter whose time has passed
// is as good as none, so nothing has to be swept.
//
// Memory is bounded, and strangers can neither take more of it nor be rid of a
// limit by crowding the table: see ledger.
type Limiter struct {
	seed maphash.Seed
	base time.Time

	mu      sync.Mutex
	ledgers [2][len(ledgerClasses)]atomic.Pointer[ledger]
}

// NewLimiter makes a Limiter without counters. Tables are made with the first
// limit that needs them.
func NewLimiter() *Limiter { return &Limiter{seed: maphash.MakeSeed(), base: time.Now()} }

// now is the age of the limiter in nanoseconds, and at least 1.
func (l *Limiter) now() int64 { return max(1, int64(time.Since(l.base))) }

// Crowded is how often a counter had to make room for another while it still
// counted. Above zero, more clients are active than the tables hold.
func (l *Limiter) Crowded() uint64 {
	var n uint64
	for i := range l.ledgers {
		for j := range l.ledgers[i] {
			if t := l.ledgers[i][j].Load(); t != nil {
				n += t.crowded.Load()
			}
		}
	}
	return n
}

// Counters of people and routes stand apart from those of addresses, of which
// a stranger can have as many as they like.
const (
	ofPeople = iota
	ofAddresses
)

// ledgerClasses are the upper bounds, in nanoseconds, of the time in which the
// bucket of a limit fills: counters of seconds do not compete with counters of
// days.
var ledgerClasses = [...]int64{int64(10 * time.Second), int64(10 * time.Minute), 1<<63 - 1}

// ledger finds the table for a kind of key and a limit that fills in depth
// nanoseconds.
func (l *Limiter) ledger(kind int, depth int64) *ledger {
	class := 0
	for depth > ledgerClasses[class] {
		class++
	}
	at := &l.ledgers[kind][class]
	if t := at.Load(); t != nil {
		return t
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.Load() == nil {
		at.Store(newLedger(ledgerSets))
	}
	return at.Load()
}

// subject is who a request counts for.
type subject struct {
	kind int // ofPeople or ofAddresses
	// is says what name is: a person, a service account, or nothing.
	is      byte
	name    string
	address [16]byte
}

// key hashes limit and subject with the secret of this process, so that nobody
// can aim at the counter of somebody else.
func (l *Limiter) key(limit uint64, s *subject) uint64 {
	var h maphash.Hash
	h.SetSeed(l.seed)
	var b [8]byte
	for i := range b {
		b[i] = byte(limit >> (8 * i))
	}
	_, _ = h.Write(b[:])
	if s.kind == ofAddresses {
		_, _ = h.Write(s.address[:])
	} else {
		_ = h.WriteByte(s.is)
		_, _ = h.WriteString(s.name)
	}
	if sum := h.Sum64(); sum != 0 {
		return sum
	}
	return 1 // 0 marks a free slot
}

// ledgerSets times setSize is the number of counters of one table: 131,072 in
// 2 MiB.
const (
	ledgerSets  = 1 << 14
	setSize     = 8
	ledgerLocks = 256
)

// ledger is a table of fixed size. A key belongs to one set of slots. If all
// slots of its set count, the newcomer takes the slot that is next to be free,
// and with it what that slot has counted ("space saving", Metwally et al.
// 2005): so many keys as anybody may bring, no set admits more than its slots
// would, and only the smallest count of a set is ever forgotten.
type ledger struct {
	sets    []counterSet
	locks   [ledgerLocks]paddedMutex
	crowded atomic.Uint64
}

type counterSet [setSize]counter

type counter struct {
	key uint64
	// full is when the bucket is full again.
	full int64
}

// paddedMutex keeps two locks out of one cache line.
type paddedMutex struct {
	sync.Mutex
	_ [56]byte
}

func newLedger(sets int) *ledger { return &ledger{sets: make([]counterSet, sets)} }

// charge counts one request at now against the limit of one request per
// interval and a bucket that fills in depth nanoseconds. full is when the bucket
// will be full again; not ok, the request was not counted and may come again
// after wait nanoseconds.
func (t *ledger) charge(key uint64, now, interval, depth int64) (full, wait int64, ok bool) {
	at := int(key % uint64(len(t.sets)))
	lock := &t.locks[at%ledgerLocks]
	lock.Lock()
	defer lock.Unlock()
	set := &t.sets[at]
	slot := &set[0]
	for i := range set {
		if set[i].key == key {
			slot = &set[i]
			break
		}
		if set[i].full < slot.full {
			slot = &set[i]
		}
	}
	start := max(slot.full, now)
	if slot.key != key && start > now {
		// It counts for somebody else. A longer limit's count does not shut a
		// newcomer out for longer than its own bucket takes to fill.
		start = min(start, now+depth)
	}
	full = start + interval
	if over := full - now - depth; over > 0 {
		return start, over, false
	}
	if slot.key != key {
		if slot.full > now {
			t.crowded.Add(1)
		}
		slot.key = key
	}
	slot.full = full
	return full, 0, true
}

// refund takes back one charge.
func (t *ledger) refund(key uint64, interval int64) {
	at := int(key % uint64(len(t.sets)))
	lock := &t.locks[at%ledgerLocks]
	lock.Lock()
	defer lock.Unlock()
	for i := range t.sets[at] {
		if s := &t.sets[at][i]; s.key == key {
			s.full -= interval
			return
		}
	}
}
