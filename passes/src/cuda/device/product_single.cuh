// The same without tensor cores, element by element: for single precision, and for heads whose rows do not begin on 16 bytes.
// A block computes 64 x 64 by slices of depth 16, a thread 4 x 4.
constexpr int BM = 64, BN = 64, BK = 16, THREADS = 256, TILES_M = (M + BM - 1) / BM;

LP_DEVICE void lp_product(const Element* a, const Element* b, const Args& args) {
    __shared__ float left[BK][BM + 4], right[BK][BN + 4], tile[BM][BN + 4];
    const int row0 = blockIdx.x % TILES_M * BM, col0 = blockIdx.x / TILES_M * BN;
    const int batch = blockIdx.y / HEADS, head = blockIdx.y % HEADS;
    const int my_row = threadIdx.x / 16 * 4, my_col = threadIdx.x % 16 * 4;
    a += size_t(batch) * A_BATCH + size_t(head / A_SHARE) * A_HEAD;
    b += size_t(batch) * B_BATCH + size_t(head / B_SHARE) * B_HEAD;
    float sum[4][4] = {};
    for (int round = 0; round < ROUNDS; ++round, a += A_ROUND, b += B_ROUND) {
        for (int k0 = 0; k0 < K; k0 += BK) {
            LP_UNROLL for (int i = threadIdx.x; i < BM * BK; i += THREADS) {
                // Neighbouring threads read neighbouring elements, whichever way the operand lies.
                const int a_row = A_DEEP ? i % BM : i / BK, a_k = A_DEEP ? i / BM : i % BK;
                const int b_row = B_DEEP ? i % BN : i / BK, b_k = B_DEEP ? i / BN : i % BK;
                const size_t a_at = A_DEEP ? size_t(k0 + a_k) * LDA + row0 + a_row : size_t(row0 + a_row) * LDA + k0 + a_k;
                const size_t b_at = B_DEEP ? size_t(k0 + b_k) * LDB + col0 + b_row : size_t(col0 + b_row) * LDB + k0 + b_k;
                left[a_k][a_row] = k0 + a_k < K && row0 + a_row < M ? lp_to_float(a[a_at]) : 0.0f;
                right[b_k][b_row] = k0 + b_k < K && col0 + b_row < N ? lp_to_float(b[b_at]) : 0.0f;
            }
            __syncthreads();
            LP_UNROLL for (int k = 0; k < BK; ++k) {
                LP_UNROLL for (int i = 0; i < 4; ++i) {
                    LP_UNROLL for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[k][my_row + i], right[k][my_col + j], sum[i][j]);
                }
            }
            __syncthreads();
        }
    }
    LP_UNROLL for (int i = 0; i < 4; ++i) {
        LP_UNROLL for (int j = 0; j < 4; ++j) tile[my_row + i][my_col + j] = sum[i][j];
    }
    __syncthreads();
    for (int run = threadIdx.x; run < BM * (BN / P); run += THREADS) {
        const int row = run / (BN / P), at = run % (BN / P) * P;
        if (row0 + row < M && col0 + at < N) {
            float run_sum[P];
            LP_UNROLL for (int e = 0; e < P; ++e) run_sum[e] = tile[row][at + e];
            lp_epilogue(args, row0 + row + batch * ROW_BATCH + head * ROW_HEAD, col0 + at + head * COL_HEAD, run_sum);
        }
    }
}
