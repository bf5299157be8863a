#!/usr/bin/env bash
# Builds what the errands run on a machine with a GPU and no Rust, and packs it into target/gpu, to be carried there.
#
#   docs/gpu-errands/pack.sh                              programs only
#   SHARDS=DIR TOKENIZER=FILE docs/gpu-errands/pack.sh    with the data of errands 3 and 4
#   DECODE=1 docs/gpu-errands/pack.sh                     with the server of errand 5
#   CANDLE=0 docs/gpu-errands/pack.sh                     without the programs of candle's CUDA, whose first build takes 20 minutes
#
# Candle's CUDA needs nvcc of CUDA 13.0 in PATH, or fetches one (toolkit.sh). What was built is kept in target/cuda.
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT_DIR=target/gpu
MAX_BYTES=$((60 * 1024 * 1024))
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/cuda}
mkdir -p "$CARGO_TARGET_DIR"
rm -rf "$OUT_DIR"
mkdir -p "$OUT_DIR"

# pack NAME KIND TARGET CARGO-ARGUMENTS...: the executable that cargo says it made of the target of a kind (bin, lib, test), as NAME.
pack() {
    local name=$1 kind=$2 target=$3 messages=$CARGO_TARGET_DIR/gpu-messages.json executable
    shift 3
    cargo "$@" --release --locked --message-format json-render-diagnostics >"$messages"
    executable=$(sed -n "s/.*\"kind\":\[\"$kind\"\].*\"name\":\"$target\".*\"executable\":\"\([^\"]*\)\".*/\1/p" "$messages" | tail -n 1)
    [ -f "$executable" ] || { echo "pack: no executable for $name" >&2; exit 1; }
    strip -o "$OUT_DIR/$name" "$executable"
    echo "$name: $(stat -c %s "$OUT_DIR/$name") bytes; needs$(readelf -d "$OUT_DIR/$name" | sed -n 's/.*NEEDED.*\[\(.*\)\]/ \1/p' | tr -d '\n')"
    xz -T0 -6 "$OUT_DIR/$name"
    echo "$name.xz: $(stat -c %s "$OUT_DIR/$name.xz") bytes"
}

# Our own kernels.
pack multicoder bin multicoder build -p multicoder-training --features cuda --bin multicoder
pack tape-tests lib multicoder_model test --no-run -p multicoder-model --features cuda --lib
if [ "${DECODE:-0}" = 1 ]; then
    # Without the starter inside: it travels with the working tree.
    starter=lsp/model/starter.gguf aside=target/starter.gguf
    trap '[ ! -f "$aside" ] || mv "$aside" "$starter"' EXIT
    [ ! -f "$starter" ] || mv "$starter" "$aside"
    pack multicoder-lsp bin multicoder-lsp build -p multicoder-lsp --features cuda --bin multicoder-lsp
    mv "$aside" "$starter"
fi

# The tensor library's. A folder of its own: the two cannot share what links CUDA.
if [ "${CANDLE:-1}" = 1 ]; then
    if ! command -v nvcc >/dev/null; then
        cargo fetch --locked
        . docs/gpu-errands/toolkit.sh
    fi
    export CARGO_TARGET_DIR=$CARGO_TARGET_DIR/candle
    mkdir -p "$CARGO_TARGET_DIR"
    pack cuda-tests test cuda build -p multicoder-model --features candle-cuda --test cuda
fi

if [ -n "${SHARDS:-}" ]; then
    [ -d "$SHARDS/train" ] || { echo "pack: SHARDS=$SHARDS: expected a folder of multicoder corpus build, with train/" >&2; exit 1; }
    mkdir -p "$OUT_DIR/shards"
    for part in train valid test report.json; do
        [ ! -e "$SHARDS/$part" ] || cp -rL "$SHARDS/$part" "$OUT_DIR/shards/"
    done
    cp "${TOKENIZER:?TOKENIZER=FILE, the tokenizer.json of the shards}" "$OUT_DIR/tokenizer.json"
fi

# The working tree travels too.
tree=$(git ls-files -z | xargs -0 du -cb | tail -n 1 | cut -f 1)
packed=$(du -sb "$OUT_DIR" | cut -f 1)
echo "to carry: $OUT_DIR, $packed bytes, and the working tree, $tree bytes"
[ $((tree + packed)) -le $MAX_BYTES ] || { echo "pack: more than $MAX_BYTES bytes: carry fewer shards" >&2; exit 1; }
