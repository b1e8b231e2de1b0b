#!/usr/bin/env bash
# Installs what the tests need: Debian packages, npm modules, test tools from
# Go modules. Does nothing that is already done. Needs root for the packages.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A provides=([chromium]=chromium [nginx]=nginx [h2load]=nghttp2-client [wrk]=wrk [node]=nodejs [npm]=npm [curl]=curl [openssl]=openssl [dnsmasq]=dnsmasq-base)
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
