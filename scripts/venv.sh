#!/bin/sh
# Makes a venv in .tools with what the requirements file $1 pins, anew where that has changed. Prints its folder.
set -eu
venv=.tools/venv-$(basename "$(dirname "$1")")
if ! cmp -s "$1" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    # One repeat: what is fetched is much, and networks fail.
    for _ in 1 2; do
        "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$1" >&2 && cp "$1" "$venv/requirements.txt" && break
    done
    [ -f "$venv/requirements.txt" ] || exit 1
fi
echo "$PWD/$venv"
