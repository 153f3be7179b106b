// The sum of squares of a block's share of one gradient.
LP_DEVICE void lp_squares(const float* gradient, float* parts) {
    __shared__ float partial[32];
    float sum = 0.0f;
    for (unsigned long long run = blockIdx.x * THREADS + threadIdx.x; run < RUNS; run += BLOCKS * THREADS) {
        const unsigned long long row = run / ROW_RUNS;
        const int col = int(run % ROW_RUNS) * 4;
        float g[4];
        lp_load(gradient + row / ROWS * SLICE + row % ROWS * PITCH + col, COLS - col, g);
        LP_UNROLL for (int e = 0; e < 4; ++e) sum += g[e] * g[e];
    }
    sum = lp_block_sum<THREADS>(sum, partial);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}
