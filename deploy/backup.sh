#!/bin/sh
# Copies the append-only file of a running Redis or Valkey, while it takes events: deploy/backup.sh DATA TARGET [options of redis-cli]
# DATA is its folder (of the service's own Redis: --data), TARGET a folder that is not there yet. For example:
#   deploy/backup.sh streamkeep-data backup -s streamkeep-data/redis.sock
# What was acknowledged before it began is in the copy. To restore, start the service with --data TARGET, or a Redis with
# dir TARGET and appendonly yes.
set -eu
data=$1
target=$2
shift 2
[ ! -e "$target" ] || { echo "$target is there already" >&2; exit 1; }
CLI=${REDIS_CLI:-redis-cli}
setting() { "$CLI" "$@" CONFIG GET auto-aof-rewrite-percentage | sed -n 2p; }
before=$(setting "$@")
[ -n "$before" ] || { echo "Redis does not answer, or is not to be asked for its settings" >&2; exit 1; }
trap '"$CLI" "$@" CONFIG SET auto-aof-rewrite-percentage "$before" >/dev/null' EXIT
trap 'exit 1' HUP INT TERM
# The files must be those that the manifest names: no rewrite may begin, and the one that runs must end.
"$CLI" "$@" CONFIG SET auto-aof-rewrite-percentage 0 >/dev/null
while "$CLI" "$@" INFO persistence | grep -q 'aof_rewrite_in_progress:1\|aof_rewrite_scheduled:1'; do
    sleep 1
done
mkdir -p "$target"
cp -R "$data/appendonlydir" "$target/"
# A copy that is not on its disk is none.
sync
echo "copied $(du -sk "$target" | cut -f 1) KiB to $target" >&2
