// Random numbers, comparisons and vectors for the checks, and the launch of a kernel: on the emulator, or, compiled by nvcc with
// ON_DEVICE defined, on a GPU, with the same comparisons:
//
//     nvcc -std=c++17 -arch=native -DON_DEVICE -DHEAD=64 -x cu attention.cpp -o attention && ./attention
#pragma once
#ifdef ON_DEVICE
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
#define FOR_ORDERS
#else
#include "emulate.h"
#define FOR_ORDERS for (emulate::order = 0; emulate::order < 3; emulate::order++)
#endif
#include "../kernels/common.cuh"

#ifdef ON_DEVICE
static void require(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    std::printf("FAILED: %s: %s\n", what, cudaGetErrorString(error));
    std::exit(1);
}

// Memory of the host that the device reads and writes where it is.
template <class T> struct Pinned {
    using value_type = T;
    Pinned() = default;
    template <class U> Pinned(const Pinned<U>&) {}
    T* allocate(size_t n) {
        void* at;
        require(cudaMallocHost(&at, n * sizeof(T) + 16), "memory");
        return (T*)at;
    }
    void deallocate(T* at, size_t) { cudaFreeHost(at); }
    template <class U> bool operator==(const Pinned<U>&) const { return true; }
    template <class U> bool operator!=(const Pinned<U>&) const { return false; }
};
template <class T> using vector = std::vector<T, Pinned<T>>;

template <class... P, class... A> void launch(Dim grid, unsigned threads, void (*kernel)(P...), A... args) {
    int shared = 96 * 1024;
    require(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "shared memory");
    kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared>>>((P)args...);
    require(cudaGetLastError(), "launch");
    require(cudaDeviceSynchronize(), "kernel");
}
#else
template <class T> using vector = std::vector<T>;

template <class... P, class... A> void launch(Dim grid, unsigned threads, void (*kernel)(P...), A... args) {
    emulate::launch(grid, threads, [&] { kernel((P)args...); });
}
#endif

// Bfloat16 by the host: rounded to the nearest, ties to even.
static bf16 half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static uint64_t random_state = 1;
static double uniform() {
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(random_state >> 11) / (double)(1ull << 53);
}
// About -1..1.
static float value() { return (float)(uniform() * 2.0 - 1.0); }

static vector<bf16> random_bf16(size_t n, float scale = 1.0f) {
    vector<bf16> x(n);
    for (auto& a : x) a = half(value() * scale);
    return x;
}
static vector<float> random_float(size_t n, float scale = 1.0f) {
    vector<float> x(n);
    for (auto& a : x) a = value() * scale;
    return x;
}
// Not a number: what a kernel must write, it must write everywhere.
static vector<bf16> poisoned_bf16(size_t n) { return vector<bf16>(n, 0x7fff); }
static vector<float> poisoned_float(size_t n) { return vector<float>(n, NAN); }

static double number(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static double number(float x) { return x; }

static int n_failed = 0, n_checked = 0;

// ‖got - expected‖ / ‖expected‖.
template <class T> void expect_close(const char* what, const vector<T>& got, const vector<double>& expected,
                                     double tolerance) {
    // A result may be zero throughout: then it is measured against a thousandth.
    double difference = 0, norm = 1e-6 * (double)expected.size();
    for (size_t i = 0; i < expected.size(); i++) {
        double d = number(got[i]) - expected[i];
        difference += d * d;
        norm += expected[i] * expected[i];
    }
    double error = std::sqrt(difference / norm);
    bool ok = got.size() == expected.size() && error <= tolerance;
    n_checked++;
    n_failed += !ok;
    if (!ok || std::getenv("VERBOSE")) std::printf("%s: %s: error %.2e, at most %.2e\n", ok ? "ok" : "FAILED", what, error, tolerance);
}

static int finish(const char* name) {
    std::printf("%s: %d comparisons, %d failed\n", name, n_checked, n_failed);
    return n_failed != 0;
}
