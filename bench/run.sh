#!/usr/bin/env bash
# make bench: the hot functions, then CPU time per request against nginx in the
# same run. See README.md for how to read it. Arguments go to the second part.
set -euo pipefail
cd "$(dirname "$0")/.."
./test/deps.sh
go test -run '^$' -bench . -benchmem ./internal/policy ./internal/route ./internal/authz ./internal/record ./internal/proxy
mkdir -p .bin
go build -o .bin/postern ./cmd/postern
go run ./bench -postern .bin/postern "$@"
