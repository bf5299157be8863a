#!/usr/bin/env bash
# Measures two ranks beside one on a machine with two free cores: the table of docs/scaling.md.
#
#   docs/measure-scaling.sh SHARDS TOKENIZER [ROUNDS]
#
# One thread and one core a rank, the steps of one rank and of two in turns. Prints for each mode the median of the rounds, the least
# and the greatest, and how often one rank's speed that is. MULTICODER names the program, built with --features mpi.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
shards=$1 tokenizer=$2 rounds=${3:-5}
program=${MULTICODER:-multicoder}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export RAYON_NUM_THREADS=1

# run ROUTER MODE LAUNCHER...: one run of 40 steps.
run() {
    local router=$1 mode=$2
    shift 2
    rm -rf "$folder/run"
    "$@" "$program" train --preset smoke --shards "$shards" --tokenizer "$tokenizer" --out "$folder/run" \
        --set compute=f32 --set max_hours=0 --set n_steps=40 --set eval.every_steps=0 --set checkpoint.every_steps=0 \
        --set "model.moe.router={ kind = \"$router\" }" --set "parallel.mode=$mode" >"$folder/log" 2>&1 ||
        { tail -n 5 "$folder/log" >&2; exit 1; }
    mv "$folder/run/metrics.jsonl" "$folder/$router $mode $round"
}

for ((round = 1; round <= rounds; round++)); do
    for pair in "pl_shared language_owned" "token expert"; do
        read -r router second <<<"$pair"
        run "$router" single taskset -c 0
        for mode in data "$second"; do
            run "$router" "$mode" mpirun --allow-run-as-root --bind-to core -n 2
        done
    done
done

python3 - "$folder" <<'PYTHON'
import json, pathlib, statistics, sys

runs = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("* * *")):
    router, mode, _ = path.name.split()
    steps = [step for step in map(json.loads, path.open()) if step["kind"] == "train"][4:]
    runs.setdefault((router, mode), []).append([statistics.median(s[key] for s in steps) for key in ("tokens_per_s", "comm_share", "comm_bytes", "comm_messages")])
for (router, mode), rounds in sorted(runs.items(), key=lambda run: (run[0][0], run[0][1] != "single")):
    speed, share, sent, messages = zip(*rounds)
    alone = statistics.median(numbers[0] for numbers in runs[router, "single"])
    print(f"{router:10} {mode:15} {statistics.median(speed):8.0f} tokens/s ({min(speed):.0f} to {max(speed):.0f}) {statistics.median(speed) / alone:5.2f} times one,"
          f" waits {statistics.median(share):.0%}, {statistics.median(sent):.0f} bytes and {statistics.median(messages):.0f} messages a step")
PYTHON
