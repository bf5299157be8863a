#!/usr/bin/env bash
# Errand 4: a study of the laboratory whose variants choose experts by language (signals, recipe, scaling). Leaves its record and its page in $OUT.
#
# Resumable: a record that is carried (RECORD, a path in the repository) or left in target/gpu-run has the trials that are done, and a call
# goes on with those that are missing. STUDY, SEEDS (3) and BUDGET (small) may be set. The corpus is that of training/corpora/lab.toml, as
# pack.sh packed it or in the folder DATA; trials of another one are others. Models train on the GPU and are measured on the processor's
# cores. DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
deadline=$((SECONDS + 560))
start multicoder
study=${STUDY:-signals} status=0 text=$(data)
record=$RUN/$study.csv page=$OUT/$study.html
[ -f "$record" ] || cp "${RECORD:-docs/results/$study.csv}" "$record" 2>/dev/null || true
mkdir -p "$RUN/lab"
shards=$(realpath "$text/shards") tokenizer=$(realpath "$text/tokenizer.json")
cd "$RUN/lab"
# A trial takes seconds: the one that is cut off is done again.
timeout --foreground -k 5 -s INT $((deadline - SECONDS)) "$RUN/multicoder" lab "$study" --device "$DEVICE" --seeds "${SEEDS:-3}" \
    --budget "${BUDGET:-small}" --shards "$shards" --tokenizer "$tokenizer" --record "$record" --html "$page" >"$OUT/lab.log" 2>&1 || status=$?
cp "$record" "$OUT/" 2>/dev/null || true
tail -n 40 "$OUT/lab.log"
case $status in
0) ;;
124 | 137) echo "errand 4: out of time; the other trials by another call" ;;
*) exit "$status" ;;
esac
