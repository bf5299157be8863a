// The optimizer on flat buffers: global norm and clipping, AdamW over all parameters in one launch, Muon's elementwise parts.
//
// Everything is a sum in an order that the grid fixes, and nothing waits for the host: the factor of clipping and whether all is finite
// stay on the device, where the updates read them.

#define THREADS 256

// What a step has to say; the host reads it when the step has ended.
struct Report {
    double loss;
    double norm;
    // What gradients are multiplied by, and whether loss and gradients are finite.
    float scale;
    u32 is_finite;
};

// Sums of squares, one for each block.
KERNEL __launch_bounds__(THREADS) squares(const float* x, double* sums, u64 n) {
    __shared__ double scratch[THREADS];
    double sum = 0.0;
    for (u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * 4; i < n; i += (u64)gridDim.x * THREADS * 4) {
        Four four = *(const Four*)(x + i);
        float part = 0.0f;
        for (int j = 0; j < 4; j++) part += four.values[j] * four.values[j];
        sum += (double)part;
    }
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// report.norm from the `n` sums; report.scale clips it to `clip` where that is positive. report.loss is there already.
KERNEL __launch_bounds__(THREADS) judge(const double* sums, Report* report, int n, float clip) {
    __shared__ double scratch[THREADS];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += THREADS) sum += sums[i];
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x != 0) return;
    double norm = sqrt(sum);
    report->norm = norm;
    report->scale = clip > 0.0f && norm > clip ? (float)(clip / norm) : 1.0f;
    // Comparisons with NaN are false.
    report->is_finite = norm < 1e300 && report->loss < 1e300 && report->loss > -1e300;
}

// One parameter's numbers of this step.
struct Rates {
    // 1 - lr · weight decay, lr over the first moment's bias correction, one over the second's, and whether it has a gradient.
    float keep, lr, by_second;
    u32 is_present;
};

// A chunk of one parameter: it begins at 64 · start of every flat buffer.
struct Chunk {
    u32 start, length, parameter;
};

// AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2); a block for each chunk. Refreshes the bfloat16 weights.
KERNEL __launch_bounds__(THREADS)
    adamw(float* weights, bf16* halves, const float* gradients, float* first, float* second, const Chunk* chunks,
          const Rates* rates, const Report* report, float beta1, float beta2, float eps) {
    Chunk chunk = chunks[blockIdx.x];
    Rates rate = rates[chunk.parameter];
    if (!rate.is_present || !report->is_finite) return;
    float scale = report->scale;
    u64 start = 64ull * chunk.start;
    for (u32 i = threadIdx.x; i < chunk.length; i += THREADS) {
        u64 at = start + i;
        float g = gradients[at] * scale;
        float m = beta1 * first[at] + (1.0f - beta1) * g, v = beta2 * second[at] + (1.0f - beta2) * g * g;
        first[at] = m;
        second[at] = v;
        float w = weights[at] * rate.keep - rate.lr * m / (sqrtf(v * rate.by_second) + eps);
        weights[at] = w;
        halves[at] = to_bf16(w);
    }
}

// Rounds weights to bfloat16.
KERNEL __launch_bounds__(THREADS) round_weights(const float* weights, bf16* halves, u64 n) {
    u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * 8;
    if (i >= n) return;
    float a[8];
    load_eight(a, weights + i);
    store_eight(halves + i, a);
}

// Muon (Jordan et al. 2024), first part: momentum = beta · momentum + g, and the Nesterov direction g + beta · momentum as bfloat16 to
// the matrices of one shape, side by side. A matrix is parameter z of this shape: starts[z] and parameter[z]. Grid: (blocks, matrices);
// sums[z · gridDim.x + x] is the sum of squares of the block's part of the direction.
KERNEL __launch_bounds__(THREADS)
    muon_direction(const float* gradients, float* momentum, bf16* directions, double* sums, const u32* starts,
                   const u32* parameter, const Rates* rates, const Report* report, float beta, u64 n) {
    __shared__ double scratch[THREADS];
    bool acts = rates[parameter[blockIdx.y]].is_present && report->is_finite;
    u64 start = 64ull * starts[blockIdx.y], to = blockIdx.y * n;
    float scale = report->scale;
    double sum = 0.0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (u64)gridDim.x * THREADS) {
        float direction = 0.0f;
        if (acts) {
            float g = gradients[start + i] * scale, m = beta * momentum[start + i] + g;
            momentum[start + i] = m;
            direction = g + beta * m;
        }
        directions[to + i] = to_bf16(direction);
        sum += (double)direction * (double)direction;
    }
    sum = block_sum_double(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// Divides each matrix by its Euclidean norm, so that no singular value is above 1. Grid: as before.
KERNEL __launch_bounds__(THREADS) muon_normalize(bf16* directions, const double* sums, u64 n) {
    double sum = 0.0;
    for (u32 i = 0; i < gridDim.x; i++) sum += sums[blockIdx.y * gridDim.x + i];
    float by = (float)(1.0 / (sqrt(sum) + 1e-7));
    bf16* matrix = directions + blockIdx.y * n;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (u64)gridDim.x * THREADS) {
        matrix[i] = to_bf16(to_float(matrix[i]) * by);
    }
}

// Last part: w = keep · w - size · direction, and the bfloat16 weights. `size` is the learning rate times the shape's factor.
KERNEL __launch_bounds__(THREADS)
    muon_apply(float* weights, bf16* halves, const bf16* directions, const u32* starts, const u32* parameter,
               const Rates* rates, const Report* report, float size, u64 n) {
    Rates rate = rates[parameter[blockIdx.y]];
    if (!rate.is_present || !report->is_finite) return;
    u64 start = 64ull * starts[blockIdx.y], from = blockIdx.y * n;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < n; i += (u64)gridDim.x * THREADS) {
        float w = weights[start + i] * rate.keep - size * to_float(directions[from + i]);
        weights[start + i] = w;
        halves[start + i] = to_bf16(w);
    }
}
