package record

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Delays between attempts to watch. The first is short, since most breaks are
// brief and revocations must arrive within a second.
const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
)

// silence is after how long without an event a stream is taken for dead.
// Heartbeats come at least every Heartbeat.
const silence = 3 * Heartbeat

// follow watches again and again until ctx ends. from says where to begin,
// reset is called when that place is lost, and consume handles one stream.
func follow(ctx context.Context, src Watcher, typ string, o ReplicaOptions,
	from func() (Cursor, error), reset func(), consume func(next func() (Event, error)) error) error {

	retry := firstRetry
	for {
		began := time.Now()
		err := followOnce(ctx, src, typ, from, consume)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrHistoryGone) || errors.Is(err, ErrWrongServer) {
			reset()
		}
		o.report(fmt.Errorf("watching %s: %w; trying again", typ, err))
		if time.Since(began) > lastRetry {
			retry = firstRetry
		}
		timer := time.NewTimer(retry)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		retry = min(2*retry, lastRetry)
	}
}

func followOnce(ctx context.Context, src Watcher, typ string, from func() (Cursor, error), consume func(next func() (Event, error)) error) error {
	at, err := from()
	if err != nil {
		return err
	}
	stream, err := src.Watch(ctx, typ, at)
	if err != nil {
		return err
	}
	defer stream.Close()
	// A connection can die without a word. Closing the stream makes Next fail.
	watchdog := time.AfterFunc(silence, func() { stream.Close() })
	defer watchdog.Stop()
	return consume(func() (Event, error) {
		watchdog.Reset(silence)
		return stream.Next(ctx)
	})
}
