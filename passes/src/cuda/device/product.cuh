// out = epilogue(Σ over k of a(m, k) b(n, k)) for operands that lie either way: rows along the depth, or (A_DEEP, B_DEEP) one
// row per step of depth. Products of attention run for every batch and head (blockIdx.y); where heads share keys, ROUNDS of
// them add up in the same sums. A block computes BM x BN, where the depth is split its share (blockIdx.z) of it; STAGES slices
// of depth BK are on their way at any time. Rows in shared memory are eight elements longer than needed, so that ldmatrix meets
// no bank conflicts.
constexpr int THREADS = 32 * WARPS_M * WARPS_N;
constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N, MT = WM / 16, NT = WN / 8, SLAB = WN + 8;
constexpr int A_PITCH = (A_DEEP ? BM : BK) + 8, B_PITCH = (B_DEEP ? BN : BK) + 8;
constexpr int A_BYTES = (A_DEEP ? BK : BM) * A_PITCH * 2, B_BYTES = (B_DEEP ? BK : BN) * B_PITCH * 2, STAGE = A_BYTES + B_BYTES;
constexpr int TILES_M = (M + BM - 1) / BM, SLICES = (K + BK - 1) / BK, TURNS = ROUNDS * SLICES;

// Starts copying WIDE rows (or columns) of an operand from `first`, BK deep from k0; what lies outside becomes zero.
template <bool DEEP, int WIDE, int PITCH, int LIMIT, int LD>
LP_DEVICE void lp_stage(unsigned to, const bf16* from, int first, int k0) {
    constexpr int ROWS = DEEP ? BK : WIDE, PIECES = (DEEP ? WIDE : BK) / 8;
    static_assert(ROWS * PIECES % THREADS == 0, "every thread copies the same number of pieces");
    LP_UNROLL for (int i = 0; i < ROWS * PIECES / THREADS; ++i) {
        const int row = (i * THREADS + threadIdx.x) / PIECES, col = (i * THREADS + threadIdx.x) % PIECES * 8;
        const int at_row = (DEEP ? k0 : first) + row, at_col = (DEEP ? first : k0) + col;
        const int left = (DEEP ? LIMIT : K) - at_col;
        const bool inside = at_row < (DEEP ? K : LIMIT);
        const int bytes = !inside || left <= 0 ? 0 : left >= 8 ? 16 : 2 * left;
        lp_copy16(to + (row * PITCH + col) * 2, from + size_t(at_row) * LD + at_col, bytes);
    }
}

LP_DEVICE void lp_turn(unsigned to, const bf16* a, const bf16* b, int row0, int col0, int turn) {
    const int round = turn / SLICES, k0 = turn % SLICES * BK;
    lp_stage<A_DEEP, BM, A_PITCH, M, LDA>(to, a + size_t(round) * A_ROUND, row0, k0);
    lp_stage<B_DEEP, BN, B_PITCH, N, LDB>(to + A_BYTES, b + size_t(round) * B_ROUND, col0, k0);
}

LP_DEVICE void lp_product(const bf16* a, const bf16* b, const Args& args) {
    LP_DYNAMIC_SHARED(memory);
    const unsigned stages = lp_shared(memory);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_m = warp % WARPS_M * WM, warp_n = warp / WARPS_M * WN;
    const int row0 = blockIdx.x % TILES_M * BM, col0 = blockIdx.x / TILES_M * BN;
    const int batch = blockIdx.y / HEADS, head = blockIdx.y % HEADS;
    a += size_t(batch) * A_BATCH + size_t(head / A_SHARE) * A_HEAD;
    b += size_t(batch) * B_BATCH + size_t(head / B_SHARE) * B_HEAD;

    const int begin = SPLITS > 1 ? blockIdx.z * TURNS / SPLITS : 0, end = SPLITS > 1 ? (blockIdx.z + 1) * TURNS / SPLITS : TURNS;
    float sum[MT][NT][4] = {};
    LP_UNROLL for (int s = 0; s < STAGES - 1; ++s) {
        if (begin + s < end) lp_turn(stages + s * STAGE, a, b, row0, col0, begin + s);
        lp_copy_commit();
    }
    // Where this lane's rows for ldmatrix begin; a step of depth moves along a row or down by 16 of them.
    const unsigned my_a = A_DEEP ? ((lane / 16 * 8 + lane % 8) * A_PITCH + warp_m + lane / 8 % 2 * 8) * 2
                                 : ((warp_m + lane % 16) * A_PITCH + lane / 16 * 8) * 2;
    const unsigned my_b = A_BYTES + (B_DEEP ? ((lane % 8 + lane / 8 % 2 * 8) * B_PITCH + warp_n + lane / 16 * 8) * 2
                                            : ((warp_n + lane % 8 + lane / 16 * 8) * B_PITCH + lane / 8 % 2 * 8) * 2);
    for (int turn = begin; turn < end; ++turn) {
        lp_copy_wait<STAGES - 2>();
        __syncthreads();
        const int next = turn + STAGES - 1;
        if (next < end) lp_turn(stages + (next - begin) % STAGES * STAGE, a, b, row0, col0, next);
        lp_copy_commit();
        const unsigned at = stages + (turn - begin) % STAGES * STAGE;
        LP_UNROLL for (int k = 0; k < BK / 16; ++k) {
            unsigned x[MT][4], y[NT / 2][4];
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                if constexpr (A_DEEP) lp_load_transposed(x[i], at + my_a + (k * 16 * A_PITCH + i * 16) * 2);
                else lp_load_matrices(x[i], at + my_a + (i * 16 * A_PITCH + k * 16) * 2);
            }
            LP_UNROLL for (int j = 0; j < NT / 2; ++j) {
                if constexpr (B_DEEP) lp_load_transposed(y[j], at + my_b + (k * 16 * B_PITCH + j * 16) * 2);
                else lp_load_matrices(y[j], at + my_b + (j * 16 * B_PITCH + k * 16) * 2);
            }
            LP_UNROLL for (int i = 0; i < MT; ++i) {
                LP_UNROLL for (int j = 0; j < NT; ++j) lp_mma(sum[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
    lp_copy_wait<0>();
    __syncthreads();

    float* const slab = reinterpret_cast<float*>(memory) + warp * 16 * SLAB;
    LP_UNROLL for (int i = 0; i < MT; ++i) {
        lp_leave_rows<SLAB>(slab, sum[i], [&](int slab_row, int at, const float (&run)[P]) {
            const int row = row0 + warp_m + i * 16 + slab_row, col = col0 + warp_n + at;
            if (row < M && col < N) lp_epilogue(args, row + batch * ROW_BATCH + head * ROW_HEAD, col + head * COL_HEAD, run);
        });
    }
}
