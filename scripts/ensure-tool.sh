#!/bin/sh
# Makes sure that a tool of the tests is there: python3 (3.11 or newer, with venv) or node (18 or newer, with npm). Where it is
# not, the system's package manager is asked; where that cannot help, it is told, and this fails.
set -u
. "$(dirname "$0")/lib.sh"

usable() {
    case "$1" in
        python3) python3 -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' ;;
        node) command -v npm && node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)' ;;
    esac >/dev/null 2>&1
}

by_apt() {
    apt_update || return 1
    case "$1" in
        python3) apt_install python3 python3-venv ;;
        node) apt_install nodejs npm ;;
    esac
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
