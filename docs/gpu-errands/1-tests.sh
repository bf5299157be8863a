#!/usr/bin/env bash
# Errand 1: the CUDA test suite, and a run of the smoke preset that begins on the GPU and ends on the CPU. Two minutes.
#
# Shows: everything on the GPU equals the CPU, golden logits within 1e-3; checkpoints go from device to device. DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
start cuda-tests
start multicoder
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
status=0
timeout 300 "$RUN/cuda-tests" --show-output 2>&1 | tee "$OUT/cuda-tests.log" || status=$?

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
    "$RUN/multicoder" eval --model "$text/run" --device "$DEVICE" --shards "$text/shards" --max-bytes-per-language 4000 --lines 4 \
        --ngram off
}
export -f smoke
export RUN DEVICE
timeout 240 bash -euo pipefail -c smoke 2>&1 | tee "$OUT/smoke.log" || status=$?

# A suite that skipped everything proves nothing.
if grep -q '^SKIPPED' "$OUT/cuda-tests.log"; then
    echo "errand 1: no GPU was used" >&2
    exit 1
fi
exit "$status"
