// Sums over all rows, column by column, in a fixed order: each block adds up its own rows (every BLOCKS-th) of its own
// columns, thread by thread; lp_columns_join adds the blocks' shares. CENTRE and SCALED say whether rows are normalised first:
// then a row's mean and scale are sums over the block.
LP_DEVICE void lp_columns(const Element* x, const Element* dy, float* parts) {
    __shared__ float partial[32];
    const int first = blockIdx.y * (THREADS * PER_THREAD * W);
    float sum[PER_THREAD][W] = {};
    for (int row = blockIdx.x; row < ROWS; row += BLOCKS) {
        float g[PER_THREAD][W], v[PER_THREAD][W] = {}, mean = 0.0f, scale = 1.0f;
        LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
            const int col = first + (c * THREADS + int(threadIdx.x)) * W, valid = COLS - col;
            lp_load(dy + size_t(row) * PITCH + col, valid, g[c]);
            if (SCALED) lp_load(x + size_t(row) * PITCH + col, valid, v[c]);
        }
        if (CENTRE) {
            float all = 0.0f;
            LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) LP_UNROLL for (int e = 0; e < W; ++e) all += v[c][e];
            mean = lp_block_sum<THREADS>(all, partial) * (1.0f / COLS);
        }
        if (SCALED) {
            float all = 0.0f;
            LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
                const int valid = COLS - first - (c * THREADS + int(threadIdx.x)) * W;
                LP_UNROLL for (int e = 0; e < W; ++e) {
                    v[c][e] = e < valid ? v[c][e] - mean : 0.0f;
                    all += v[c][e] * v[c][e];
                }
            }
            scale = rsqrtf(lp_block_sum<THREADS>(all, partial) * (1.0f / COLS) + EPS);
        }
        LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
            LP_UNROLL for (int e = 0; e < W; ++e) sum[c][e] += SCALED ? v[c][e] * scale * g[c][e] : g[c][e];
        }
    }
    LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
        const int col = first + (c * THREADS + int(threadIdx.x)) * W;
        lp_store(parts + size_t(blockIdx.x) * PART_PITCH + col, COLS - col, sum[c]);
    }
}
