#!/bin/sh
# Generates clients in TypeScript, Python and Rust from openapi.yaml, checks their types, and runs the tour by each on the real
# service: as it is by default, and with an API key. What a tool is missing for is told and left out. Needs a debug build.
set -eu
cd "$(dirname "$0")/.."
tours=$PWD/tests/sdks
sdks=$PWD/.tools/sdks
mkdir -p "$sdks"

tour() {
    scripts/with-service.sh "$@"
    scripts/with-service.sh --keys "$@"
}

node_modules() {
    mkdir -p "$sdks/typescript"
    cp "$tours"/typescript/* "$sdks/typescript"
    (cd "$sdks/typescript" && cmp -s package-lock.json node_modules/installed) ||
        (cd "$sdks/typescript" && npm ci --no-audit --no-fund >&2 && cp package-lock.json node_modules/installed)
}

typescript() {
    cd "$sdks/typescript"
    npx --no-install openapi-typescript "$tours/../../openapi.yaml" --output streamkeep.d.ts >/dev/null
    npx --no-install tsc
    cd "$tours/../.."
    tour node "$sdks/typescript/tour.js"
}

python() {
    mkdir -p "$sdks/python"
    cp "$tours/python/tour.py" "$sdks/python"
    PATH="$venv/bin:$PATH" openapi-python-client generate --path openapi.yaml --meta none --overwrite \
        --output-path "$sdks/python/streamkeep_client" --config "$tours/python/config.yaml" --fail-on-warning >/dev/null
    (cd "$sdks/python" && "$venv/bin/mypy" --strict --config-file "$tours/python/mypy.ini" tour.py)
    tour "$venv/bin/python" "$sdks/python/tour.py"
}

rust() {
    # Replaced only where it changed, for Cargo looks at times.
    if ! cmp -s openapi.yaml "$sdks/rust/openapi.yaml"; then
        rm -rf "$sdks/rust"
        "$venv/bin/openapi-generator-cli" generate --generator-name rust --library reqwest --input-spec openapi.yaml \
            --output "$sdks/rust" --global-property apiDocs=false,modelDocs=false \
            --additional-properties packageName=streamkeep-client >"$sdks/rust.log" 2>&1 || { cat "$sdks/rust.log"; return 1; }
        cp openapi.yaml "$sdks/rust"
    fi
    rustfmt --check --edition 2024 --config-path . "$tours/rust/src/main.rs"
    target=${CARGO_TARGET_DIR:-$PWD/target}
    cargo build --locked --quiet --manifest-path "$tours/rust/Cargo.toml" --target-dir "$target"
    tour "$target/debug/streamkeep-tour"
}

scripts/ensure-tool.sh python3 && venv=$(scripts/venv.sh tests/sdks/requirements.txt) || venv=
scripts/ensure-tool.sh node && node_modules && languages=typescript || languages=
[ -z "$venv" ] || languages="$languages python rust"
for language in typescript python rust; do
    case " $languages " in
        *" $language "*) echo "--- the $language client" >&2 && "$language" ;;
        *) echo "WARNING: the $language client is SKIPPED: what generates it cannot be had here" >&2 ;;
    esac
done
