// A device of one thread of the host: blocks run one after another, a block's threads as fibers that yield at barriers.
//
// It checks mathematics and indexing, and finds barriers that some threads do not reach. Dynamic shared memory begins each block as NaN
// and ends before a closed page. The order of the threads between barriers, and when asynchronous copies arrive, is a choice (`order`), so
// that a missing barrier shows as a wrong result of one of them.
#pragma once
#define EMULATE
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

#define KERNEL static void
#define DEVICE static inline
#define DEVICE_METHOD inline
#define __device__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static
#define INFINITE INFINITY
#define DYNAMIC_SHARED(name) unsigned char* name = emulate::dynamic_shared
typedef uint32_t u32_;

namespace emulate {
enum Wait { NONE, WARP_BARRIER, BLOCK_BARRIER, DONE };
struct PendingCopy {
    void* to;
    const void* from;
    bool valid;
};
struct Fiber {
    ucontext_t context;
    jmp_buf jump;
    std::vector<char> stack;
    Wait wait = NONE;
    bool started = false;
    unsigned thread;
    std::vector<std::vector<PendingCopy>> groups;
    std::vector<PendingCopy> open;
};
static unsigned char* dynamic_shared;
static size_t shared_bytes = 96 * 1024;
static std::vector<Fiber> fibers;
static std::function<void()> body;
static unsigned current;
static int order = 0;
static jmp_buf scheduler;
// What the lanes of each warp lay out for each other.
static u32_ exchange[32][32][8];
static const void* addresses[32][32];

static void enter() {
    body();
    fibers[current].wait = DONE;
    _longjmp(scheduler, 1);
}

static void yield(Wait wait) {
    Fiber& fiber = fibers[current];
    fiber.wait = wait;
    if (_setjmp(fiber.jump) == 0) _longjmp(scheduler, 1);
}

static void resume(unsigned i) {
    current = i;
    threadIdx = {fibers[i].thread, 0, 0};
    fibers[i].wait = NONE;
    if (_setjmp(scheduler) != 0) return;
    if (fibers[i].started) _longjmp(fibers[i].jump, 1);
    fibers[i].started = true;
    setcontext(&fibers[i].context);
}

static void fail(const char* why) {
    std::printf("FAILED: %s in block (%u, %u, %u)\n", why, blockIdx.x, blockIdx.y, blockIdx.z);
    std::exit(1);
}

// How many threads of first..last wait for `wait`.
static unsigned waiting(unsigned first, unsigned last, Wait wait) {
    unsigned n = 0;
    for (unsigned i = first; i < last; i++) n += fibers[i].wait == wait;
    return n;
}

// Runs the threads of a warp until they wait for their warp or for more, and lets them go on where all of the warp have met.
static bool step_warp(unsigned first, unsigned last) {
    for (unsigned i = first; i < last; i++) {
        unsigned thread = order == 2 ? last - 1 - (i - first) : i;
        if (fibers[thread].wait == NONE) resume(thread);
    }
    unsigned n = waiting(first, last, WARP_BARRIER);
    if (n == 0) return false;
    if (n != last - first) fail("a warp does not meet");
    for (unsigned i = first; i < last; i++) fibers[i].wait = NONE;
    return true;
}

// Lets the block go on where all of it have met; false when all have ended.
static bool release() {
    unsigned n = fibers.size(), n_done = waiting(0, n, DONE);
    if (n_done == n) return false;
    if (n_done > 0) fail("a barrier after some threads have ended");
    if (waiting(0, n, BLOCK_BARRIER) != n) fail("threads wait for different barriers");
    for (Fiber& fiber : fibers) fiber.wait = NONE;
    return true;
}

static void place_shared() {
    const size_t room = 256 * 1024;
    static unsigned char* pages = nullptr;
    if (!pages) {
        pages = (unsigned char*)mmap(nullptr, room + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages + room, 4096, PROT_NONE) != 0) fail("no memory");
    }
    dynamic_shared = pages + room - (shared_bytes + 15) / 16 * 16;
}

static void run_block(unsigned threads) {
    fibers.resize(threads);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.stack.resize(128 * 1024);
        fiber.started = false;
        fiber.wait = NONE;
        fiber.thread = i;
        fiber.groups.clear();
        fiber.open.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    unsigned warps = (threads + 31) / 32;
    do {
        // All warps side by side; or one as far as it gets before the next, from the first or from the last.
        for (bool goes = true; goes;) {
            goes = false;
            for (unsigned i = 0; i < warps; i++) {
                unsigned first = (order == 2 ? warps - 1 - i : i) * 32, last = first + 32 < threads ? first + 32 : threads;
                while (step_warp(first, last)) {
                    goes = true;
                    if (order == 0) break;
                }
            }
        }
    } while (release());
}

