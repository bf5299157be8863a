// Activations, elementwise; eight numbers for each thread. `n` counts eights.

#define THREADS 256

DEVICE u64 eight_of_thread() { return (u64)blockIdx.x * THREADS + threadIdx.x; }

// out = relu(x)² (So et al. 2021, arXiv 2109.08668).
KERNEL __launch_bounds__(THREADS) relu2(const bf16* x, bf16* out, u64 n) {
    u64 i = eight_of_thread();
    if (i >= n) return;
    float a[8];
    load_eight(a, x + 8 * i);
    for (int j = 0; j < 8; j++) a[j] = a[j] > 0.0f ? a[j] * a[j] : 0.0f;
    store_eight(out + 8 * i, a);
}

// Turns the gradient of the result into that of `x`.
KERNEL __launch_bounds__(THREADS) relu2_grad(const bf16* x, bf16* dout, u64 n) {
    u64 i = eight_of_thread();
    if (i >= n) return;
    float a[8], dy[8];
    load_eight(a, x + 8 * i);
    load_eight(dy, dout + 8 * i);
    for (int j = 0; j < 8; j++) dy[j] = a[j] > 0.0f ? 2.0f * a[j] * dy[j] : 0.0f;
    store_eight(dout + 8 * i, dy);
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + exp2_fast(-LOG2_E * x)); }

// out = silu(gate) · up (Shazeer 2020, arXiv 2002.05202).
KERNEL __launch_bounds__(THREADS) swiglu(const bf16* gate, const bf16* up, bf16* out, u64 n) {
    u64 i = eight_of_thread();
    if (i >= n) return;
    float a[8], b[8];
    load_eight(a, gate + 8 * i);
    load_eight(b, up + 8 * i);
    for (int j = 0; j < 8; j++) a[j] = a[j] * sigmoid(a[j]) * b[j];
    store_eight(out + 8 * i, a);
}

// Turns the gradient of the result into that of `up`, and writes that of `gate`.
KERNEL __launch_bounds__(THREADS) swiglu_grad(const bf16* gate, const bf16* up, bf16* dout, bf16* dgate, u64 n) {
    u64 i = eight_of_thread();
    if (i >= n) return;
    float a[8], b[8], dy[8], da[8];
    load_eight(a, gate + 8 * i);
    load_eight(b, up + 8 * i);
    load_eight(dy, dout + 8 * i);
    for (int j = 0; j < 8; j++) {
        float s = sigmoid(a[j]);
        da[j] = dy[j] * b[j] * s * (1.0f + a[j] * (1.0f - s));
        dy[j] *= a[j] * s;
    }
    store_eight(dgate + 8 * i, da);
    store_eight(dout + 8 * i, dy);
}

// Adds `bias` to each row of `x`; 8 divides the width d.
KERNEL __launch_bounds__(THREADS) add_bias(bf16* x, const float* bias, u64 n, int d) {
    u64 i = eight_of_thread();
    if (i >= n) return;
    float a[8], b[8];
    load_eight(a, x + 8 * i);
    load_eight(b, bias + (int)(8 * i % d));
    for (int j = 0; j < 8; j++) a[j] += b[j];
    store_eight(x + 8 * i, a);
}
