# What every errand does first on the machine with the GPU. To be sourced, in the repository's root.
#
# Unpacks target/gpu into target/gpu-run, which is kept between calls, and finds the CUDA libraries: PyTorch's, else a toolkit's.
set -euo pipefail
export PYTHONUNBUFFERED=1
OUT=${OUT:-$PWD/target/gpu-out}
RUN=$PWD/target/gpu-run
DEVICE=${DEVICE:-cuda}
mkdir -p "$OUT" "$RUN"

unpack() {
    [ ! -x "$RUN/$1" ] || [ "target/gpu/$1.xz" -nt "$RUN/$1" ] || return 0
    [ -f "target/gpu/$1.xz" ] || { echo "target/gpu/$1.xz is not here: run docs/gpu-errands/pack.sh and carry target/gpu" >&2; exit 1; }
    if command -v xz >/dev/null; then
        xz -dc "target/gpu/$1.xz" >"$RUN/$1.part"
    else
        python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' \
            "target/gpu/$1.xz" "$RUN/$1.part"
    fi
    chmod +x "$RUN/$1.part"
    mv "$RUN/$1.part" "$RUN/$1"
}

# The wheels that PyTorch came with; the driver's own library stands elsewhere.
wheels=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0] + "/cu13/lib")' 2>/dev/null || true)
for folder in "$wheels" "${CUDA_HOME:-/usr/local/cuda}/lib64" /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
    [ ! -d "$folder" ] || LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
done
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}

# start NAME: unpacks a program and stops here, with their names, if it lacks libraries.
start() {
    unpack "$1"
    local missing
    missing=$(ldd "$RUN/$1" | sed -n 's/^[[:space:]]*\(.*\) => not found/\1/p' | tr '\n' ' ')
    [ -z "$missing" ] || { echo "$1: missing $missing(LD_LIBRARY_PATH is $LD_LIBRARY_PATH)" >&2; exit 1; }
}

# data: where shards and tokenizer.json are: DATA, else what the last call carried. Fails, with the reason, where there are none.
data() {
    local folder=${DATA:-target/gpu}
    [ -d "$folder/shards/train" ] && [ -f "$folder/tokenizer.json" ] && echo "$folder" && return 0
    echo "$folder: no shards/train or tokenizer.json: SHARDS=DIR TOKENIZER=FILE docs/gpu-errands/pack.sh, or DATA=FOLDER" >&2
    return 1
}
