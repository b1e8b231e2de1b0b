package config

import (
	"strings"
	"testing"
)

// TestHTTP3BesideProxyProtocol: the two go together, but not as somebody may
// think; that is said, and stops nothing.
func TestHTTP3BesideProxyProtocol(t *testing.T) {
	const words = "no PROXY header over UDP"
	for text, want := range map[string]bool{
		"codec_type: http3\nuse_proxy_protocol: true\n": true,
		"codec_type: http3\n":                           false,
		"use_proxy_protocol: true\n":                    false,
	} {
		cfg, problems := Load(t.Context(), Text("a.yaml", YAML, []byte(text)))
		said := false
		for _, p := range problems {
			said = said || p.Path == "codec_type" && strings.Contains(p.Message, words)
		}
		if cfg == nil || said != want {
			t.Errorf("%q: %v", text, problems)
		}
	}
}
