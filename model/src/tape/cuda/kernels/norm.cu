// RMSNorm with the residual addition before it, RMSNorm of heads with their rotation, and their gradients. A warp for each row.

#define WARPS 4

// sum = x + add (where there is an `add`), out = sum / rms(sum) · weight, inverse = 1 / rms(sum). Shapes: ND; 8 divides D.
KERNEL __launch_bounds__(WARPS* WARP) rms_norm(const float* x, const bf16* add, float* sum, const float* weight, bf16* out,
                                           float* inverse, int rows, int d, float eps) {
    int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    u64 at = (u64)row * d;
    float squares = 0.0f;
    for (int i = lane * 8; i < d; i += 8 * WARP) {
        float a[8];
        load_eight(a, x + at + i);
        if (add) {
            float b[8];
            load_eight(b, add + at + i);
            for (int j = 0; j < 8; j++) a[j] += b[j];
            store_eight(sum + at + i, a);
        }
        for (int j = 0; j < 8; j++) squares += a[j] * a[j];
    }
    float r = rsqrtf(warp_sum(squares) / d + eps);
    if (lane == 0) inverse[row] = r;
    // Each lane reads what it wrote itself.
    const float* total = add ? sum : x;
    for (int i = lane * 8; i < d; i += 8 * WARP) {
        float a[8], w[8];
        load_eight(a, total + at + i);
        load_eight(w, weight + i);
        for (int j = 0; j < 8; j++) a[j] = a[j] * r * w[j];
        store_eight(out + at + i, a);
    }
}

// With r = 1/rms: dx = r·(w·dy) - x·r³/d·Σ(w·dy·x), dw = Σ dy·x·r. Adds dx to `dsum` where `accumulate` says so, and writes the result
// to `dsum_half`, too, for the products that read it. Sums of dw over a block's rows go to `partial[block]`, of D each; their order
// depends on the grid alone.
KERNEL __launch_bounds__(WARPS* WARP)
    rms_norm_grad(const float* sum, const float* inverse, const float* weight, const bf16* dout, float* dsum,
              bf16* dsum_half, float* partial, int rows, int d, int accumulate) {
    DYNAMIC_SHARED(memory);
    // Column 8·i + j lies at j · d/8 + i, so that a warp's lanes meet different banks.
    float* mine = (float*)memory + threadIdx.x / WARP * d;
    int lane = threadIdx.x % WARP, eights = d / 8;
    for (int i = lane; i < d; i += WARP) mine[i] = 0.0f;
    __syncwarp();
    for (int row = blockIdx.x * WARPS + threadIdx.x / WARP; row < rows; row += gridDim.x * WARPS) {
        u64 at = (u64)row * d;
        float r = inverse[row], along = 0.0f;
        for (int i = lane * 8; i < d; i += 8 * WARP) {
            float x[8], dy[8], w[8];
            load_eight(x, sum + at + i);
            load_eight(dy, dout + at + i);
            load_eight(w, weight + i);
            for (int j = 0; j < 8; j++) {
                along += w[j] * dy[j] * x[j];
                mine[j * eights + i / 8] += dy[j] * x[j] * r;
            }
        }
        along = warp_sum(along) * r * r * r / d;
        for (int i = lane * 8; i < d; i += 8 * WARP) {
            float x[8], dy[8], w[8], dx[8];
            load_eight(x, sum + at + i);
            load_eight(dy, dout + at + i);
            load_eight(w, weight + i);
            for (int j = 0; j < 8; j++) dx[j] = 0.0f;
            if (accumulate) load_eight(dx, dsum + at + i);
            for (int j = 0; j < 8; j++) dx[j] += w[j] * dy[j] * r - x[j] * along;
            store_eight(dsum + at + i, dx);
            store_eight(dsum_half + at + i, dx);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < d; i += WARPS * WARP) {
        float total = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) total += ((float*)memory)[warp * d + i % 8 * eights + i / 8];
        partial[(u64)blockIdx.x * d + i] = total;
    }
}

// Adds the sums over `rows` rows of `partial` to `sum`, in order. A block of 256 threads for 32 columns.
KERNEL __launch_bounds__(256) add_columns(const float* partial, float* sum, int rows, int d) {
    __shared__ float part[8][WARP];
    int column = blockIdx.x * WARP + threadIdx.x % WARP, lane = threadIdx.x / WARP;
    float total = 0.0f;
    if (column < d)
        for (int row = lane; row < rows; row += 8) total += partial[(u64)row * d + column];
    part[lane][threadIdx.x % WARP] = total;
    __syncthreads();
    if (lane == 0 && column < d) {
        for (int i = 1; i < 8; i++) total += part[i][threadIdx.x % WARP];
        sum[column] += total;
    }
}

