#!/usr/bin/env bash
# Errand 4: a study of the laboratory whose variants choose experts by language (experiment, signals, recipe, scaling). Leaves its records and
# its pages in $OUT.
#
# Resumable: records that are carried (RECORD, a path in the repository) or left in target/gpu-run have the trials that are done, and a call
# goes on with those that are missing. STUDY, SEEDS (3) and BUDGET (small) may be set, and ONLY="A,B C,D": these variants, those of each word
# beside the others. The corpus is that of training/corpora/lab.toml, as pack.sh packed it or in the folder DATA; trials of another one are
# others. Models train on the GPU and are measured on the processor's cores. DEVICE=cpu tries the script.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
deadline=$((SECONDS + ${SECONDS_AT_MOST:-560}))
start multicoder
study=${STUDY:-experiment} text=$(data)
shards=$(realpath "$text/shards") tokenizer=$(realpath "$text/tokenizer.json")
read -ra groups <<<"${ONLY:-all}"

# trials NAME VARIANTS: in a folder and with a record of their own.
trials() {
    local record=$RUN/$1.csv only=()
    [ "$2" = all ] || only=(--only "$2")
    [ -f "$record" ] || cp "${RECORD:-docs/results/$study.csv}" "$record" 2>/dev/null || true
    mkdir -p "$RUN/lab/$1"
    cd "$RUN/lab/$1"
    # A trial takes seconds: the one that is cut off is done again.
    timeout --foreground -k 5 -s INT $((deadline - SECONDS)) "$RUN/multicoder" lab "$study" --device "$DEVICE" --seeds "${SEEDS:-3}" \
        --budget "${BUDGET:-small}" --shards "$shards" --tokenizer "$tokenizer" --record "$record" --html "$OUT/$1.html" "${only[@]}" >"$OUT/$1.log" 2>&1
}
running=() status=0
for i in "${!groups[@]}"; do
    trials "$study-$i" "${groups[i]}" &
    running+=($!)
done
for i in "${!groups[@]}"; do
    one=0
    wait "${running[i]}" || one=$?
    cp "$RUN/$study-$i.csv" "$OUT/" 2>/dev/null || true
    tail -n 20 "$OUT/$study-$i.log"
    case $one in
    0) ;;
    124 | 137) echo "errand 4: out of time; the other trials by another call" ;;
    *) status=$one ;;
    esac
done
exit "$status"
