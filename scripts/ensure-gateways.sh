#!/bin/sh
# Installs the gateways that the tests run the service behind, nginx, HAProxy and Caddy, where they are not there and the
# system's package manager can. What cannot be had is told and left out: this never fails.
set -u
. "$(dirname "$0")/lib.sh"
# Debian puts some where only root looks.
PATH="$PATH:/usr/sbin:/usr/local/sbin"

missing() {
    for program in nginx haproxy caddy; do
        command -v "$program" >/dev/null 2>&1 || echo "$program"
    done
}

# Packages of Debian start what they install; the tests start their own.
stop() {
    if [ -d /run/systemd/system ]; then
        as_root systemctl disable --now "$1"
    elif [ -x "/etc/init.d/$1" ]; then
        as_root "/etc/init.d/$1" stop
    fi
}

by_apt() {
    apt_update || return 1
    for program in $1; do
        apt_install "$program" && stop "$program"
    done
}

by_brew() {
    command -v brew >/dev/null 2>&1 || return 1
    for program in $1; do
        brew install --quiet "$program"
    done
}

for way in by_apt by_brew; do
    wanted=$(missing)
    [ -n "$wanted" ] || exit 0
    echo "not found: $(echo $wanted); trying $way" >&2
    $way "$wanted" >&2 </dev/null
done
wanted=$(missing)
[ -z "$wanted" ] || echo "WARNING: the tests behind $(echo $wanted) will be SKIPPED: cannot install it here" >&2
exit 0
