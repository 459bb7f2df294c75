package acme

import (
	"context"
	"fmt"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// core hands the library's log lines to slog: warnings and errors, and what was got and renewed.
type core struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func newLogger(log *slog.Logger) *zap.Logger { return zap.New(core{log: log}) }

// Enabled tells whether a level is wanted.
func (core) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

// With adds fields.
func (c core) With(fields []zapcore.Field) zapcore.Core {
	return core{c.log, append(append([]zapcore.Field(nil), c.fields...), fields...)}
}

// Check adds this core to an entry that it wants.
func (c core) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return checked.AddCore(e, c)
	}
	return checked
}

// Write hands one line on.
func (c core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelInfo
	switch {
	case e.Level >= zapcore.ErrorLevel:
		level = slog.LevelError
	case e.Level == zapcore.WarnLevel:
		level = slog.LevelWarn
	}
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range append(append([]zapcore.Field(nil), c.fields...), fields...) {
		f.AddTo(encoder)
	}
	var attrs []slog.Attr
	for _, name := range []string{"identifier", "identifiers", "issuer", "error", "challenge_type"} {
		if v, ok := encoder.Fields[name]; ok {
			attrs = append(attrs, slog.String(name, fmt.Sprint(v)))
		}
	}
	c.log.LogAttrs(context.Background(), level, "acme: "+e.Message, attrs...)
	return nil
}

// Sync has nothing to do.
func (core) Sync() error { return nil }
