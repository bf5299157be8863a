#!/usr/bin/env bash
# Builds what the errands run on a machine with a GPU and no Rust, and packs it into target/gpu, to be carried there.
#
#   docs/gpu-errands/pack.sh                              programs only
#   SHARDS=DIR TOKENIZER=FILE docs/gpu-errands/pack.sh    with the data of errand 3
#
# Needs nvcc of CUDA 13.0 in PATH, or fetches one (toolkit.sh). What was built is kept in target/cuda.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT_DIR=target/gpu
MAX_BYTES=$((60 * 1024 * 1024))

if ! command -v nvcc >/dev/null; then
    cargo fetch --locked
    . docs/gpu-errands/toolkit.sh
fi
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/cuda}
mkdir -p "$CARGO_TARGET_DIR"
# One command for all, so that candle and its kernels are compiled once. It says where it put the executables.
cargo build --release --locked -p multicoder-training -p multicoder-model --features candle-cuda \
    --bin multicoder --test cuda \
    --message-format json-render-diagnostics >"$CARGO_TARGET_DIR/gpu-messages.json"
executable() {
    sed -n "s/.*\"name\":\"$1\".*\"executable\":\"\([^\"]*\)\".*/\1/p" "$CARGO_TARGET_DIR/gpu-messages.json" | tail -n 1
}

rm -rf "$OUT_DIR"
mkdir -p "$OUT_DIR"
pack() {
    [ -f "$1" ] || { echo "pack: no executable for $2" >&2; exit 1; }
    strip -o "$OUT_DIR/$2" "$1"
    echo "$2: $(stat -c %s "$OUT_DIR/$2") bytes; needs$(readelf -d "$OUT_DIR/$2" | sed -n 's/.*NEEDED.*\[\(.*\)\]/ \1/p' | tr -d '\n')"
    xz -T0 -6 "$OUT_DIR/$2"
    echo "$2.xz: $(stat -c %s "$OUT_DIR/$2.xz") bytes"
}
pack "$(executable multicoder)" multicoder
pack "$(executable cuda)" cuda-tests

if [ -n "${SHARDS:-}" ]; then
    cp -rL "$SHARDS" "$OUT_DIR/shards"
    cp "${TOKENIZER:?TOKENIZER=FILE, the tokenizer.json of the shards}" "$OUT_DIR/tokenizer.json"
fi

# The working tree travels too.
tree=$(git ls-files -z | xargs -0 du -cb | tail -n 1 | cut -f 1)
packed=$(du -sb "$OUT_DIR" | cut -f 1)
echo "to carry: $OUT_DIR, $packed bytes, and the working tree, $tree bytes"
[ $((tree + packed)) -le $MAX_BYTES ] || { echo "pack: more than $MAX_BYTES bytes: carry fewer shards" >&2; exit 1; }
