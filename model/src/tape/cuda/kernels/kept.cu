// Attention of single tokens over the keys and values that are kept of their sequences: [sequence][position][G][HEAD].

#define KEPT_THREADS 256
// Threads that share a key, eight numbers each, and how many such groups a block has.
#define SHARE (HEAD / 8)
#define GROUPS (KEPT_THREADS / SHARE)
// Positions that a group has in flight.
#define TOGETHER 4

// Puts the keys and values of each row where its sequence and position say. A warp for each row; 8 divides the width.
KERNEL __launch_bounds__(WARPS* WARP) keep(const bf16* k, const bf16* v, const u32* sequence, const u32* position,
                                           bf16* keys, bf16* values, int rows, int width, int capacity) {
    int row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    u64 from = (u64)row * width, to = ((u64)sequence[row] * capacity + position[row]) * width;
    for (int i = threadIdx.x % WARP * 8; i < width; i += 8 * WARP) {
        *(Eight*)(keys + to + i) = *(const Eight*)(k + from + i);
        *(Eight*)(values + to + i) = *(const Eight*)(v + from + i);
    }
}

// out[n, h] = Σ softmax(q[n, h] · keys) values over the positions up to position[n]. Grid: (H, rows).
//
// Each group goes over every GROUPS-th position, TOGETHER of them at a time, with a softmax of its own (Milakov and Gimelshein 2018, arXiv 1805.02867); at the end
// the block adds up those of all groups (Dao et al. 2023, Flash-Decoding).
KERNEL __launch_bounds__(KEPT_THREADS)
    attend_kept(const bf16* q, const bf16* keys, const bf16* values, const u32* sequence, const u32* position, bf16* out,
                int h, int g, int capacity) {
    DYNAMIC_SHARED(memory);
    float *tops = (float*)memory, *sums = tops + GROUPS, *parts = sums + GROUPS;
    int head = blockIdx.x, row = blockIdx.y, group = threadIdx.x / SHARE, column = threadIdx.x % SHARE * 8;
    u64 stride = (u64)g * HEAD, at = (u64)sequence[row] * capacity * stride + head / (h / g) * HEAD + column;
    u64 own = ((u64)row * h + head) * HEAD;
    float query[8], acc[8] = {0, 0, 0, 0, 0, 0, 0, 0}, top = -INFINITE, sum = 0.0f, scale = score_scale();
    load_eight(query, q + own + column);
    int last = position[row];
    // Several positions at a time, whose keys and values are all asked for before the first is needed.
    for (int first = group; first - group <= last; first += TOGETHER * GROUPS) {
        float key[TOGETHER][8], value[TOGETHER][8], score[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            // All threads of a warp take part in the sums below, those too whose positions are over.
            int place = first + i * GROUPS;
            u64 from = at + (place <= last ? place : last) * stride;
            load_eight(key[i], keys + from);
            load_eight(value[i], values + from);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            score[i] = 0.0f;
            for (int j = 0; j < 8; j++) score[i] += query[j] * key[i][j];
            for (int mask = SHARE / 2; mask > 0; mask >>= 1) score[i] += shuffle_xor(score[i], mask);
            score[i] = first + i * GROUPS <= last ? score[i] * scale : -INFINITE;
        }
        float higher = top;
        for (int i = 0; i < TOGETHER; i++) higher = fmaxf(higher, score[i]);
        if (higher == -INFINITE) continue;
        float shrink = exp2_fast(top - higher);
        top = higher;
        sum *= shrink;
        for (int j = 0; j < 8; j++) acc[j] *= shrink;
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            float weight = exp2_fast(score[i] - higher);
            sum += weight;
            for (int j = 0; j < 8; j++) acc[j] += weight * value[i][j];
        }
    }
    store_eight(parts + group * HEAD + column, acc);
    if (column == 0) {
        tops[group] = top;
        sums[group] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= HEAD) return;
    float highest = tops[0], total = 0.0f, y = 0.0f;
    for (int i = 1; i < GROUPS; i++) highest = fmaxf(highest, tops[i]);
    for (int i = 0; i < GROUPS; i++) {
        float weight = exp2_fast(tops[i] - highest);
        total += weight * sums[i];
        y += weight * parts[i * HEAD + threadIdx.x];
    }
    out[own + threadIdx.x] = to_bf16(y / total);
}
