# CUDA 13.0 for building without a GPU, from PyPI's wheels. To be sourced: . docs/gpu-errands/toolkit.sh
#
# Leaves nvcc, CUDA_HOME and the linker's paths in the environment. The first time it downloads 1.4 GB into CUDA_SITE (default: the
# user's cache). 13.0 is pinned: newer toolkits write PTX that a driver of 13.0 refuses. CUDA_COMPUTE_CAP: 90 unless set (H100, H200).
: "${CUDA_SITE:=${XDG_CACHE_HOME:-$HOME/.cache}/cuda-13.0}"
multicoder_toolkit() {
    local cuda=$CUDA_SITE/nvidia/cu13 library function cudarc
    if [ ! -x "$cuda/bin/nvcc" ]; then
        python3 -m pip install -q --no-cache-dir --only-binary=:all: --target "$CUDA_SITE" \
            'cuda-toolkit[nvcc,cudart,cublas,curand,nvrtc,cccl]==13.0.3.0' || return 1
    fi
    chmod +x "$cuda"/bin/* "$cuda"/nvvm/bin/* || return 1
    # nvcc and candle's build scripts look in lib64, and the linker for names without a version.
    [ -e "$cuda/lib64" ] || ln -s lib "$cuda/lib64" || return 1
    for library in libcudart.so.13 libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libnvrtc.so.13; do
        [ -e "$cuda/lib/${library%%.so*}.so" ] || ln -s "$library" "$cuda/lib/${library%%.so*}.so" || return 1
    done
    # The driver's library comes with a driver. To link without one: every function says CUDA_ERROR_STUB_LIBRARY.
    if [ ! -e "$cuda/lib/driver/libcuda.so.1" ]; then
        cudarc=$(find "${CARGO_HOME:-$HOME/.cargo}/registry/src" -maxdepth 2 -name 'cudarc-0.19*' | sort | tail -n 1)
        [ -n "$cudarc" ] || { echo "cudarc's source is not here: run cargo fetch first" >&2; return 1; }
        mkdir -p "$cuda/lib/driver" || return 1
        grep -rhoE 'fn cu[A-Z][A-Za-z0-9_]*' "$cudarc/src/driver/sys" | sort -u |
            while read -r _ function; do echo "int $function(void) { return 34; }"; done |
            cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -x c -o "$cuda/lib/driver/libcuda.so.1" - || return 1
        ln -sf libcuda.so.1 "$cuda/lib/driver/libcuda.so" || return 1
    fi
    export CUDA_HOME=$cuda CUDA_PATH=$cuda CUDA_ROOT=$cuda CUDA_TOOLKIT_ROOT_DIR=$cuda NVCC=$cuda/bin/nvcc
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90} CUDARC_CUDA_VERSION=13000 CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$(nproc)}
    export PATH=$cuda/bin:$PATH LIBRARY_PATH=$cuda/lib:$cuda/lib/driver${LIBRARY_PATH:+:$LIBRARY_PATH}
}
multicoder_toolkit
