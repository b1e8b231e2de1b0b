// Package telemetry is what Postern says about itself: log lines, the access
// and authorize logs, metrics, and the health endpoints.
//
// Everything is written for machines that already read the logs and dashboards
// of this kind of product, so field names and metric names are contract
// (wire-contract.md §2, §12). Nothing here decides anything, and nothing here
// may hold a secret: values are redacted and bounded on their way out.
package telemetry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Levels beyond slog's own. LevelOff is above every level that is ever logged.
const (
	LevelTrace    = slog.Level(-8)
	LevelCritical = slog.Level(12)
	LevelOff      = slog.Level(100)
)

// levels are the names that log_level and proxy_log_level take
// (configuration.md §2.13), in the order in which they are documented.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"trace", LevelTrace},
	{"debug", slog.LevelDebug},
	{"info", slog.LevelInfo},
	{"warn", slog.LevelWarn},
	{"warning", slog.LevelWarn},
	{"error", slog.LevelError},
	{"critical", LevelCritical},
	{"fatal", LevelCritical},
	{"panic", LevelCritical},
	{"off", LevelOff},
	{"none", LevelOff},
	{"disabled", LevelOff},
}

// LevelNames lists the names that ParseLevel takes.
func LevelNames() []string {
	names := make([]string, len(levels))
	for i, l := range levels {
		names[i] = l.name
	}
	return names
}

// ParseLevel reads the name of a log level. Names are lower case and an
// unknown one is an error that lists them; "" is info, the default.
func ParseLevel(name string) (slog.Level, error) {
	if name == "" {
		return slog.LevelInfo, nil
	}
	for _, l := range levels {
		if l.name == name {
			return l.level, nil
		}
	}
	return LevelOff, fmt.Errorf("unknown log level %q: use one of %s", name, strings.Join(LevelNames(), ", "))
}

// levelName is the inverse, with one name for each level.
func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "trace"
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	case l < LevelCritical:
		return "error"
	}
	return "critical"
}

// NewLogger makes the process logger: one JSON object a line with level, time
// (RFC 3339) and message, then the attributes. level may change while the
// logger is in use. A line at error or above reaches w before the call returns
// even if w is a Sink.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	h := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: replaceAttr})
	return slog.New(&handler{next: h, sink: asSink(w)})
}

// handler flushes what must not be lost if the process dies next.
type handler struct {
	next slog.Handler
	sink *Sink
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.next.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	r.Message = bounded(r.Message)
	err := h.next.Handle(ctx, r)
	if h.sink != nil && r.Level >= slog.LevelWarn {
		h.sink.Flush()
	}
	return err
}

func (h *handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &handler{h.next.WithAttrs(a), h.sink}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.next.WithGroup(name), h.sink}
}

// replaceAttr renames the built-in attributes, and redacts and bounds the rest.
func replaceAttr(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 {
		switch a.Key {
		case slog.LevelKey:
			if l, ok := a.Value.Any().(slog.Level); ok {
				return slog.String("level", levelName(l))
			}
		case slog.MessageKey:
			return slog.Attr{Key: "message", Value: a.Value}
		case slog.TimeKey:
			if a.Value.Kind() == slog.KindTime {
				return a
			}
		}
	}
	if secretKey(a.Key) {
		return slog.String(a.Key, redacted)
	}
	switch a.Value.Kind() {
	case slog.KindString:
		return slog.String(a.Key, bounded(redactText(a.Value.String())))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case error:
			return slog.String(a.Key, bounded(redactText(v.Error())))
		case fmt.Stringer:
			return slog.String(a.Key, bounded(redactText(v.String())))
		case []byte:
			// Bytes are most often keys or bodies: say how many, not which.
			return slog.String(a.Key, fmt.Sprintf("[%d bytes]", len(v)))
		case []string:
			out := make([]string, 0, min(len(v), maxItems))
			for i, s := range v {
				if i == maxItems {
					break
				}
				out = append(out, bounded(redactText(s)))
			}
			return slog.Any(a.Key, out)
		}
	}
	return a
}
