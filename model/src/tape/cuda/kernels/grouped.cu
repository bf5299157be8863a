// Products of stretches of rows with the weights of their experts, all in one launch.
//
// Each block makes a tile of 128 x 128 of one result, 8 warps of 32 x 64, the inner dimension in steps of 32 with two stages of
// asynchronous copies. It serves plans whose stretches are too short for a product of the library each.

#define TILE 128
#define STEP 32
#define THREADS 256
// Widths in shared memory of tiles that are stored with the inner dimension along the row, and across it.
#define PITCH_ALONG (STEP + 8)
#define PITCH_ACROSS (TILE + 8)
// Elements of one stage of one operand: the larger of the two forms.
#define STAGE (TILE * PITCH_ALONG)

// A result of M x N: element (m, k) of the left operand and (k, n) of the right one, where valid.
struct Operand {
    const bf16* values;
    u64 stride;
    // Rows in memory and columns that exist.
    int last, columns;
};

// Starts to copy a tile of TILE x STEP whose rows in memory are rows of the result (along), from (row, k).
DEVICE void load_along(bf16* tile, const Operand& from, int row, int k) {
    for (int i = threadIdx.x; i < TILE * STEP / 8; i += THREADS) {
        int y = i / (STEP / 8), x = i % (STEP / 8) * 8;
        bool valid = row + y < from.last && k + x < from.columns;
        copy_async(tile + y * PITCH_ALONG + x, from.values + (valid ? (row + y) * from.stride + k + x : 0), valid);
    }
}

// Starts to copy a tile of STEP x TILE whose rows in memory are steps of the inner dimension (across), from (k, column).
DEVICE void load_across(bf16* tile, const Operand& from, int k, int column) {
    for (int i = threadIdx.x; i < STEP * TILE / 8; i += THREADS) {
        int y = i / (TILE / 8), x = i % (TILE / 8) * 8;
        bool valid = k + y < from.last && column + x < from.columns;
        copy_async(tile + y * PITCH_ACROSS + x, from.values + (valid ? (k + y) * from.stride + column + x : 0), valid);
    }
}

template <bool LEFT_ALONG, bool RIGHT_ALONG>
DEVICE void load_stage(bf16* stage, const Operand& left, const Operand& right, int row, int column, int k) {
    if (LEFT_ALONG) load_along(stage, left, row, k);
    else load_across(stage, left, k, row);
    if (RIGHT_ALONG) load_along(stage + STAGE, right, column, k);
    else load_across(stage + STAGE, right, k, column);
    copy_commit();
}

// acc += the tile at (row, column), over k from `first` up to `last`.
template <bool LEFT_ALONG, bool RIGHT_ALONG>
DEVICE void multiply(float (&acc)[2][8][4], bf16* memory, const Operand& left, const Operand& right, int row,
                     int column, int first, int last) {
    int warp = threadIdx.x / WARP, m = warp / 2 * 32, n = warp % 2 * 64;
    if (first >= last) return;
    load_stage<LEFT_ALONG, RIGHT_ALONG>(memory, left, right, row, column, first);
    for (int k = first, turn = 0; k < last; k += STEP, turn ^= 1) {
        if (k + STEP < last) {
            load_stage<LEFT_ALONG, RIGHT_ALONG>(memory + (turn ^ 1) * 2 * STAGE, left, right, row, column, k + STEP);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const bf16 *a = memory + turn * 2 * STAGE, *b = a + STAGE;
#pragma unroll
        for (int step = 0; step < STEP; step += 16) {
            u32 fa[2][4];
            for (int i = 0; i < 2; i++) {
                if (LEFT_ALONG) load_a(fa[i], a, PITCH_ALONG, m + 16 * i, step);
                else load_a_of_transposed(fa[i], a, PITCH_ACROSS, m + 16 * i, step);
            }
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                u32 fb[4];
                if (RIGHT_ALONG) load_b(fb, b, PITCH_ALONG, n + 8 * j, step);
                else load_b_of_rows(fb, b, PITCH_ACROSS, n + 8 * j, step);
                for (int i = 0; i < 2; i++) {
                    mma(acc[i][j], fa[i], fb[0], fb[1]);
                    mma(acc[i][j + 1], fa[i], fb[2], fb[3]);
                }
            }
        }
        __syncthreads();
    }
}

DEVICE void clear(float (&acc)[2][8][4]) {
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 8; j++)
            for (int c = 0; c < 4; c++) acc[i][j][c] = 0.0f;
}

