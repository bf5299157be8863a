// The forward pass of attention: a block for 64 queries of a head, a warp for 16 of them, keys in tiles of 64.

// Grid: (ceil(L / 64), H, B). `low` is the least start of each 64 queries; both may be null: then a document is a sequence.
KERNEL __launch_bounds__(THREADS) attention(const bf16* q, const bf16* k, const bf16* v, const u32* start,
                                            const u32* low, bf16* out, float* log_sum, int l, int h, int g) {
    DYNAMIC_SHARED(memory);
    bf16 *queries = (bf16*)memory, *keys = queries + ROWS * PITCH, *values = keys + ROWS * PITCH;
    int b = blockIdx.z, head = blockIdx.y, block = gridDim.x - 1 - blockIdx.x, first = block * ROWS;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, row = warp * 16 + lane / 4;
    u64 q_stride = (u64)h * HEAD, kv_stride = (u64)g * HEAD, sequence = (u64)b * l;
    const bf16* k_head = k + sequence * kv_stride + head / (h / g) * HEAD;
    const bf16* v_head = v + sequence * kv_stride + head / (h / g) * HEAD;
    u64 q_at = sequence * q_stride + (u64)head * HEAD;

    int query[2] = {first + row, first + row + 8}, starts[2] = {0, 0};
    for (int i = 0; i < 2; i++)
        if (start && query[i] < l) starts[i] = start[sequence + query[i]];
    int tile = (low ? (int)low[(u64)b * gridDim.x + block] : 0) / ROWS;
    load_rows(queries, q + q_at, q_stride, first, ROWS, l);
    load_rows(keys, k_head, kv_stride, tile * ROWS, ROWS, l);
    copy_commit();

    float acc[TILES][4], top[2] = {-INFINITE, -INFINITE}, sum[2] = {0.0f, 0.0f};
    clear(acc);
    float scale = score_scale();
    for (; tile <= block; tile++) {
        load_rows(values, v_head, kv_stride, tile * ROWS, ROWS, l);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        float s[ROWS / 8][4];
        clear(s);
        multiply_rows(s, queries, warp * 16, keys);
        __syncthreads();
        // The next keys come while this tile's weights meet its values.
        load_rows(keys, k_head, kv_stride, (tile + 1) * ROWS, ROWS, l);
        copy_commit();
        for (int i = 0; i < 2; i++) {
            // Before the last tile and after the document's first one, all keys are seen.
            if (tile == block || starts[i] > tile * ROWS) {
#pragma unroll
                for (int n = 0; n < ROWS / 8; n++) {
                    for (int j = 0; j < 2; j++) {
                        int key = tile * ROWS + n * 8 + lane % 4 * 2 + j;
                        if (!is_seen(query[i], key, starts[i])) s[n][2 * i + j] = -INFINITE;
                    }
                }
            }
            float tile_top = top[i];
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) tile_top = fmaxf(tile_top, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
            tile_top = fmaxf(tile_top, shuffle_xor(tile_top, 1));
            tile_top = fmaxf(tile_top, shuffle_xor(tile_top, 2));
            // A row may have seen nothing yet: its document begins in a later tile.
            float base = tile_top == -INFINITE ? 0.0f : tile_top * scale, shrink = exp2_fast(top[i] * scale - base);
            top[i] = tile_top;
            sum[i] *= shrink;
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++) {
                for (int j = 0; j < 2; j++) {
                    s[n][2 * i + j] = exp2_fast(s[n][2 * i + j] * scale - base);
                    sum[i] += s[n][2 * i + j];
                }
            }
#pragma unroll
            for (int n = 0; n < TILES; n++) {
                acc[n][2 * i] *= shrink;
                acc[n][2 * i + 1] *= shrink;
            }
        }
        copy_wait<1>();
        __syncthreads();
        multiply_weights(acc, s, values);
        __syncthreads();
    }
    copy_wait<0>();
    for (int i = 0; i < 2; i++) {
        sum[i] += shuffle_xor(sum[i], 1);
        sum[i] += shuffle_xor(sum[i], 2);
        if (query[i] < l && lane % 4 == 0) {
            log_sum[(sequence + query[i]) * h + head] = (top[i] * scale + log2f(sum[i])) * LN_2;
        }
    }
    store_rows(out + q_at, q_stride, acc, query[0], l, 1.0f / sum[0], 1.0f / sum[1]);
}
