// Attention of single tokens over the keys and values that are kept of their sequences: [sequence][position][G][HEAD].

#define KEPT_THREADS 256
// Threads that share a key, eight numbers each, and how many such groups a block has.
#define SHARE (HEAD / 8)
#define GROUPS (KEPT_THREADS / SHARE)

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
// Each group goes over every GROUPS-th position with a softmax of its own (Milakov and Gimelshein 2018, arXiv 1805.02867); at the end
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
    for (int first = 0; first <= last; first += GROUPS) {
        // All threads of a warp take part in the sums below, those too whose positions are over.
        bool is_seen = first + group <= last;
        u64 from = at + (is_seen ? first + group : last) * stride;
        float key[8], value[8], score = 0.0f;
        load_eight(key, keys + from);
        load_eight(value, values + from);
        for (int j = 0; j < 8; j++) score += query[j] * key[j];
        for (int mask = SHARE / 2; mask > 0; mask >>= 1) score += shuffle_xor(score, mask);
        if (!is_seen) continue;
        float higher = fmaxf(top, score * scale), shrink = exp2_fast(top - higher), weight = exp2_fast(score * scale - higher);
        top = higher;
        sum = sum * shrink + weight;
        for (int j = 0; j < 8; j++) acc[j] = acc[j] * shrink + weight * value[j];
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