template <class F> void launch(Dim grid, unsigned threads, F kernel) {
    gridDim = grid;
    blockDim = {threads, 1, 1};
    body = kernel;
    place_shared();
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = {x, y, z};
                std::memset(dynamic_shared, 0xff, shared_bytes);
                run_block(threads);
            }
}
}  // namespace emulate

static inline void __syncthreads() { emulate::yield(emulate::BLOCK_BARRIER); }
static inline void __syncwarp() { emulate::yield(emulate::WARP_BARRIER); }
static inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

static inline float bits_to_float(u32_ bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline u32_ float_to_bits(float x) {
    u32_ bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
static inline u32_ round_to_bf16(float x) {
    u32_ bits = float_to_bits(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
static inline u32_ pack(float low, float high) { return round_to_bf16(low) | round_to_bf16(high) << 16; }
static inline float exp2_fast(float x) { return std::exp2(x); }

static inline u32_ (&lanes())[32][8] { return emulate::exchange[threadIdx.x / 32]; }

static inline float shuffle_xor(float x, int mask) {
    unsigned lane = threadIdx.x % 32;
    lanes()[lane][0] = float_to_bits(x);
    __syncwarp();
    float other = bits_to_float(lanes()[lane ^ mask][0]);
    __syncwarp();
    return other;
}

// Element i of a fragment lies at these rows and columns (PTX ISA, "mma.m16n8k16").
static inline void mma(float (&d)[4], const u32_ (&a)[4], u32_ b0, u32_ b1) {
    unsigned lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) lanes()[lane][i] = a[i];
    lanes()[lane][4] = b0;
    lanes()[lane][5] = b1;
    __syncwarp();
    auto half = [](u32_ both, int k) { return bits_to_float(k & 1 ? both & 0xffff0000u : both << 16); };
    auto a_at = [&](int row, int k) { return half(lanes()[row % 8 * 4 + k % 8 / 2][row / 8 + 2 * (k / 8)], k); };
    auto b_at = [&](int k, int n) { return half(lanes()[n * 4 + k % 8 / 2][4 + k / 8], k); };
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += a_at(row, k) * b_at(k, n);
        d[i] += sum;
    }
    __syncwarp();
}

static inline void matrices(u32_ (&r)[4], const void* row, bool transposed) {
    unsigned lane = threadIdx.x % 32;
    if ((uintptr_t)row % 16 != 0) emulate::fail("ldmatrix at an address that 16 does not divide");
    const void** rows = emulate::addresses[threadIdx.x / 32];
    rows[lane] = row;
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        auto at = [&](int y, int x) { return (u32_)((const unsigned short*)rows[8 * i + y])[x]; };
        int y = lane / 4, x = lane % 4 * 2;
        r[i] = transposed ? at(x, y) | at(x + 1, y) << 16 : at(y, x) | at(y, x + 1) << 16;
    }
    __syncwarp();
}
static inline void load_matrices(u32_ (&r)[4], const unsigned short* row) { matrices(r, row, false); }
static inline void load_matrices_transposed(u32_ (&r)[4], const unsigned short* row) { matrices(r, row, true); }

static inline void arrive(const emulate::PendingCopy& copy) {
    if (copy.valid) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
}

// Copies arrive when they are waited for, not before; or at once (`order` 1).
static inline void copy_async(void* shared, const void* global, bool valid) {
    if ((uintptr_t)shared % 16 != 0 || (valid && (uintptr_t)global % 16 != 0)) emulate::fail("an unaligned copy");
    if (emulate::order == 1) arrive({shared, global, valid});
    else emulate::fibers[emulate::current].open.push_back({shared, global, valid});
}
static inline void copy_commit() {
    auto& fiber = emulate::fibers[emulate::current];
    fiber.groups.push_back(std::move(fiber.open));
    fiber.open.clear();
}
template <int N> static inline void copy_wait() {
    auto& groups = emulate::fibers[emulate::current].groups;
    while (groups.size() > N) {
        for (auto& copy : groups.front()) arrive(copy);
        groups.erase(groups.begin());
    }
}
