// The sum over the batch of what each position received, at the table's row of that position.
LP_DEVICE void lp_positions(const Element* dy, Out* out) {
    const int runs = (COLS + W - 1) / W, run = blockIdx.x * THREADS + threadIdx.x;
    const int row = run / runs, col = run % runs * W;
    if (row >= ROWS || (ADDS && (row < OFFSET || row >= OFFSET + SEQ))) return;
    float sum[W] = {};
    if (ADDS) lp_load(out + size_t(row) * OUT_PITCH + col, COLS - col, sum);
    for (int b = 0; row >= OFFSET && row < OFFSET + SEQ && b < BATCH; ++b) {
        float g[W];
        lp_load(dy + size_t(b * SEQ + row - OFFSET) * PITCH + col, COLS - col, g);
        LP_UNROLL for (int e = 0; e < W; ++e) sum[e] += g[e];
    }
    lp_store(out + size_t(row) * OUT_PITCH + col, COLS - col, sum);
}
