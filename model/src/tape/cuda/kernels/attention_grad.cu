// The backward pass of attention, without atomics: one kernel for dq, one for dk and dv, each recomputing the weights.
//
// With P = exp(S - log_sum): dV = Pᵀ·dO, dP = dO·Vᵀ, dS = P∘(dP - rowsum(dO∘O)), dQ = dS·K, dK = dSᵀ·Q (both scaled). Two passes cost
// seven products where one pass with atomic adds into dQ costs five; in return the result is the same at every run.

// Queries of a tile of the kernel for keys: what the registers allow.
#define QUERIES (HEAD == 128 ? 32 : 64)

// rowsum(dO∘O) of each query and head, `NH`. Grid: ceil(N·H / WARPS).
KERNEL __launch_bounds__(THREADS) attention_along(const bf16* out, const bf16* dout, float* along, int rows) {
    int row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) return;
    u64 at = (u64)row * HEAD;
    float sum = 0.0f;
    for (int i = lane * 2; i < HEAD; i += 2 * WARP) {
        u32 a = *(const u32*)(out + at + i), b = *(const u32*)(dout + at + i);
        sum += low_half(a) * low_half(b) + high_half(a) * high_half(b);
    }
    sum = warp_sum(sum);
    if (lane == 0) along[row] = sum;
}

// Grid: (ceil(L / 64), H, B), as the forward pass.
KERNEL __launch_bounds__(THREADS)
    attention_grad_q(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* log_sum,
                     const float* along, const u32* start, const u32* low, bf16* dq, int l, int h, int g) {
    DYNAMIC_SHARED(memory);
    bf16 *queries = (bf16*)memory, *douts = queries + ROWS * PITCH;
    bf16 *keys = douts + ROWS * PITCH, *values = keys + ROWS * PITCH;
    int b = blockIdx.z, head = blockIdx.y, block = gridDim.x - 1 - blockIdx.x, first = block * ROWS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = warp * 16 + lane / 4;
    u64 q_stride = (u64)h * HEAD, kv_stride = (u64)g * HEAD, sequence = (u64)b * l;
    u64 kv_at = sequence * kv_stride + (u64)(head / (h / g)) * HEAD, q_at = sequence * q_stride + (u64)head * HEAD;

    int query[2] = {first + row, first + row + 8}, starts[2] = {0, 0};
    float sums[2] = {0.0f, 0.0f}, alongs[2] = {0.0f, 0.0f};
    for (int i = 0; i < 2; i++) {
        if (query[i] >= l) continue;
        if (start) starts[i] = start[sequence + query[i]];
        sums[i] = log_sum[(sequence + query[i]) * h + head] * LOG2_E;
        alongs[i] = along[(sequence + query[i]) * h + head];
    }
    load_rows(queries, q + q_at, q_stride, first, ROWS, l);
    load_rows(douts, dout + q_at, q_stride, first, ROWS, l);
    float acc[TILES][4], scale = rsqrtf((float)HEAD), by = score_scale();
    clear(acc);
    for (int tile = (low ? (int)low[(u64)b * gridDim.x + block] : 0) / ROWS; tile <= block; tile++) {
        load_rows(keys, k + kv_at, kv_stride, tile * ROWS, ROWS, l);
        load_rows(values, v + kv_at, kv_stride, tile * ROWS, ROWS, l);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        float s[ROWS / 8][4], dp[ROWS / 8][4];
        clear(s);
        clear(dp);
        multiply_rows(s, queries, warp * 16, keys);
        multiply_rows(dp, douts, warp * 16, values);
        int is_edge = tile == block ? 3 : (starts[0] > tile * ROWS) | (starts[1] > tile * ROWS) << 1;
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++) {
            for (int i = 0; i < 4; i++) {
                int key = tile * ROWS + n * 8 + lane % 4 * 2 + i % 2;
                // Before the last tile and after the document's first one, all keys are seen.
                bool seen = !(is_edge >> i / 2 & 1) || is_seen(query[i / 2], key, starts[i / 2]);
                float p = seen ? exp2_fast(s[n][i] * by - sums[i / 2]) : 0.0f;
                s[n][i] = p * (dp[n][i] - alongs[i / 2]);
            }
        }
        multiply_weights(acc, s, keys);
        __syncthreads();
    }
    store_rows(dq + q_at, q_stride, acc, query[0], l, scale, scale);
}

