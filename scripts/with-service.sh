#!/bin/sh
# Runs a command on a service of its own, with an empty store and a free port: with-service.sh [--keys] COMMAND ...
# STREAMKEEP_URL tells the command where it is. With --keys everybody needs a key; STREAMKEEP_TOKEN is one for everything.
set -eu
program=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}/debug/streamkeep
folder=$(mktemp -d)
service=
end() {
    status=$?
    trap - EXIT
    [ -z "$service" ] || { kill "$service" && wait "$service"; } || true
    rm -rf "$folder"
    exit "$status"
}
trap end EXIT
trap 'exit 1' INT TERM

if [ "${1:-}" = --keys ]; then
    shift
    verbs=read,append,consume,manage
    STREAMKEEP_TOKEN=$("$program" key new all --verbs $verbs --streams '*' --groups '*' --file "$folder/keys.ndjson")
    export STREAMKEEP_TOKEN
fi
STREAMKEEP_REDIS_SERVER="${STREAMKEEP_REDIS_SERVER:-$("$(dirname "$0")/ensure-redis.sh")}"
export STREAMKEEP_REDIS_SERVER
[ ! -f "$folder/keys.ndjson" ] || export STREAMKEEP_KEYS="$folder/keys.ndjson"
: >"$folder/log"
"$program" serve --listen 127.0.0.1:0 --data "$folder/data" --appendfsync everysec --log-format json >"$folder/log" 2>&1 &
service=$!
unset STREAMKEEP_KEYS
until address=$(sed -n 's/.*"message":"ready","listen":"\([^"]*\)".*/\1/p' "$folder/log") && [ -n "$address" ]; do
    kill -0 "$service" 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.1
done
export STREAMKEEP_URL="http://$address"
status=0
"$@" || status=$?
# What the service complained of while it ran.
grep -E '"level":"(WARN|ERROR)"' "$folder/log" >&2 || true
exit "$status"
