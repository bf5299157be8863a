#!/usr/bin/env bash
# Errand 2: the training step beside PyTorch's (torch.compile and eager, bf16, SDPA, fused AdamW) of the same model. Leaves bench.json
# and bench.log in $OUT: seconds a step, tokens a second, memory; medians of interleaved rounds.
#
# DEVICE=cpu tries the script. PRESET, SET (a list of path=value), ROUNDS and STEPS may be set; more rounds cost less each, because
# torch.compile keeps what it compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
start multicoder
read -ra sets <<<"${SET:-}"
timeout 580 "$RUN/multicoder" bench train --preset "${PRESET:-h200}" ${sets[@]+"${sets[@]/#/--set=}"} --dense-twin --compute bf16 \
    --device "$DEVICE" --against torch --python "$(command -v python3)" --rounds "${ROUNDS:-2}" --steps "${STEPS:-50}" --json \
    2>"$OUT/bench.log" >"$OUT/bench.json" || { tail -n 5 "$OUT/bench.log" >&2; exit 1; }
cat "$OUT/bench.log"
python3 - "$OUT/bench.json" <<'PYTHON'
import json, sys

for row in json.load(open(sys.argv[1]))["rows"]:
    print(f"{row['name']:28} {row['seconds'] * 1000:9.1f} ms/step {row['tokens_per_s']:12.0f} tokens/s {row['flops_per_s'] / 1e12:8.1f} TFLOP/s")
PYTHON
