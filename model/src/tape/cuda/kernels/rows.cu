// Rows of tables and of plans: copied, added, weighed, and their gradients collected. A warp for each row; 8 divides every width.

#define WARPS 4

DEVICE int row_of_warp() { return blockIdx.x * WARPS + threadIdx.x / WARP; }

// out[n] = table[id[n]] (+ bigrams[bucket[n]]), the residual stream's first value, float32 from the float32 weights.
KERNEL __launch_bounds__(WARPS* WARP) embed(const float* table, const u32* id, const float* bigrams, const u32* bucket,
                                            float* out, int rows, int d) {
    int row = row_of_warp();
    if (row >= rows) return;
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float a[8];
        load_eight(a, table + (u64)id[row] * d + i);
        if (bigrams) {
            float b[8];
            load_eight(b, bigrams + (u64)bucket[row] * d + i);
            for (int j = 0; j < 8; j++) a[j] += b[j];
        }
        store_eight(out + (u64)row * d + i, a);
    }
}

// x[n] += table[id[n]].
KERNEL __launch_bounds__(WARPS* WARP) add_rows(const float* table, const u32* id, bf16* x, int rows, int d) {
    int row = row_of_warp();
    if (row >= rows) return;
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float a[8], b[8];
        load_eight(a, x + (u64)row * d + i);
        load_eight(b, table + (u64)id[row] * d + i);
        for (int j = 0; j < 8; j++) a[j] += b[j];
        store_eight(x + (u64)row * d + i, a);
    }
}

// The gradient of a table, in two steps without atomics. The host sorts the rows by id and cuts each id's rows into pieces of at most
// some dozens: piece p holds order[first[p]..first[p + 1]]. This step sums each piece. `n_pieces` is read from the device, so that one
// launch serves all batches.
template <class T>
DEVICE void sum_piece(const T* dout, const u32* order, const u32* first, const u32* n_pieces, float* sums, int d) {
    int piece = row_of_warp();
    if (piece >= (int)*n_pieces) return;
    int begin = first[piece], end = first[piece + 1];
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int n = begin; n < end; n++) {
            float a[8];
            load_eight(a, dout + (u64)order[n] * d + i);
            for (int j = 0; j < 8; j++) total[j] += a[j];
        }
        store_eight(sums + (u64)piece * d + i, total);
    }
}

KERNEL __launch_bounds__(WARPS* WARP)
    sum_pieces(const bf16* dout, const u32* order, const u32* first, const u32* n_pieces, float* sums, int d) {
    sum_piece(dout, order, first, n_pieces, sums, d);
}

KERNEL __launch_bounds__(WARPS* WARP)
    sum_pieces_float(const float* dout, const u32* order, const u32* first, const u32* n_pieces, float* sums, int d) {
    sum_piece(dout, order, first, n_pieces, sums, d);
}

// Second step: dtable[id[i]] += the sums of that id's pieces, pieces[i]..pieces[i + 1], in order.
KERNEL __launch_bounds__(WARPS* WARP)
    add_pieces(const float* sums, const u32* id, const u32* pieces, const u32* n_ids, float* dtable, int d) {
    int row = row_of_warp();
    if (row >= (int)*n_ids) return;
    float* to = dtable + (u64)id[row] * d;
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float total[8];
        load_eight(total, to + i);
        for (int piece = pieces[row]; piece < (int)pieces[row + 1]; piece++) {
            float a[8];
            load_eight(a, sums + (u64)piece * d + i);
            for (int j = 0; j < 8; j++) total[j] += a[j];
        }
        store_eight(to + i, total);
    }
}

// out[a] = weight[a] · x[token[a]]; without weights 1, without tokens a itself.
KERNEL __launch_bounds__(WARPS* WARP)
    take_rows(const bf16* x, const u32* token, const float* weight, bf16* out, int rows, int d) {
    int row = row_of_warp();
    if (row >= rows) return;
    u64 from = token ? token[row] : row;
    float w = weight ? weight[row] : 1.0f;
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float a[8];
        load_eight(a, x + from * d + i);
        for (int j = 0; j < 8; j++) a[j] *= w;
        store_eight(out + (u64)row * d + i, a);
    }
}

// out[n] (+)= Σ weight[a] · x[a] over the assignments of token n: assignment[first[n]]..assignment[first[n + 1]], in order.
KERNEL __launch_bounds__(WARPS* WARP) collect_rows(const bf16* x, const u32* first, const u32* assignment,
                                                   const float* weight, bf16* out, int rows, int d, int accumulate) {
    int row = row_of_warp();
    if (row >= rows) return;
    int begin = first[row], end = first[row + 1];
    for (int i = threadIdx.x % WARP * 8; i < d; i += 8 * WARP) {
        float total[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (accumulate) load_eight(total, out + (u64)row * d + i);
        for (int n = begin; n < end; n++) {
            float a[8], w = weight ? weight[assignment[n]] : 1.0f;
            load_eight(a, x + (u64)assignment[n] * d + i);
            for (int j = 0; j < 8; j++) total[j] += w * a[j];
        }
        store_eight(out + (u64)row * d + i, total);
    }
}
