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
    printf '%s\n' "${RESULTS[@]}" >"$OUT/results.txt"
}

# What the compiler says of each program is in its own file, printed before the program runs.
kernels() {
    command -v nvcc >/dev/null || { echo "SKIPPED kernels: no nvcc"; return 0; }
    mkdir -p "$RUN/kernels"
    cp -r model/src/tape/cuda/. "$RUN/kernels/"
    cd "$RUN/kernels/emulate"
    local head name compiling=()
    nvcc -std=c++17 -arch=native -DON_DEVICE -x cu rest.cpp -o rest >rest.log 2>&1 &
    compiling+=("rest:$!")
    for head in 32 64 128; do
        nvcc -std=c++17 -arch=native -DON_DEVICE -DHEAD=$head -x cu attention.cpp -o attention$head >attention$head.log 2>&1 &
        compiling+=("attention$head:$!")
    done
    for name in "${compiling[@]}"; do
        wait "${name#*:}" || { cat "${name%:*}.log"; return 1; }
        cat "${name%:*}.log"
        "./${name%:*}"
    done
}

# The repository itself is the text. Our kernels have no float32 products.
smoke() {
    local text=$RUN/smoke
    rm -rf "$text"
    "$RUN/multicoder" corpus build --folder multicoder=. --languages rust --out "$text/shards"
    "$RUN/multicoder" tokenizer train --shards "$text/shards" --vocab-size 1024 --out "$text/tokenizer.json"
    local train=("$RUN/multicoder" train --out "$text/run" --set max_hours=0 --set compute=bf16)
    "${train[@]}" --preset smoke --device "$DEVICE" --shards "$text/shards" --tokenizer "$text/tokenizer.json" --set n_steps=30
    "${train[@]}" --resume --device cpu --set n_steps=36
    "${train[@]}" --resume --device "$DEVICE" --set n_steps=42
    "$RUN/multicoder" eval --model "$text/run" --shards "$text/shards" --max-bytes-per-language 4000 --lines 4 --ngram off
}
export -f kernels smoke
export RUN DEVICE

# The limits add up to less than ten minutes.
start multicoder
suite kernels 280 bash -euo pipefail -c kernels
start tape-tests
# Those that need the GPU, by what their names have in common, and the compilation of every kernel: others read this source tree's emulator.
# One at a time: cuBLASLt fails in one thread while another captures a graph (LAB.md, 2026-11-27).
suite tapes 110 "$RUN/tape-tests" on_a_gpu every_kernel_compiles --nocapture --test-threads 1
if [ -f target/gpu/cuda-tests.xz ]; then
    start cuda-tests
    suite candle 90 "$RUN/cuda-tests" --show-output
fi
suite smoke 90 bash -euo pipefail -c smoke
printf '%s\n' "${RESULTS[@]}"
[[ "${RESULTS[*]}" != *skipped* && "${RESULTS[*]}" != *": "[1-9]* ]]
