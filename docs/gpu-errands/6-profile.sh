#!/usr/bin/env bash
# Errand 6: where the time of a pass of decoding goes, by kernel. Nsight Compute times a stretch of launches while random weights answer one
# client and many; $OUT/profile.log has a table of each. SHAPES and CLIENTS may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
. docs/gpu-errands/machine.sh
start multicoder-lsp
command -v ncu >/dev/null || { echo "SKIPPED profile: no ncu"; exit 1; }
for shape in ${SHAPES:-34m qwen2.5-coder-0.5b}; do
    for clients in ${CLIENTS:-1 32}; do
        echo "== $shape, $clients clients"
        # Past the prompts of the first round.
        timeout 60 ncu --clock-control none --metrics gpu__time_duration.sum --csv --print-units base --launch-skip "${SKIP:-3000}" \
            --launch-count 1000 "$RUN/multicoder-lsp" bench --device cuda --model lsp/model/starter.gguf --shape "$shape" \
            --clients "$clients" --rounds 1 >"$RUN/launches.csv" 2>"$RUN/launches.log" || tail -n 3 "$RUN/launches.log"
        python3 - "$RUN/launches.csv" <<'PYTHON'
import collections, csv, sys

lines = [line for line in open(sys.argv[1]) if line.startswith('"')]
times = collections.defaultdict(list)
for row in csv.DictReader(lines):
    times[row["Kernel Name"].split("(")[0][:90]].append(float(row["Metric Value"].replace(",", "")))
for name, of in sorted(times.items(), key=lambda item: -sum(item[1])):
    print(f"{len(of):6} {sum(of) / 1e3:10.1f} us {sum(of) / len(of) / 1e3:8.2f} us each  {name}")
PYTHON
    done
done 2>&1 | tee "$OUT/profile.log"