// The sums over `rows` rows of `dout` by stretch of rows: partial[block] of D each, for the gradient of a bias.
KERNEL __launch_bounds__(256) sum_columns(const bf16* dout, float* partial, int rows, int d) {
    int stretch = (rows + (int)gridDim.x - 1) / (int)gridDim.x, first = blockIdx.x * stretch;
    int last = min(first + stretch, rows);
    for (int i = threadIdx.x * 2; i < d; i += 512) {
        float low = 0.0f, high = 0.0f;
        for (int row = first; row < last; row++) {
            u32 both = *(const u32*)(dout + (u64)row * d + i);
            low += low_half(both);
            high += high_half(both);
        }
        partial[(u64)blockIdx.x * d + i] = low;
        partial[(u64)blockIdx.x * d + i + 1] = high;
    }
}

// Rotates a pair of a head's numbers by an angle (Su et al. 2021, arXiv 2104.09864, in the half-split form); back for sign -1.
DEVICE void rotate(float& a, float& b, float cosine, float sine) {
    float rotated = a * cosine - b * sine;
    b = b * cosine + a * sine;
    a = rotated;
}

// The position of row n: of N sequences of L, unless the rows say theirs.
DEVICE int position_of(const u32* position, int n, int l) { return position ? (int)position[n] : n % l; }

// In place; table: for each position K/2 cosines, then as many sines. A warp for each of the N·H heads.
KERNEL __launch_bounds__(WARPS* WARP)
    rope(bf16* x, const float* table, const u32* position, int heads, int h, int k, int l, float sign) {
    int i = blockIdx.x * WARPS + threadIdx.x / WARP, half = k / 2;
    if (i >= heads) return;
    bf16* head = x + (u64)i * k;
    const float* angles = table + (u64)position_of(position, i / h, l) * k;
    for (int j = threadIdx.x % WARP; j < half; j += WARP) {
        float a = to_float(head[j]), b = to_float(head[j + half]);
        rotate(a, b, angles[j], sign * angles[j + half]);
        head[j] = to_bf16(a);
        head[j + half] = to_bf16(b);
    }
}

// out = rotated(x / rms(x) · weight_K) of each head; inverse = 1 / rms, `NH`.
KERNEL __launch_bounds__(WARPS* WARP)
    head_norm_rope(const bf16* x, const float* weight, const float* table, const u32* position, bf16* out,
                   float* inverse, int heads, int h, int k, int l, float eps) {
    int i = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP, half = k / 2;
    if (i >= heads) return;
    const bf16* head = x + (u64)i * k;
    const float* angles = table + (u64)position_of(position, i / h, l) * k;
    float squares = 0.0f;
    for (int j = lane; j < k; j += WARP) squares += to_float(head[j]) * to_float(head[j]);
    float r = rsqrtf(warp_sum(squares) / k + eps);
    if (lane == 0) inverse[i] = r;
    for (int j = lane; j < half; j += WARP) {
        float a = to_float(head[j]) * r * weight[j], b = to_float(head[j + half]) * r * weight[j + half];
        rotate(a, b, angles[j], angles[j + half]);
        out[(u64)i * k + j] = to_bf16(a);
        out[(u64)i * k + j + half] = to_bf16(b);
    }
}

// Turns the gradient of `out` into that of `x`, in place. Sums for dweight_K go to `partial[block]`, of K each.
KERNEL __launch_bounds__(WARPS* WARP)
    head_norm_rope_grad(const bf16* x, const float* inverse, const float* weight, const float* table, bf16* dout,
                        float* partial, int heads, int h, int k, int l) {
    DYNAMIC_SHARED(memory);
    float* mine = (float*)memory + threadIdx.x / WARP * k;
    int lane = threadIdx.x % WARP, half = k / 2;
    for (int j = lane; j < half; j += WARP) mine[j] = mine[j + half] = 0.0f;
    for (int i = blockIdx.x * WARPS + threadIdx.x / WARP; i < heads; i += gridDim.x * WARPS) {
        const bf16* head = x + (u64)i * k;
        bf16* dhead = dout + (u64)i * k;
        const float* angles = table + (u64)(i / h % l) * k;
        float r = inverse[i], along = 0.0f;
        for (int j = lane; j < half; j += WARP) {
            float a = to_float(dhead[j]), b = to_float(dhead[j + half]);
            float x_a = to_float(head[j]), x_b = to_float(head[j + half]);
            rotate(a, b, angles[j], -angles[j + half]);
            along += weight[j] * a * x_a + weight[j + half] * b * x_b;
            mine[j] += a * x_a * r;
            mine[j + half] += b * x_b * r;
        }
        along = warp_sum(along) * r * r * r / k;
        for (int j = lane; j < half; j += WARP) {
            float a = to_float(dhead[j]), b = to_float(dhead[j + half]);
            rotate(a, b, angles[j], -angles[j + half]);
            dhead[j] = to_bf16(weight[j] * a * r - to_float(head[j]) * along);
            dhead[j + half] = to_bf16(weight[j + half] * b * r - to_float(head[j + half]) * along);
        }
    }
    __syncthreads();
    for (int j = threadIdx.x; j < k; j += WARPS * WARP) {
        float total = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) total += ((float*)memory)[warp * k + j];
        partial[(u64)blockIdx.x * k + j] = total;
    }
}
