# What each target is for stands in CONTRIBUTING.md.
GO      ?= go
BIN     := $(CURDIR)/.bin
PKGS    := ./cmd/... ./internal/... ./test/house/... ./test/keys/... ./test/docs/... ./test/broken/... ./test/security/...
RACE    := ./internal/record/... ./internal/store/... ./internal/authz/... ./internal/authn/... ./internal/proxy/... ./internal/upstream/... ./internal/server/...
FUZZTIME ?= 60s

.PHONY: check test test-extended scratch scratch-full soak broken bench bench-reload fuzz deps system cover clean

## check: the quick inner loop (format, vet, staticcheck, floors, unit tests)
check: $(BIN)/staticcheck
	@bad=$$(gofmt -l cmd internal test bench 2>/dev/null); if [ -n "$$bad" ]; then echo "gofmt would change:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...
	$(BIN)/staticcheck ./...
	$(GO) test -count=1 ./test/house ./test/broken
	$(GO) test $(PKGS)

$(BIN)/scratch: $(wildcard test/tools/scratch/*)
	@mkdir -p $(BIN)
	cd test/tools/scratch && $(GO) build -o $(BIN)/scratch .

# The program under test of scratch: always built anew.
.PHONY: $(BIN)/postern
$(BIN)/postern:
	$(GO) build -o $@ ./cmd/postern

$(BIN)/staticcheck: test/tools/lint/go.mod
	@mkdir -p $(BIN)
	cd test/tools/lint && $(GO) build -o $(BIN)/staticcheck honnef.co/go/tools/cmd/staticcheck

## deps: what the tests need, from Debian, npm and Go modules
deps:
	./test/deps.sh

## test: everything that CI runs
test: deps check
	$(GO) test -race $(RACE)
	$(GO) test -count=1 -timeout 15m ./test/system/... ./test/conformance/...
	$(MAKE) scratch
	cd test/browser && $(GO) test -count=1 ./...
	$(GO) run ./test/broken

## scratch: changes under open streams, and what stays after many connections; a few seconds of each
scratch: $(BIN)/scratch $(BIN)/postern
	$(BIN)/scratch reload -program $(BIN)/postern -websockets 200 -grpc 30 -reloads 80 -pause 20ms -rate 400
	$(BIN)/scratch flat -program $(BIN)/postern -requests 20000 -connections 2000

## scratch-full: the same at full size (half an hour; 20,000 open files)
scratch-full: $(BIN)/scratch $(BIN)/postern
	ulimit -n 20000 && $(BIN)/scratch reload -program $(BIN)/postern
	$(BIN)/scratch flat -program $(BIN)/postern

## test-extended: parts that build or run for minutes
test-extended: test
	./test/deps.sh extended
	$(GO) test -count=1 -tags extended -timeout 30m ./internal/... ./test/system/...
	$(GO) test -count=1 -tags extended -timeout 30m -v -run 'H2Spec|SlowClients|Scanner' ./test/conformance/...

## soak: long random tests, and a minute for each fuzz target
soak: fuzz
	POSTERN_TEST_KILLS=300 $(GO) test -count=1 -timeout 30m -run TestKilledAtAnyMoment ./internal/store/file
	$(GO) test -count=1 -tags soak -timeout 60m ./internal/... ./test/system/...
	$(MAKE) scratch-full

fuzz:
	@set -e; for dir in $$($(GO) list -f '{{.Dir}}' ./internal/...); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go 2>/dev/null | sed 's/func //'); do \
	    echo "fuzz $$f in $$dir"; \
	    ( cd $$dir && $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) . ); \
	  done; \
	done

## broken: every security test fails on its deliberately broken build
broken:
	$(GO) run ./test/broken

## bench-reload: how long a one-route change takes, by number of routes, on one core
bench-reload:
	go test ./internal/server -run - -bench Reload -benchtime 20x -timeout 30m

## bench: CPU time per request against nginx in the same run, and the hot functions
bench:
	./bench/run.sh

clean:
	rm -rf $(BIN)
