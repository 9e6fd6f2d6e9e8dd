#!/bin/sh
# Makes sure that a tool of the tests is there: python3 (3.11 or newer, with venv) or node (18 or newer, with npm). Where it is
# not, the system's package manager is asked; where that cannot help, it is told, and this fails.
set -u

usable() {
    case "$1" in
        python3) python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' ;;
        node) command -v npm && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' ;;
    esac >/dev/null 2>&1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null 2>&1; then sudo -n "$@"; else return 1; fi
}

by_apt() {
    command -v apt-get >/dev/null 2>&1 || return 1
    case "$1" in python3) packages="python3 python3-venv" ;; node) packages="nodejs npm" ;; esac
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages
}

by_brew() {
    command -v brew >/dev/null 2>&1 && brew install --quiet "$1"
}

for way in by_apt by_brew; do
    usable "$1" && exit 0
    echo "no $1 that will do; trying $way" >&2
    $way "$1" >&2 </dev/null
done
usable "$1" && exit 0
echo "WARNING: cannot find or install $1" >&2
exit 1
