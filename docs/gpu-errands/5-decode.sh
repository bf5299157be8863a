#!/usr/bin/env bash
# Errand 5: decoding on the GPU. Random weights for 1 to 128 clients at once, one place completed by the starter, and the suite of samples on
# the GPU beside the processor. What is said is in $OUT/decode.log. DEVICE=cpu tries the script with what of it the processor has.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
start multicoder
start multicoder-lsp
{
    "$RUN/multicoder-lsp" doctor --device "$DEVICE" | head -n 12
    "$RUN/multicoder-lsp" complete --device "$DEVICE" grammars/samples/go.go:93:17
    if [ "$DEVICE" = cuda ]; then
        for shape in 34m qwen2.5-coder-0.5b; do
            timeout 150 "$RUN/multicoder-lsp" bench --device cuda --shape "$shape" --rounds 5
            timeout 150 "$RUN/multicoder-lsp" bench --device cuda --shape "$shape" --rounds 5 --json >"$OUT/bench-$shape.json"
        done
    fi
    for device in "$DEVICE" cpu; do
        "$RUN/multicoder" eval samples --bench grammars --model starter --device "$device" --csv "$OUT/samples-$device.csv"
    done
} 2>&1 | tee "$OUT/decode.log"
