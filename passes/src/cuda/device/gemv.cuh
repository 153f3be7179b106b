// The product for a few rows of a: every weight is read once, by 16-byte loads that pass by the first-level cache. A warp owns
// ROWS_PER_WARP rows of w and all M rows of a; its lanes walk along K together and add their sums at the end.
constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = WARPS * ROWS_PER_WARP, V = 16 / sizeof(Weight), PER_WORD = 4 / sizeof(Weight);

// Where in a run of V the weight `e` of word `i` belongs: whole numbers lie in the order of the tensor cores.
LP_DEVICE constexpr int lp_column(int i, int e) { return PER_WORD == 4 ? 2 * i + e % 2 + e / 2 * 8 : i * PER_WORD + e; }

// Adds the products of COUNT runs of a lane, 32 runs apart: all weights are asked for before the first is used.
template <int COUNT>
LP_DEVICE void lp_runs(const Element* a, const Weight* const (&row)[ROWS_PER_WARP], int k, int left, float (&sum)[ROWS_PER_WARP][M]) {
    uint4 raw[COUNT][ROWS_PER_WARP];
    LP_UNROLL for (int c = 0; c < COUNT; ++c) {
        LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) raw[c][r] = lp_stream16(row[r] + k + c * 32 * V);
    }
    LP_UNROLL for (int c = 0; c < COUNT; ++c) {
        LP_UNROLL for (int m = 0; m < M; ++m) {
            float x[V];
            lp_load(a + size_t(m) * LDA + k + c * 32 * V, left, x);
            LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) {
                const unsigned words[4] = {raw[c][r].x, raw[c][r].y, raw[c][r].z, raw[c][r].w};
                LP_UNROLL for (int i = 0; i < 4; ++i) {
                    float y[PER_WORD];
                    lp_spread(words[i], y, row[r]);
                    LP_UNROLL for (int e = 0; e < PER_WORD; ++e) sum[r][m] = fmaf(y[e], x[lp_column(i, e)], sum[r][m]);
                }
            }
        }
    }
}

LP_DEVICE void lp_gemv(const Element* a, const Weight* w, const Args& args) {
    __shared__ float sums[M][ROWS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first = blockIdx.x * ROWS, mine = first + warp * ROWS_PER_WARP;
    float sum[ROWS_PER_WARP][M] = {};
    const Weight* row[ROWS_PER_WARP];
    LP_UNROLL for (int r = 0; r < ROWS_PER_WARP; ++r) row[r] = w + size_t(mine + r < N ? mine + r : N - 1) * LDW;
    int k = lane * V;
    for (; k + (AHEAD - 1) * 32 * V + V <= K; k += AHEAD * 32 * V) lp_runs<AHEAD>(a, row, k, V, sum);
    for (; k + V <= K; k += 32 * V) lp_runs<1>(a, row, k, V, sum);
    if (K % V != 0 && k < K) lp_runs<1>(a, row, k, K - k, sum);
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
