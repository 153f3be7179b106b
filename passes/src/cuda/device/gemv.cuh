// The product for a few rows of a: every weight is read once, by 16-byte loads that pass by the first-level cache. A warp owns
// ROWS_PER_WARP rows of w and all M rows of a; its lanes walk along K together and add their sums at the end.
constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = WARPS * ROWS_PER_WARP, V = 16 / sizeof(Element);

LP_DEVICE void lp_gemv(const Element* a, const Element* w, const Args& args) {
    __shared__ float sums[M][ROWS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x * ROWS, mine = first + warp * ROWS_PER_WARP;
    float sum[ROWS_PER_WARP][M] = {};
    const Element* row[ROWS_PER_WARP];
    LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) row[r] = w + size_t(mine + r < N ? mine + r : N - 1) * LDW;
    LP_UNROLL_DEPTH
    for (int k = lane * V; k < K; k += 32 * V) {
        uint4 raw[ROWS_PER_WARP];
        LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) raw[r] = lp_stream16(row[r] + k);
        LP_UNROLL for (int m = 0; m < M; ++m) {
            float x[V];
            lp_load(a + size_t(m) * LDA + k, K - k, x);
            LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) {
                const unsigned words[4] = {raw[r].x, raw[r].y, raw[r].z, raw[r].w};
                LP_UNROLL for (int i = 0; i < 4; ++i) {
                    float y[4 / sizeof(Element)];
                    lp_spread(words[i], y, a);
                    LP_UNROLL for (int e = 0; e < 4 / int(sizeof(Element)); ++e) {
                        sum[r][m] = fmaf(y[e], x[i * (4 / sizeof(Element)) + e], sum[r][m]);
                    }
                }
            }
        }
    }
    LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) {
        LP_UNROLL for (int m = 0; m < M; ++m) {
            const float whole = lp_warp_sum(sum[r][m]);
            if (lane == 0) sums[m][warp * ROWS_PER_WARP + r] = whole;
        }
    }
    __syncthreads();
    for (int run = threadIdx.x; run < M * (ROWS / P); run += THREADS) {
        const int m = run / (ROWS / P), at = run % (ROWS / P) * P;
        if (first + at < N) {
            float run_sum[P];
            LP_UNROLL for (int e = 0; e < P; ++e) run_sum[e] = sums[m][at + e];
            lp_epilogue(args, m, first + at, run_sum);
        }
    }
}
