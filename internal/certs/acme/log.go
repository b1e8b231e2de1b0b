package acme

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// quiet gives certmagic a logger whose lines appear at log_level debug only:
// what operators need to know is said once, by the schedule.
func quiet(log *slog.Logger) *zap.Logger { return zap.New(debugCore{log}) }

type debugCore struct{ log *slog.Logger }

func (c debugCore) Enabled(zapcore.Level) bool {
	return c.log.Enabled(context.Background(), slog.LevelDebug)
}
func (c debugCore) Sync() error { return nil }

func (c debugCore) With(fields []zapcore.Field) zapcore.Core {
	return debugCore{c.log.With(attrs(fields)...)}
}

func (c debugCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c debugCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.Debug("autocert: "+e.Message, attrs(fields)...)
	return nil
}

func attrs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		out = append(out, k, v)
	}
	return out
}
