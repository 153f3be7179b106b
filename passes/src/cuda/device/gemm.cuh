// out = epilogue(a · w^T): a is [M, K] with LDA elements between rows, w is [N, K] with LDW.
// A block computes BM x BN of the product. STAGES slices of depth BK are on their way into shared memory at any time
// (cp.async); each warp multiplies its WM x WN part with ldmatrix and mma.sync. Rows of a slice are BK elements long and
// their 16-byte pieces are exchanged by row, so that neither the copies nor ldmatrix meet bank conflicts.
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8;
constexpr int PIECES = BK / 8, STEP = THREADS / PIECES, STAGE = (BM + BN) * BK;
constexpr int TILES_M = (M + BM - 1) / BM, TILES_N = (N + BN - 1) / BN, SLICES = (K + BK - 1) / BK;
constexpr int GROUP = 8, SLAB = WN + 8;
static_assert(BM % STEP == 0 && BN % STEP == 0, "every thread copies the same number of pieces");

// Where piece `piece` of row `row` lies within its row.
LP_DEVICE int lp_exchange(int row, int piece) { return BK == 64 ? piece ^ (row & 7) : piece ^ ((row >> 1) & 3); }

// Starts copying the slice at depth k0 of ROWS rows; rows from LIMIT and columns from K on become zero.
template <int ROWS, int LIMIT, int PITCH>
LP_DEVICE void lp_stage(unsigned to, const bf16* from, int row0, int k0) {
    const int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const int left = K - k0 - piece * 8;
    const int bytes = K % BK == 0 || left >= 8 ? 16 : left > 0 ? 2 * left : 0;
    const bf16* source = from + size_t(row0 + row) * PITCH + k0 + piece * 8;
    const unsigned target = to + (row * BK + lp_exchange(row, piece) * 8) * 2;
    LP_UNROLL for (int i = 0; i < ROWS / STEP; ++i) {
        const bool inside = LIMIT % ROWS == 0 || row0 + row + i * STEP < LIMIT;
        lp_copy16(target + i * STEP * BK * 2, source + size_t(i) * STEP * PITCH, inside ? bytes : 0);
    }
}

LP_DEVICE void lp_gemm(const bf16* a, const bf16* w, const Args& args) {
    LP_DYNAMIC_SHARED(memory);
    const unsigned stages = lp_shared(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M * WN;
    // Tiles are visited in groups of GROUP rows of tiles, so that blocks that run together share slices in the L2 cache.
    const int in_group = blockIdx.x % (GROUP * TILES_N), first = blockIdx.x / (GROUP * TILES_N) * GROUP;
    const int height = TILES_M - first < GROUP ? TILES_M - first : GROUP;
    const int row0 = (first + in_group % height) * BM, col0 = in_group / height * BN;

    float sum[MT][NT][4] = {};
    LP_UNROLL for (int s = 0; s < STAGES - 1; ++s) {
        if (s < SLICES) {
            lp_stage<BM, M, LDA>(stages + s * STAGE * 2, a, row0, s * BK);
            lp_stage<BN, N, LDW>(stages + (s * STAGE + BM * BK) * 2, w, col0, s * BK);
        }
        lp_copy_commit();
    }
    // Where this lane's rows for ldmatrix begin in a slice, and how their pieces are exchanged: 16 rows further down it is
    // the same.
    const int left_row = warp_m + lane % 16, right_row = warp_n + lane % 8 + lane / 16 * 8;
    const unsigned my_left = left_row * BK * 2, my_right = (BM + right_row) * BK * 2;
    const int left_key = lp_exchange(left_row, 0), right_key = lp_exchange(right_row, 0);
    for (int slice = 0; slice < SLICES; ++slice) {
        lp_copy_wait<STAGES - 2>();
        __syncthreads();
        if (slice + STAGES - 1 < SLICES) {
            const unsigned next = stages + (slice + STAGES - 1) % STAGES * STAGE * 2;
            lp_stage<BM, M, LDA>(next, a, row0, (slice + STAGES - 1) * BK);
            lp_stage<BN, N, LDW>(next + BM * BK * 2, w, col0, (slice + STAGES - 1) * BK);
        }
        lp_copy_commit();
        const unsigned left = stages + slice % STAGES * STAGE * 2 + my_left, right = left - my_left + my_right;
        LP_UNROLL for (int k = 0; k < BK / 16; ++k) {
            unsigned x[MT][4], y[NT / 2][4];
            const unsigned x_piece = ((2 * k + lane / 16) ^ left_key) * 16, y_piece = ((2 * k + lane / 8 % 2) ^ right_key) * 16;
            LP_UNROLL for (int i = 0; i < MT; ++i) lp_load_matrices(x[i], left + x_piece + i * 16 * BK * 2);
            LP_UNROLL for (int j = 0; j < NT / 2; ++j) lp_load_matrices(y[j], right + y_piece + j * 16 * BK * 2);
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                LP_UNROLL for (int j = 0; j < NT; ++j) lp_mma(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
    lp_copy_wait<0>();
    __syncthreads();

    // Each warp turns 16 of its rows at a time into runs of P columns, by way of its own corner of shared memory.
    float* const slab = reinterpret_cast<float*>(memory) + warp * 16 * SLAB;
    LP_UNROLL for (int i = 0; i < MT; ++i) {
        LP_UNROLL for (int j = 0; j < NT; ++j) {
            float* const at = slab + lane / 4 * SLAB + j * 8 + lane % 4 * 2;
            *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
            *reinterpret_cast<float2*>(at + 8 * SLAB) = make_float2(sum[i][j][2], sum[i][j][3]);
        }
        __syncwarp();
        for (int run = lane; run < 16 * (WN / P); run += 32) {
            const int row = row0 + warp_m + i * 16 + run / (WN / P), at = run % (WN / P) * P;
            const int col = col0 + warp_n + at;
            if (row < M && col < N) {
                float run_sum[P];
                lp_load(slab + run / (WN / P) * SLAB + at, P, run_sum);
                lp_epilogue(args, row, col, run_sum);
            }
        }
        __syncwarp();
    }
}
