// Cross-entropy of a block of rows of logits: the loss of each row, and its gradient over the logits, in place.
//
// Logits exist for a block of rows only, which fits the cache (Wijmans et al. 2024, arXiv 2411.09009, give the memory argument).

#define THREADS 256
#define IGNORE 0xffffffffu

// A logit, bounded by `cap` where that is not 0: cap * tanh(z / cap). `slope` is its derivative.
DEVICE float softcap(float z, float cap, float* slope) {
    *slope = 1.0f;
    if (cap == 0.0f) return z;
    float tanh = 1.0f - 2.0f / (exp2_fast(2.0f * LOG2_E * z / cap) + 1.0f);
    *slope = 1.0f - tanh * tanh;
    return cap * tanh;
}

// logits: `rows` rows of `pitch` bfloat16 numbers, of which `v` count; 8 divides the pitch. Afterwards they are `scale` times the gradient
// of the summed loss with respect to them. nll[row] in nats; zero, as the gradient, where the target is not counted. A block for each row.
KERNEL __launch_bounds__(THREADS)
    softmax_loss(bf16* logits, const u32* target, const float* scale, float* nll, int v, int pitch, float cap) {
    __shared__ float scratch[THREADS / WARP];
    __shared__ float tops[THREADS / WARP];
    bf16* row = logits + (u64)blockIdx.x * pitch;
    u32 wanted = target[blockIdx.x];
    float zeros[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    if (wanted == IGNORE) {
        for (int i = threadIdx.x * 8; i < pitch; i += THREADS * 8) store_eight(row + i, zeros);
        if (threadIdx.x == 0) nll[blockIdx.x] = 0.0f;
        return;
    }
    float top = -INFINITE, sum = 0.0f;
    for (int i = threadIdx.x * 8; i < pitch; i += THREADS * 8) {
        float a[8], slope, eight_top = top;
        load_eight(a, row + i);
        for (int j = 0; j < 8; j++) {
            a[j] = i + j < v ? softcap(a[j], cap, &slope) * LOG2_E : -INFINITE;
            eight_top = fmaxf(eight_top, a[j]);
        }
        sum *= exp2_fast(top - eight_top);
        for (int j = 0; j < 8; j++) sum += exp2_fast(a[j] - eight_top);
        top = eight_top;
    }
    float warp_top = warp_max(top);
    if (threadIdx.x % WARP == 0) tops[threadIdx.x / WARP] = warp_top;
    __syncthreads();
    float all = tops[0];
    for (int warp = 1; warp < THREADS / WARP; warp++) all = fmaxf(all, tops[warp]);
    // A thread beyond the row's end has seen nothing: its sum is zero.
    sum = block_sum(top == -INFINITE ? 0.0f : sum * exp2_fast(top - all), scratch);
    float log_sum = all + log2f(sum), by = *scale, slope;
    if (threadIdx.x == 0) nll[blockIdx.x] = log_sum * LN_2 - softcap(to_float(row[wanted]), cap, &slope);
    __syncthreads();
    for (int i = threadIdx.x * 8; i < pitch; i += THREADS * 8) {
        float a[8];
        load_eight(a, row + i);
        for (int j = 0; j < 8; j++) {
            float z = softcap(a[j], cap, &slope), p = exp2_fast(z * LOG2_E - log_sum);
            // What pads a row may be no number.
            a[j] = i + j < v ? by * slope * (p - (i + j == (int)wanted ? 1.0f : 0.0f)) : 0.0f;
        }
        store_eight(row + i, a);
    }
}

// sums[b] = Σ nll over the `l` rows of sequence b, a block for each; float64, in an order that the threads fix.
KERNEL __launch_bounds__(THREADS) sequence_losses(const float* nll, double* sums, int l) {
    __shared__ double scratch[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < l; i += THREADS) sum += (double)nll[(u64)blockIdx.x * l + i];
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// total += Σ sums over `n` sequences, in one block; a step's loss is the sum of many.
KERNEL __launch_bounds__(THREADS) add_losses(const double* sums, double* total, int n) {
    __shared__ double scratch[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += sums[i];
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) *total += sum;
}
