// One block for each row of a table: it looks through all ids in their order and adds up the rows of dy whose id is its own;
// the table may be a part of a larger one, from row FIRST on.
// No two blocks write one row, so the sum has the same order in every run.
LP_DEVICE void lp_scatter(const int* ids, const Element* dy, Out* out) {
    __shared__ int found[THREADS];
    const int row = blockIdx.x;
    float sum[PER_THREAD][W] = {};
    bool any = false;
    for (int first = 0; first < TOKENS; first += THREADS) {
        __syncthreads();
        found[threadIdx.x] = first + threadIdx.x < TOKENS && ids[first + threadIdx.x] == FIRST + row;
        __syncthreads();
        for (int i = 0; i < THREADS; ++i) {
            if (!found[i]) continue;
            any = true;
            LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
                const int col = (c * THREADS + threadIdx.x) * W;
                float g[W];
                lp_load(dy + size_t(first + i) * PITCH + col, COLS - col, g);
                LP_UNROLL for (int e = 0; e < W; ++e) sum[c][e] += g[e];
            }
        }
    }
    if (ADDS && !any) return;
    LP_UNROLL for (int c = 0; c < PER_THREAD; ++c) {
        const int col = (c * THREADS + threadIdx.x) * W;
        float old[W] = {};
        if (ADDS) lp_load(out + size_t(row) * OUT_PITCH + col, COLS - col, old);
        LP_UNROLL for (int e = 0; e < W; ++e) sum[c][e] += old[e];
        lp_store(out + size_t(row) * OUT_PITCH + col, COLS - col, sum[c]);
    }
}
