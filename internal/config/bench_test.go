package config

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkLoad loads ten thousand routes with a policy each.
func BenchmarkLoad(b *testing.B) {
	var text strings.Builder
	text.WriteString("routes:\n")
	for i := range 10000 {
		fmt.Fprintf(&text, "  - from: https://r%d.example.com\n    to: http://r%d:80\n    timeout: 10s\n    policy:\n      - allow:\n          or:\n            - email: {is: user%d@example.com}\n            - domain: {is: example.com}\n", i, i, i)
	}
	b.ReportAllocs()
	for b.Loop() {
		if cfg, problems := loadText(text.String()); cfg == nil {
			b.Fatal(show(problems))
		}
	}
}
