#!/usr/bin/env bash
# Errand 1: everything on the GPU equals the CPU. Four suites, some minutes: our kernels against sums in float64, our tapes against the
# CPU's, the tensor library's operations against the CPU's, and a run of the smoke preset that goes from device to device.
#
# What a suite says is in $OUT/SUITE.log; the last lines say which passed. DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
RESULTS=()

# suite NAME SECONDS COMMAND...
suite() {
    local name=$1 seconds=$2 status=0
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" 2>&1 | tee "$OUT/$name.log" || status=$?
    # A suite that skipped proves nothing.
    if grep -q '^SKIPPED' "$OUT/$name.log"; then status=skipped; fi
    RESULTS+=("$name: $status")
}

kernels() {
    command -v nvcc >/dev/null || { echo "SKIPPED kernels: no nvcc"; return 0; }
    mkdir -p "$RUN/kernels"
    cp -r model/src/tape/cuda/. "$RUN/kernels/"
    cd "$RUN/kernels/emulate"
    nvcc -std=c++17 -arch=native -DON_DEVICE -x cu rest.cpp -o rest && ./rest
    for head in 32 64 128; do
        nvcc -std=c++17 -arch=native -DON_DEVICE -DHEAD=$head -x cu attention.cpp -o attention && ./attention
    done
}

# The repository itself is the text.
smoke() {
    local text=$RUN/smoke
    rm -rf "$text"
    "$RUN/multicoder" corpus build --folder multicoder=. --languages rust --out "$text/shards"
    "$RUN/multicoder" tokenizer train --shards "$text/shards" --vocab-size 1024 --out "$text/tokenizer.json"
    local train=("$RUN/multicoder" train --out "$text/run" --set max_hours=0)
    "${train[@]}" --preset smoke --device "$DEVICE" --shards "$text/shards" --tokenizer "$text/tokenizer.json" --set n_steps=30
    "${train[@]}" --resume --device cpu --set n_steps=36
    "${train[@]}" --resume --device "$DEVICE" --set n_steps=42
    "$RUN/multicoder" eval --model "$text/run" --shards "$text/shards" --max-bytes-per-language 4000 --lines 4 --ngram off
}
export -f kernels smoke
export RUN DEVICE

start multicoder
suite kernels 150 bash -euo pipefail -c kernels
start tape-tests
suite tapes 150 "$RUN/tape-tests" cuda --nocapture
if [ -f target/gpu/cuda-tests.xz ]; then
    start cuda-tests
    suite candle 120 "$RUN/cuda-tests" --show-output
fi
suite smoke 120 bash -euo pipefail -c smoke
printf '%s\n' "${RESULTS[@]}"
[[ "${RESULTS[*]}" != *skipped* && "${RESULTS[*]}" != *": "[1-9]* ]]
