// out = epilogue(a · w^T) on Hopper: a is [M, K], w is [N, K], both seen through the copy engine; a side that is deep lies with
// one row per step of depth instead, and its slices come in boxes of 64 columns. One thread of the last warpgroup keeps STAGES
// slices of depth BK on their way; the other warpgroups multiply 64 rows by BN columns each, straight from shared memory. A
// block goes on to its next tile while the copies for it are under way already.
constexpr int CONSUMERS = BM / 64, THREADS = 128 * (CONSUMERS + 1), NT = BN / 8, STAGE = (BM + BN) * BK * 2;
constexpr int SLICES = (K + BK - 1) / BK, CHUNK = 32, SLAB = CHUNK + 8;
static_assert(BK == 64, "a row of a slice is the 128 bytes of the swizzle");

// Starts copying the slice at depth k0 of WIDE rows, or columns.
template <bool DEEP, int WIDE>
LP_DEVICE void lp_slice(unsigned to, const LpMap& from, int first, int k0, unsigned barrier) {
    if constexpr (DEEP) {
        LP_UNROLL for (int c = 0; c < WIDE / 64; ++c) lp_fetch(to + c * BK * 128, from, first + c * 64, k0, barrier);
    } else {
        lp_fetch(to, from, k0, first, barrier);
    }
}
// The factors of step k of a slice, from row or column `first` on.
template <bool DEEP>
LP_DEVICE unsigned long long lp_factor(unsigned slice, int first, int k) {
    if constexpr (DEEP) return lp_turned(slice + first * 128 + k * 2048, BK * 128);
    else return lp_matrix(slice + first * 128 + k * 32);
}

LP_DEVICE void lp_gemm_90(const LpMap& a, const LpMap& w, const Args& args) {
    LP_DYNAMIC_SHARED(memory);
    const unsigned stages = lp_shared(memory), slabs = stages + STAGES * STAGE;
    const unsigned full = slabs + 4 * CONSUMERS * 16 * SLAB * 4, empty = full + 8 * STAGES;
    const int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) lp_barrier_init(full + 8 * s, 1), lp_barrier_init(empty + 8 * s, 4 * CONSUMERS);
        lp_barrier_fence();
    }
    __syncthreads();

    int row0, col0, turn = 0;
    if (group == CONSUMERS) {
        lp_fewer_registers<40>();
        if (threadIdx.x % 128 != 0) return;
        for (int tile = blockIdx.x; tile < TILES_M * TILES_N; tile += gridDim.x) {
            lp_tile(tile, row0, col0);
            for (int slice = 0; slice < SLICES; ++slice, ++turn) {
                const unsigned stage = turn % STAGES, to = stages + stage * STAGE;
                lp_barrier_wait(empty + 8 * stage, turn / STAGES % 2 ^ 1);
                lp_barrier_expect(full + 8 * stage, STAGE);
                lp_slice<A_DEEP, BM>(to, a, row0, slice * BK, full + 8 * stage);
                lp_slice<B_DEEP, BN>(to + BM * BK * 2, w, col0, slice * BK, full + 8 * stage);
            }
        }
        return;
    }

    lp_more_registers<CONSUMERS == 2 ? 232 : 240>();
    float* const slab = reinterpret_cast<float*>(memory + STAGES * STAGE) + warp * 16 * SLAB;
    for (int tile = blockIdx.x; tile < TILES_M * TILES_N; tile += gridDim.x) {
        lp_tile(tile, row0, col0);
        float sum[NT][4];
        for (int slice = 0; slice < SLICES; ++slice, ++turn) {
            const unsigned stage = turn % STAGES, left = stages + stage * STAGE, right = left + BM * BK * 2;
            lp_barrier_wait(full + 8 * stage, turn / STAGES % 2);
            lp_products_begin();
            LP_UNROLL for (int k = 0; k < BK / 16; ++k) {
                lp_product_64<A_DEEP, B_DEEP>(sum, lp_factor<A_DEEP>(left, group * 64, k), lp_factor<B_DEEP>(right, 0, k), slice > 0 || k > 0);
            }
            lp_products_commit();
            // The slice before is multiplied: its place is free.
            lp_products_wait<1>();
            if (slice > 0 && lane == 0) lp_barrier_arrive(empty + 8 * ((turn - 1) % STAGES));
        }
        lp_products_wait<0>();
        if (lane == 0) lp_barrier_arrive(empty + 8 * ((turn - 1) % STAGES));

        LP_UNROLL for (int c = 0; c < BN / CHUNK; ++c) {
            float part[CHUNK / 8][4];
            LP_UNROLL for (int j = 0; j < CHUNK / 8; ++j) LP_UNROLL for (int i = 0; i < 4; ++i) part[j][i] = sum[c * CHUNK / 8 + j][i];
            lp_leave_rows<SLAB>(slab, part, [&](int slab_row, int at, const float (&run)[P]) {
                const int row = row0 + warp * 16 + slab_row, col = col0 + c * CHUNK + at;
                if (row < M && col < N) lp_epilogue(args, row, col, run);
            });
        }
    }
}
