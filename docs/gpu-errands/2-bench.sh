#!/usr/bin/env bash
# Errand 2: the training step beside PyTorch's (torch.compile, bf16, SDPA, fused AdamW): our model and its dense twin beside the same two
# there, and beside experts by token (grouped_mm). Leaves bench.json and bench.log in $OUT: seconds a step, tokens a second, the GPU's
# memory; medians of interleaved rounds.
#
# Resumable: rounds are kept in target/gpu-run, and a call goes on with those that are missing, as long as the machine is the same. The
# first round costs the most, as torch.compile keeps what it compiled. PRESET, SET (a list of path=value), ROUNDS, STEPS and MODES
# (compile, eager) may be set; another of them than ROUNDS starts anew. DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
start multicoder
read -ra sets <<<"${SET:-}"
preset=${PRESET:-h200} steps=${STEPS:-30} modes=${MODES:-compile}
rounds=$RUN/bench-$(printf '%s\n' "$preset" "${SET:-}" "$steps" "$modes" "$DEVICE" | cksum | cut -d ' ' -f 1).json
status=0
timeout 580 "$RUN/multicoder" bench train --preset "$preset" ${sets[@]+"${sets[@]/#/--set=}"} --dense-twin --compute bf16 \
    --device "$DEVICE" --against torch --torch-modes "$modes" --python "$(command -v python3)" --rounds "${ROUNDS:-5}" --steps "$steps" \
    --out "$rounds" >"$OUT/bench.log" 2>&1 || status=$?
cat "$OUT/bench.log"
[ -f "$rounds" ] || exit "$status"
cp "$rounds" "$OUT/bench.json"
python3 - "$OUT/bench.json" <<'PYTHON'
import json, sys

found = json.load(open(sys.argv[1]))
print(f"{found['rounds']} rounds")
for row in found["rows"]:
    print(
        f"{row['name']:30} {row['seconds'] * 1000:9.1f} ms/step {row['tokens_per_s']:12.0f} tokens/s "
        f"{row['flops_per_s'] / 1e12:8.1f} TFLOP/s {row['peak_bytes'] / 1e9:7.2f} GB"
    )
PYTHON
[ "$status" != 124 ] || echo "errand 2: out of time; the other rounds by another call"
exit "$status"
