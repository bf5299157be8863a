// What all kernels share: bfloat16, sums over warps and blocks, tensor-core products. Put before each kernel file by the host.
//
// No header of the toolkit is needed. With EMULATE defined, emulate/emulate.h stands in for the device, and the same text compiles as
// C++: only the functions between `#ifndef EMULATE` and its end exist twice.

typedef unsigned short bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define WARP 32

#ifndef EMULATE
#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
#define INFINITE __int_as_float(0x7f800000)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }

// Two float32 numbers to the nearest bfloat16 ones; `low` has the lower address.
DEVICE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// d += a · b for a 16x16 (row-major), b 16x8 (column-major); fragments as PTX ISA, "mma.m16n8k16 with bf16" lays them out.
DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// Four 8x8 matrices; lane i gives the address of row i%8 of matrix i/8.
DEVICE void load_matrices(u32 (&r)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void load_matrices_transposed(u32 (&r)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts to copy 16 bytes to shared memory; zeros where `valid` is false.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most N groups of this thread's copies are under way.
template <int N> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
#endif

#define LOG2_E 1.4426950408889634f
#define LN_2 0.6931471805599453f

DEVICE float to_float(bf16 x) { return bits_to_float((u32)x << 16); }
DEVICE bf16 to_bf16(float x) { return (bf16)(pack(x, 0.0f) & 0xffffu); }
DEVICE float low_half(u32 both) { return bits_to_float(both << 16); }
DEVICE float high_half(u32 both) { return bits_to_float(both & 0xffff0000u); }

struct alignas(16) Eight {
    u32 pairs[4];
};

struct alignas(16) Four {
    float values[4];
};

// Eight bfloat16 numbers at an address that 16 divides.
DEVICE void load_eight(float (&x)[8], const bf16* at) {
    Eight eight = *(const Eight*)at;
    for (int i = 0; i < 4; i++) {
        x[2 * i] = low_half(eight.pairs[i]);
        x[2 * i + 1] = high_half(eight.pairs[i]);
    }
}

DEVICE void load_eight(float (&x)[8], const float* at) {
    Four low = *(const Four*)at, high = *(const Four*)(at + 4);
    for (int i = 0; i < 4; i++) {
        x[i] = low.values[i];
        x[i + 4] = high.values[i];
    }
}

DEVICE void store_eight(bf16* at, const float (&x)[8]) {
    Eight eight;
    for (int i = 0; i < 4; i++) eight.pairs[i] = pack(x[2 * i], x[2 * i + 1]);
    *(Eight*)at = eight;
}

DEVICE void store_eight(float* at, const float (&x)[8]) {
    Four low, high;
    for (int i = 0; i < 4; i++) {
        low.values[i] = x[i];
        high.values[i] = x[i + 4];
    }
    *(Four*)at = low;
    *(Four*)(at + 4) = high;
}

DEVICE float warp_sum(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x += shuffle_xor(x, mask);
    return x;
}

DEVICE float warp_max(float x) {
    for (int mask = 16; mask > 0; mask >>= 1) x = fmaxf(x, shuffle_xor(x, mask));
    return x;
}

// Fragment a of rows row..row+16 and columns k..k+16 of a matrix in shared memory.
DEVICE void load_a(u32 (&a)[4], const bf16* matrix, int width, int row, int k) {
    int lane = threadIdx.x % WARP, i = lane / 8;
    load_matrices(a, matrix + (row + (i & 1) * 8 + lane % 8) * width + k + (i >> 1) * 8);
}

// The same of the matrix whose transpose is in shared memory.
DEVICE void load_a_of_transposed(u32 (&a)[4], const bf16* matrix, int width, int row, int k) {
    int lane = threadIdx.x % WARP, i = lane / 8;
    load_matrices_transposed(a, matrix + (k + (i >> 1) * 8 + lane % 8) * width + row + (i & 1) * 8);
}

// Fragments b of columns n..n+8 (b[0], b[1]) and n+8..n+16 (b[2], b[3]) for a matrix that is stored by column: [n][k].
DEVICE void load_b(u32 (&b)[4], const bf16* matrix, int width, int n, int k) {
    int lane = threadIdx.x % WARP, i = lane / 8;
    load_matrices(b, matrix + (n + (i >> 1) * 8 + lane % 8) * width + k + (i & 1) * 8);
}

// The same for a matrix that is stored by row: [k][n].
DEVICE void load_b_of_rows(u32 (&b)[4], const bf16* matrix, int width, int n, int k) {
    int lane = threadIdx.x % WARP, i = lane / 8;
    load_matrices_transposed(b, matrix + (k + (i & 1) * 8 + lane % 8) * width + n + (i >> 1) * 8);
}

// The sum over the block's threads, in each of them. `scratch` has a place for each warp.
DEVICE float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < (int)blockDim.x / WARP; warp++) sum += scratch[warp];
    return sum;
}

// The same of float64: a place of `scratch` for each thread, whose number is a power of two.
DEVICE double block_sum_double(double x, double* scratch) {
    scratch[threadIdx.x] = x;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    __syncthreads();
    return scratch[0];
}
