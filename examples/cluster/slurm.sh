#!/usr/bin/env bash
#SBATCH --job-name=multicoder
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
#   sbatch examples/cluster/slurm.sh SHARDS TOKENIZER RUN [train options]
#
# SIGTERM comes two minutes before the end: the ranks save together and leave, and the job, queued again, goes on from there.
# On GPUs: build with --features cuda,nccl,mpi, add --gpus-per-task=1 (each rank then sees one GPU) and the train options
# --device cuda --set compute=bf16 --set parallel.backend=nccl.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 's/^#   //p' "$0" >&2; exit 2; }
shards=$1 tokenizer=$2 run=$3
shift 3

export RAYON_NUM_THREADS=$SLURM_CPUS_PER_TASK
# pmix is how srun starts Open MPI; for MPICH and its relatives it is pmi2. `srun --mpi=list` says what there is.
exec srun --kill-on-bad-exit=1 --mpi="${SLURM_MPI:-pmix}" --cpu-bind=cores \
    "${MULTICODER:-multicoder}" train --preset starter --resume \
    --shards "$shards" --tokenizer "$tokenizer" --out "$run" \
    --set "parallel.mode=${MODE:-language_owned}" --set "parallel.world_size=$SLURM_NTASKS" "$@"
