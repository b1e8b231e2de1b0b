#!/usr/bin/env bash
# Installs what the tests need: Debian packages, npm modules, test tools from
# Go modules. Does nothing that is already done. Needs root for the packages.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A provides=([chromium]=chromium [nginx]=nginx [h2load]=nghttp2-client [wrk]=wrk [node]=nodejs [npm]=npm [curl]=curl [openssl]=openssl [systemd-analyze]=systemd [dnsmasq]=dnsmasq-base [named]=bind9 [nsupdate]=bind9-dnsutils)
if [ "${1:-}" = extended ]; then
  provides+=([slowhttptest]=slowhttptest [testssl]=testssl.sh)
fi
missing=()
for cmd in "${!provides[@]}"; do
  command -v "$cmd" >/dev/null || [ -x "/usr/sbin/$cmd" ] || missing+=("${provides[$cmd]}")
done
command -v certutil >/dev/null || missing+=(libnss3-tools)
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing from Debian: ${missing[*]}"
  # Daemons that come along must not start by themselves.
  policy=/usr/sbin/policy-rc.d
  [ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -e test/tools/npm/node_modules/.package-lock.json ] || [ test/tools/npm/package-lock.json -nt test/tools/npm/node_modules/.package-lock.json ]; then
  echo "installing npm modules"
  (cd test/tools/npm && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.package-lock.json)
fi

mkdir -p .bin
if [ ! -x .bin/dex ] || [ test/tools/dex/main.go -nt .bin/dex ] || [ test/tools/dex/go.mod -nt .bin/dex ]; then
  echo "building Dex (a minute or two the first time)"
  (cd test/tools/dex && go build -o ../../../.bin/dex .)
fi
if [ ! -x .bin/grpchealth ] || [ test/tools/grpchealth/main.go -nt .bin/grpchealth ] || [ test/tools/grpchealth/go.mod -nt .bin/grpchealth ]; then
  (cd test/tools/grpchealth && go build -o ../../../.bin/grpchealth .)
fi
if [ ! -x .bin/pebble ] || [ test/tools/pebble/go.mod -nt .bin/pebble ]; then
  echo "building Pebble, an ACME server"
  (cd test/tools/pebble && go build -o ../../../.bin/pebble github.com/letsencrypt/pebble/v2/cmd/pebble)
fi
if [ ! -x .bin/s3 ] || [ test/tools/s3/main.go -nt .bin/s3 ] || [ test/tools/s3/go.mod -nt .bin/s3 ]; then
  echo "building an S3 server"
  (cd test/tools/s3 && go build -o ../../../.bin/s3 .)
fi
