package session

import (
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Token is a credential or other secret text. Printing or logging it shows
// "[redacted]"; only JSON encoding of a record and an explicit string
// conversion show the text.
type Token string

// String, GoString, Format and LogValue redact.
func (Token) String() string             { return redacted }
func (Token) GoString() string           { return redacted }
func (Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }
func (Token) LogValue() slog.Value       { return slog.StringValue(redacted) }

// Secret is key material. Printing, logging and encoding it show "[redacted]".
type Secret struct{ b []byte }

// NewSecret keeps a copy of b.
func NewSecret(b []byte) Secret { return Secret{append([]byte(nil), b...)} }

// Reveal gives the bytes. The caller must not change or keep them longer than
// the Secret.
func (s Secret) Reveal() []byte { return s.b }

// IsZero says that there is no secret.
func (s Secret) IsZero() bool { return len(s.b) == 0 }

// String, GoString, Format, LogValue and MarshalText redact.
func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
