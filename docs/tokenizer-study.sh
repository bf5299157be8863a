#!/usr/bin/env bash
# Compares tokenizers by the bytes of a token and by what a small model makes of each; prints one Markdown table.
#
#   docs/tokenizer-study.sh SHARDS OUT
#
# Tokenizers of VOCABS entries (8192 16384 32768) whose merges cross single spaces or stay within words, and one of the middle size whose
# blanks are text. With each a model of PRESET (smoke) is trained for STEPS steps (400) once for each of SEEDS (1). A step is SEQUENCES
# sequences (32) of SEQUENCE_BYTES bytes (480): the models see the same amount of text and as much of it at once, in fewer tokens where
# a token has more bytes. All languages are drawn alike, as the average over them counts them. SAMPLE_BYTES (24000000) is what a
# tokenizer learns from, EVAL_BYTES (200000) what is measured of a language of the valid split. MODEL_SHARDS (SHARDS) is what the models
# learn from and are measured on: each tokenizer has to read it once. MULTICODER names the program.
# What is in OUT already is not made again; a model whose training was ended goes on.
set -euo pipefail
[ $# = 2 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
shards=$1 out=$2
program=${MULTICODER:-multicoder} preset=${PRESET:-smoke} steps=${STEPS:-400} sequences=${SEQUENCES:-32} sequence_bytes=${SEQUENCE_BYTES:-480}
sample_bytes=${SAMPLE_BYTES:-24000000} eval_bytes=${EVAL_BYTES:-200000}
model_shards=${MODEL_SHARDS:-$shards}
read -ra vocabs <<<"${VOCABS:-8192 16384 32768}"
read -ra seeds <<<"${SEEDS:-1}"
mkdir -p "$out"

# quietly LOG COMMAND...: the end of what it said, where it fails.
quietly() {
    local log=$1
    shift
    "$@" >"$log" 2>&1 || { tail -n 5 "$log" >&2; exit 1; }
}

names=()
# tokenizer NAME VOCAB OPTION...
tokenizer() {
    local name=$1 vocab=$2
    shift 2
    names+=("$name")
    [ -e "$out/$name.json" ] || quietly "$out/$name.log" "$program" tokenizer train --shards "$shards" --vocab-size "$vocab" \
        --sample-bytes "$sample_bytes" --out "$out/$name.json" "$@"
}
for vocab in "${vocabs[@]}"; do
    tokenizer "$vocab-across" "$vocab" --across-spaces
    tokenizer "$vocab-within" "$vocab"
done
middle=${vocabs[${#vocabs[@]} / 2]}
tokenizer "$middle-across-blanks-as-text" "$middle" --across-spaces --no-blank-runs

files=("${names[@]/%/.json}")
"$program" tokenizer compare --shards "$shards" --max-bytes-per-language "$eval_bytes" --json "${files[@]/#/$out/}" >"$out/compare.json"

# tokens NAME: a sequence of SEQUENCE_BYTES bytes in tokens.
tokens() {
    python3 - "$out/compare.json" "$1.json" "$sequence_bytes" <<'PYTHON'
import json, pathlib, sys

compared = {pathlib.Path(of["path"]).name: of["macro_average"] for of in json.load(open(sys.argv[1]))["tokenizers"]}
print(max(16, round(int(sys.argv[3]) / compared[sys.argv[2]])))
PYTHON
}

for name in "${names[@]}"; do
    length=$(tokens "$name")
    for seed in "${seeds[@]}"; do
        run=$out/$name-$seed
        if [ ! -e "$run.eval.json" ]; then
            resume=()
            [ ! -e "$run/checkpoints" ] || resume=(--resume)
            quietly "$run.log" "$program" train --preset "$preset" "${resume[@]}" --shards "$model_shards" --tokenizer "$out/$name.json" --out "$run" \
                --set "seed=$seed" --set "n_steps=$steps" --set max_hours=0 --set eval.every_steps=0 --set checkpoint.every_steps=200 \
                --set "data.sequence_tokens=$length" --set "data.window_tokens=$((length > 24 ? length - 8 : 16))" \
                --set "data.batch_tokens=$((length * sequences))" --set "data.micro_batch_tokens=$((length * sequences))" \
                --set data.language_temperature=1e9 --set "model.context_tokens=$length"
            quietly "$run.eval.log" "$program" eval --model "$run" --shards "$model_shards" --split valid --ngram off --copy off --lines 0 \
                --max-bytes-per-language "$eval_bytes" --json "$run.eval.part"
            mv "$run.eval.part" "$run.eval.json"
        fi
    done
done

python3 - "$out" "${seeds[*]}" "${names[@]}" <<'PYTHON'
import json, pathlib, statistics, sys

out, seeds, names = pathlib.Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3:]
compared = {pathlib.Path(of["path"]).stem: of for of in json.load(open(out / "compare.json"))["tokenizers"]}

def spread(values, digits):
    middle = statistics.mean(values)
    return f"{middle:.{digits}f}" + (f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else "")

print("| tokenizer | entries | bytes a token | parameters, millions | active | bits a byte | kB a second |")
print("|---|--:|--:|--:|--:|--:|--:|")
for name in names:
    of = compared[name]
    evaluations = [json.load(open(out / f"{name}-{seed}.eval.json")) for seed in seeds]
    bits = [evaluation["macro_average"]["model"]["bits_per_byte"] for evaluation in evaluations]
    steps = [[json.loads(line) for line in open(out / f"{name}-{seed}" / "metrics.jsonl")] for seed in seeds]
    speeds = [statistics.median(s["tokens_per_s"] for s in run if s["kind"] == "train") * of["macro_average"] / 1e3 for run in steps]
    model = evaluations[0]["model"]
    print(f"| {name} | {of['vocab_size']} | {of['macro_average']:.3f} | {model['n_parameters'] / 1e6:.2f} | {model['n_active_parameters'] / 1e6:.2f}"
          f" | {spread(bits, 4)} | {spread(speeds, 0)} |")
PYTHON
