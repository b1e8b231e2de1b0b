package server

import (
	"strings"

	"postern/internal/config"
)

// problemList is a refused configuration as an error.
type problemList []config.Problem

func (l problemList) Error() string {
	lines := make([]string, len(l))
	for i, p := range l {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}
