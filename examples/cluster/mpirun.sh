#!/usr/bin/env bash
# Trains on the machines of a host file, with the ranks and threads that fit them.
#
#   examples/cluster/mpirun.sh SHARDS TOKENIZER RUN [train options, such as --set n_steps=1000]
#
# Environment: RANKS (default 4), THREADS of each rank (default 8), HOSTS (default: the file beside this script),
# MODE (data, language_owned, expert), MULTICODER (the program, built with --features mpi).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 3 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
shards=$1 tokenizer=$2 run=$3
shift 3

ranks=${RANKS:-4} threads=${THREADS:-8}
# --map-by with PE: each rank gets cores of its own, as many as it has threads.
exec mpirun -n "$ranks" --hostfile "${HOSTS:-$here/hosts}" \
    --map-by "slot:PE=$threads" --bind-to core -x "RAYON_NUM_THREADS=$threads" \
    "${MULTICODER:-multicoder}" train --preset starter --resume \
    --shards "$shards" --tokenizer "$tokenizer" --out "$run" \
    --set "parallel.mode=${MODE:-language_owned}" --set "parallel.world_size=$ranks" "$@"
