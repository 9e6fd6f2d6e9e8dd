#!/bin/sh
# Lets schemathesis send what openapi.yaml allows and what it forbids, $1 examples an operation, to the real service, and compare
# the answers with the document. Where it cannot be had, that is told, and it is left out. Needs a debug build.
set -eu
cd "$(dirname "$0")/.."
scripts/ensure-tool.sh python3 && venv=$(scripts/venv.sh tests/schemathesis/requirements.txt) || {
    echo "WARNING: schemathesis is SKIPPED: it cannot be had here" >&2
    exit 0
}
document=$PWD/openapi.yaml
export venv document
scripts/with-service.sh --keys sh -euc '
    cd tests/schemathesis
    exec "$venv/bin/schemathesis" run "$document" --url "$STREAMKEEP_URL" --max-examples "$1"' schemathesis "$1"
