package certs

import (
	"runtime"
	"sync"
	"weak"
)

// sumKey is a SHA-256 sum of what makes a value.
type sumKey [32]byte

// interned keeps one value for each content as long as somebody uses it, so
// that a new generation shares what did not change with the one before.
type interned[T any] struct {
	mu   sync.Mutex
	held map[sumKey]weak.Pointer[T]
}

// get gives the value of a content, made by make on first use.
func (i *interned[T]) get(key sumKey, make func() (*T, error)) (*T, error) {
	if v := i.find(key); v != nil {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if other := i.held[key].Value(); other != nil {
		return other, nil
	}
	if i.held == nil {
		i.held = map[sumKey]weak.Pointer[T]{}
	}
	i.held[key] = weak.Make(v)
	runtime.AddCleanup(v, i.drop, key)
	return v, nil
}

func (i *interned[T]) find(key sumKey) *T {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held[key].Value()
}

// drop forgets a content that nobody uses any more.
func (i *interned[T]) drop(key sumKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if p, ok := i.held[key]; ok && p.Value() == nil {
		delete(i.held, key)
	}
}
