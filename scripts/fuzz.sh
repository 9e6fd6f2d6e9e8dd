#!/bin/sh
# Runs every fuzz target for $1 seconds, led by what the input covers (cargo-fuzz, which it installs where it is missing).
# Without sanitizers, which need another Rust; the service has no unsafe code for them to watch.
set -eu
cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
for target in fuzz/targets/*.rs; do
    name=$(basename "$target" .rs)
    echo "fuzzing $name for $1 s" >&2
    cargo fuzz run --sanitizer none --release "$name" -- -max_total_time="$1" -max_len=256 -verbosity=0 -print_final_stats=1
done