// Grid: (ceil(L / 64), G, B). A block owns 64 keys of a key head and walks over the queries that see them, of all its query heads.
KERNEL __launch_bounds__(THREADS)
    attention_grad_kv(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* log_sum,
                      const float* along, const u32* start, const u32* low, bf16* dk, bf16* dv, int l, int h, int g) {
    DYNAMIC_SHARED(memory);
    bf16 *keys = (bf16*)memory, *values = keys + ROWS * PITCH;
    bf16 *queries = values + ROWS * PITCH, *douts = queries + QUERIES * PITCH;
    float *sums = (float*)(douts + QUERIES * PITCH), *alongs = sums + QUERIES;
    int* starts = (int*)(alongs + QUERIES);
    int b = blockIdx.z, kv_head = blockIdx.y, first = blockIdx.x * ROWS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, key = first + warp * 16 + lane / 4;
    u64 q_stride = (u64)h * HEAD, kv_stride = (u64)g * HEAD, sequence = (u64)b * l;
    u64 kv_at = sequence * kv_stride + (u64)kv_head * HEAD;
    load_rows(keys, k + kv_at, kv_stride, first, ROWS, l);
    load_rows(values, v + kv_at, kv_stride, first, ROWS, l);
    copy_commit();

    float acc_k[TILES][4], acc_v[TILES][4], scale = rsqrtf((float)HEAD), by = score_scale();
    clear(acc_k);
    clear(acc_v);
    for (int head = kv_head * (h / g); head < (kv_head + 1) * (h / g); head++) {
        u64 q_at = sequence * q_stride + (u64)head * HEAD;
        for (int at = first; at < l; at += QUERIES) {
            // The least start among these queries' 64 lies beyond these keys: their documents are later ones.
            if (low && low[(u64)b * gridDim.x + at / ROWS] >= (u32)(first + ROWS)) continue;
            load_rows(queries, q + q_at, q_stride, at, QUERIES, l);
            load_rows(douts, dout + q_at, q_stride, at, QUERIES, l);
            copy_commit();
            for (int i = threadIdx.x; i < QUERIES; i += THREADS) {
                bool valid = at + i < l;
                sums[i] = valid ? log_sum[(sequence + at + i) * h + head] * LOG2_E : 0.0f;
                alongs[i] = valid ? along[(sequence + at + i) * h + head] : 0.0f;
                // No key is as late as this start.
                starts[i] = !valid ? 0x7fffffff : start ? (int)start[sequence + at + i] : 0;
            }
            copy_wait<0>();
            __syncthreads();
            float s[QUERIES / 8][4], dp[QUERIES / 8][4];
            clear(s);
            clear(dp);
            multiply_rows(s, keys, warp * 16, queries);
            multiply_rows(dp, values, warp * 16, douts);
            // Later queries without documents see all of these keys.
            bool is_whole = !start && at >= first + ROWS && at + QUERIES <= l;
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                for (int i = 0; i < 4; i++) {
                    int query = n * 8 + lane % 4 * 2 + i % 2;
                    bool seen = is_whole || is_seen(at + query, key + i / 2 * 8, starts[query]);
                    float p = seen ? exp2_fast(s[n][i] * by - sums[query]) : 0.0f;
                    s[n][i] = p;
                    dp[n][i] = p * (dp[n][i] - alongs[query]);
                }
            }
            multiply_weights(acc_v, s, douts);
            multiply_weights(acc_k, dp, queries);
            __syncthreads();
        }
    }
    copy_wait<0>();
    store_rows(dk + kv_at, kv_stride, acc_k, key, l, scale, scale);
    store_rows(dv + kv_at, kv_stride, acc_v, key, l, 1.0f, 1.0f);
}
