#!/bin/sh
# Runs Prometheus on the service with the alert rules of deploy/, asks it all that the dashboard asks, and lets two alerts fire.
# Takes the program from PATH, else from Debian's package, without installing that. What is missing is told, and all is left out.
# Needs a debug build.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

left_out() {
    echo "WARNING: deploy/prometheus and deploy/grafana on a Prometheus: LEFT OUT, $1" >&2
    exit 0
}

by_apt() {
    apt_update && mkdir -p .tools/prometheus || return 1
    (cd .tools/prometheus && apt-get download -qq prometheus >&2 && dpkg -x prometheus_*.deb . && rm prometheus_*.deb)
}

prometheus=$(command -v prometheus || echo .tools/prometheus/usr/bin/prometheus)
[ -x "$prometheus" ] || by_apt || left_out "Prometheus cannot be had"
scripts/ensure-tool.sh python3 || left_out "it needs python3"
STREAMKEEP_REDIS_SERVER="${STREAMKEEP_REDIS_SERVER:-$(scripts/ensure-redis.sh)}"
export STREAMKEEP_REDIS_SERVER
exec python3 tests/prometheus/check.py "${CARGO_TARGET_DIR:-target}/debug/streamkeep" "$prometheus"
