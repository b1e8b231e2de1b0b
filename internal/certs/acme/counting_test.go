package acme_test

import (
	"context"
	"sync/atomic"

	"postern/internal/record"
)

// countingStore counts reads.
type countingStore struct {
	record.Store
	gets atomic.Int64
}

func (s *countingStore) Get(ctx context.Context, typ, id string) (*record.Record, error) {
	s.gets.Add(1)
	return s.Store.Get(ctx, typ, id)
}
