// The product in single precision, without tensor cores: a block computes 64 x 64 by slices of depth 16, a thread 4 x 4.
constexpr int BM = 64, BN = 64, BK = 16, THREADS = 256, SLAB = BN + 4;

LP_DEVICE void lp_gemm_f32(const float* a, const float* w, const Args& args) {
    __shared__ float left[BK][BM + 4], right[BK][BN + 4], tile[BM][SLAB];
    const int row0 = blockIdx.x % ((M + BM - 1) / BM) * BM, col0 = blockIdx.x / ((M + BM - 1) / BM) * BN;
    const int my_row = threadIdx.x / 16 * 4, my_col = threadIdx.x % 16 * 4;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += BK) {
        LP_UNROLL for (int i = threadIdx.x; i < BM * BK; i += THREADS) {
            const int row = i / BK, k = i % BK;
            const bool deep = k0 + k < K;
            left[k][row] = deep && row0 + row < M ? a[size_t(row0 + row) * LDA + k0 + k] : 0.0f;
            right[k][row] = deep && col0 + row < N ? w[size_t(col0 + row) * LDW + k0 + k] : 0.0f;
        }
        __syncthreads();
        LP_UNROLL for (int k = 0; k < BK; ++k) {
            LP_UNROLL for (int i = 0; i < 4; ++i) {
                LP_UNROLL for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(left[k][my_row + i], right[k][my_col + j], sum[i][j]);
            }
        }
        __syncthreads();
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
            lp_epilogue(args, row0 + row, col0 + at, run_sum);
        }
    }
}
