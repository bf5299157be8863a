#!/usr/bin/env bash
# Errand 3: a training run of the starter model. Shows: the loss of the CPU's run in minutes. Brings the model back, as planes.py splits it.
#
# Resumable: a call ends after nine minutes with a checkpoint in target/gpu-run/starter, and the next one goes on from it, as long as the
# machine is the same. HOURS (default 0.13: one call) is the length of the whole run; say it in the first call, so that the learning rate
# falls in time. BATCH: tokens a step; SET: a list of path=value. The text is what pack.sh packed (SHARDS and TOKENIZER), else the Python
# packages installed there. More than one call can carry is put together before, call after call, and named by DATA=target/gpu-run/data:
#
#   mkdir -p target/gpu-run/data && cp -r target/gpu/. target/gpu-run/data/
#
# INIT: a folder there with a model to start from, as planes.py splits it.
# DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
start multicoder
deadline=$((SECONDS + 530))

# The larger packages beside PyTorch, one folder each; `PACKAGES` names others.
installed_text() {
    local site package folders=()
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    for package in ${PACKAGES:-torch transformers jax numpy scipy sympy pandas sklearn botorch gpytorch onnx triton}; do
        [ ! -d "$site/$package" ] || folders+=(--folder "$package=$site/$package")
    done
    [ ${#folders[@]} -gt 0 ] || { echo "no text: pack it with SHARDS=DIR TOKENIZER=FILE docs/gpu-errands/pack.sh" >&2; return 1; }
    "$RUN/multicoder" corpus build "${folders[@]}" --languages python,c,cpp,cuda --train-mb 40 --out "$RUN/text.part/shards"
    "$RUN/multicoder" tokenizer train --shards "$RUN/text.part/shards" --vocab-size 6144 --out "$RUN/text.part/tokenizer.json"
    mv "$RUN/text.part" "$RUN/text"
}
text=$RUN/text
if [ -n "${DATA:-}" ] || [ -d target/gpu/shards ]; then
    text=$(data)
elif [ ! -d "$text" ]; then
    rm -rf "$RUN/text.part"
    installed_text >"$OUT/text.log" 2>&1 || { tail -n 5 "$OUT/text.log" >&2; exit 1; }
fi

run=$RUN/starter
status=0
read -ra options <<<"${SET:-}"
options=(${options[@]+"${options[@]/#/--set=}"})
start_from=(--resume)
if [ -n "${INIT:-}" ]; then
    [ -d "$RUN/init" ] || python3 docs/gpu-errands/planes.py join "$INIT" "$RUN/init"
    compgen -G "$run/checkpoints/step-*" >/dev/null || start_from=(--init-from "$RUN/init")
fi
# An interrupt saves a checkpoint; a second one, which timeout sends to the group unless it is in the foreground, ends the program at once.
timeout --foreground -k 30 -s INT $((deadline - SECONDS)) "$RUN/multicoder" train --preset starter --device "$DEVICE" "${start_from[@]}" --out "$run" \
    --shards "$text/shards" --tokenizer "$text/tokenizer.json" --set "max_hours=${HOURS:-0.13}" \
    --set "data.batch_tokens=${BATCH:-65536}" --set "data.micro_batch_tokens=${MICRO_BATCH:-32768}" --set checkpoint.every_steps=2000 \
    ${options[@]+"${options[@]}"} >"$OUT/train.log" 2>&1 || status=$?
tail -n 40 "$OUT/train.log"
cp "$run/run.toml" "$OUT/" 2>/dev/null || true
gzip -c "$run/metrics.jsonl" >"$OUT/metrics.jsonl.gz" 2>/dev/null || true
case $status in
0)
    last=$(ls -d "$run"/checkpoints/step-* | tail -n 1)
    python3 docs/gpu-errands/planes.py split "$last" "$OUT/model"
    "$RUN/multicoder" pack --checkpoint "$run" --out "$RUN/starter-gpu.gguf" 2>&1 | tail -n 5
    ;;
# Out of time, its checkpoint saved.
124) echo "errand 3: to be continued by another call" ;;
*) exit "$status" ;;
esac
