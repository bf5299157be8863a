#!/usr/bin/env bash
# Errand 5: decoding on the GPU. One place completed by the starter, random weights for 1 to 128 clients at once, and the suite of samples on
# the GPU beside the processor. What is said is in $OUT/decode.log, its end which steps passed. DEVICE=cpu tries the script with what of it
# the processor has.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || true
start multicoder
start multicoder-lsp
RESULTS=() FAILED=0

# step SECONDS COMMAND...: one that fails does not stop the next.
step() {
    local seconds=$1 status=0
    shift
    echo "== ${*##*/}"
    timeout "$seconds" "$@" 2>&1 || status=$? FAILED=1
    RESULTS+=("$status: ${*##*/}")
}

samples() {
    "$RUN/multicoder" eval samples --bench grammars --model starter --device "$1" --csv "$OUT/samples-$1.csv"
}
export -f samples
export RUN OUT

everything() {
    # The server carries no model: it lies in the working tree already.
    local starter=(--model lsp/model/starter.gguf --device "$DEVICE")
    step 20 "$RUN/multicoder-lsp" doctor "${starter[@]}"
    step 20 "$RUN/multicoder-lsp" complete "${starter[@]}" grammars/samples/go.go:93:17
    if [ "$DEVICE" = cuda ]; then
        for shape in 34m qwen2.5-coder-0.5b; do
            step 60 "$RUN/multicoder-lsp" bench "${starter[@]}" --shape "$shape" --rounds 5
        done
    fi
    for device in "$DEVICE" cpu; do step 60 bash -euo pipefail -c "samples $device"; done
    printf '%s\n' "${RESULTS[@]}"
}
everything > >(tee "$OUT/decode.log") 2>&1
[ "$FAILED" = 0 ]