// Where each thread's pairs of results lie, and what becomes of them.
template <class F> DEVICE void for_pairs(const float (&acc)[2][8][4], int row, int column, int last, int columns, F f) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
#pragma unroll
            for (int c = 0; c < 4; c += 2) {
                int y = row + warp / 2 * 32 + 16 * i + 4 * c + lane / 4, x = column + warp % 2 * 64 + 8 * j + lane % 4 * 2;
                if (y < last && x < columns) f(y, x, acc[i][j][c], acc[i][j][c + 1]);
            }
        }
    }
}

struct Pairs {
    bf16* out;
    u64 stride;
    bool accumulate;
    DEVICE_METHOD void operator()(int y, int x, float low, float high) const {
        u32* at = (u32*)(out + y * stride + x);
        if (accumulate) {
            low += low_half(*at);
            high += high_half(*at);
        }
        *at = pack(low, high);
    }
};

struct FloatPairs {
    float* out;
    u64 stride;
    DEVICE_METHOD void operator()(int y, int x, float low, float high) const {
        out[y * stride + x] += low;
        out[y * stride + x + 1] += high;
    }
};

// A tile of rows of one expert: rows first..last of x and out. The expert's weight begins at 64 · starts[expert].
struct TileOfRows {
    u32 expert, first, last;
};

// out[a, f] (+)= x[a, :] · w[f, :] for the weight w_FD of row a's expert. Grid: (ceil(F / 128), a bound of the tiles).
KERNEL __launch_bounds__(THREADS)
    grouped_forward(const bf16* x, const bf16* weights, const u32* starts, const TileOfRows* tiles,
                    const u32* n_tiles, bf16* out, int d,
                    int f, int accumulate) {
    DYNAMIC_SHARED(memory);
    if (blockIdx.y >= *n_tiles) return;
    TileOfRows tile = tiles[blockIdx.y];
    int column = blockIdx.x * TILE;
    Operand left = {x, (u64)d, (int)tile.last, d}, right = {weights + 64ull * starts[tile.expert], (u64)d, f, d};
    float acc[2][8][4];
    clear(acc);
    multiply<true, true>(acc, (bf16*)memory, left, right, tile.first, column, 0, d);
    for_pairs(acc, tile.first, column, tile.last, f, Pairs{out, (u64)f, accumulate != 0});
}

// dx[a, d] (+)= dout[a, :] · w[:, d]. Grid: (ceil(D / 128), a bound of the tiles).
KERNEL __launch_bounds__(THREADS)
    grouped_grad_input(const bf16* dout, const bf16* weights, const u32* starts, const TileOfRows* tiles,
                    const u32* n_tiles, bf16* dx,
                       int d, int f, int accumulate) {
    DYNAMIC_SHARED(memory);
    if (blockIdx.y >= *n_tiles) return;
    TileOfRows tile = tiles[blockIdx.y];
    int column = blockIdx.x * TILE;
    Operand left = {dout, (u64)f, (int)tile.last, f}, right = {weights + 64ull * starts[tile.expert], (u64)d, f, d};
    float acc[2][8][4];
    clear(acc);
    multiply<true, false>(acc, (bf16*)memory, left, right, tile.first, column, 0, f);
    for_pairs(acc, tile.first, column, tile.last, d, Pairs{dx, (u64)d, accumulate != 0});
}

// dw[f, d] += Σ dout[a, f] · x[a, d] over the rows of expert z: stretches[2i], stretches[2i + 1] for i in first[z]..first[z + 1].
// Grid: (ceil(D / 128), ceil(F / 128), experts). Each block owns its tile of one expert: no atomics.
KERNEL __launch_bounds__(THREADS)
    grouped_grad_weight(const bf16* x, const bf16* dout, const u32* starts, const u32* first, const u32* stretches,
                        float* gradients, int d, int f) {
    DYNAMIC_SHARED(memory);
    int begin = first[blockIdx.z], end = first[blockIdx.z + 1];
    if (begin == end) return;
    int row = blockIdx.y * TILE, column = blockIdx.x * TILE;
    float acc[2][8][4];
    clear(acc);
    for (int i = begin; i < end; i++) {
        int start = stretches[2 * i], last = stretches[2 * i + 1];
        Operand left = {dout, (u64)f, last, f}, right = {x, (u64)d, last, d};
        multiply<false, false>(acc, (bf16*)memory, left, right, row, column, start, last);
    }
    float* to = gradients + 64ull * starts[blockIdx.z];
    for_pairs(acc, row, column, f, d, FloatPairs{to, (u64)d});
}
