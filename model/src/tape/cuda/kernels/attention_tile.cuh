// Tiles of attention. HEAD (the width of a head, 32, 64 or 128) is a definition of the compiler's command line.
//
// FlashAttention-2 (Dao 2023, arXiv 2307.08691): no score matrix is whole in memory, the forward pass keeps the logarithm of each row's
// sum of exponentials, the backward pass recomputes. Queries q_BLHK, keys k_BLGK and values v_BLGK are bfloat16; G divides H, and query
// head h reads key head h / (H / G). A query sees the keys from its document's first position (start_BL) up to its own.

#define WARPS 4
#define THREADS (WARPS * WARP)
// Rows of a tile of queries and of a tile of keys: 16 for each warp.
#define ROWS (WARPS * 16)
// Width of a row in shared memory: the padding spreads eight rows over all banks.
#define PITCH (HEAD + 8)
#define TILES (HEAD / 8)
#define STEPS (HEAD / 16)

struct Shape {
    int l, h, g;
};

// Starts to copy `rows` rows from `first` of a head into shared memory; zeros beyond `limit`. `stride` is that of positions.
DEVICE void load_rows(bf16* tile, const bf16* head, u64 stride, int first, int rows, int limit) {
    for (int i = threadIdx.x; i < rows * TILES; i += THREADS) {
        int row = i / TILES, column = i % TILES * 8, position = first + row;
        bool valid = position < limit;
        copy_async(tile + row * PITCH + column, head + (valid ? position : 0) * stride + column, valid);
    }
}

DEVICE bool is_seen(int query, int key, int start) { return key <= query && key >= start; }

// What scores are multiplied by before powers of two are taken of them.
DEVICE float score_scale() { return LOG2_E * rsqrtf((float)HEAD); }

// acc[16 x COLUMNS * 8] += a · bᵀ over HEAD: rows of `a` from `row`, rows of `b` from 0, both in shared memory.
template <int COLUMNS> DEVICE void multiply_rows(float (&acc)[COLUMNS][4], const bf16* a, int row, const bf16* b) {
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        u32 fa[4];
        load_a(fa, a, PITCH, row, step * 16);
#pragma unroll
        for (int n = 0; n < COLUMNS; n += 2) {
            u32 fb[4];
            load_b(fb, b, PITCH, n * 8, step * 16);
            mma(acc[n], fa, fb[0], fb[1]);
            mma(acc[n + 1], fa, fb[2], fb[3]);
        }
    }
}

// acc[16 x HEAD] += p · b for p[16 x INNER * 8] as accumulators hold it and b[INNER * 8 x HEAD] in shared memory.
template <int INNER> DEVICE void multiply_weights(float (&acc)[TILES][4], const float (&p)[INNER][4], const bf16* b) {
#pragma unroll
    for (int step = 0; step < INNER / 2; step++) {
        const float(&even)[4] = p[2 * step];
        const float(&odd)[4] = p[2 * step + 1];
        u32 fa[4] = {pack(even[0], even[1]), pack(even[2], even[3]), pack(odd[0], odd[1]), pack(odd[2], odd[3])};
#pragma unroll
        for (int n = 0; n < TILES; n += 2) {
            u32 fb[4];
            load_b_of_rows(fb, b, PITCH, n * 8, step * 16);
            mma(acc[n], fa, fb[0], fb[1]);
            mma(acc[n + 1], fa, fb[2], fb[3]);
        }
    }
}

// Writes `scale` times the rows `row` and `row + 8` of accumulators, those below `limit`.
DEVICE void store_rows(bf16* head, u64 stride, const float (&acc)[TILES][4], int row, int limit, float low, float high) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        if (row < limit) *(u32*)(head + row * stride + n * 8 + column) = pack(acc[n][0] * low, acc[n][1] * low);
        if (row + 8 < limit) {
            *(u32*)(head + (row + 8) * stride + n * 8 + column) = pack(acc[n][2] * high, acc[n][3] * high);
        }
    }
}

template <int N> DEVICE void clear(float (&acc)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.0f;
}
